"""README's commands: each is understood, and the whole way from drawing to report is walked once."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from jobs import cancel, chain, clean, doctor, logs, report, retry, status, sweep, usage
from petseg import evaluate, train
from shards import pack, show, verify

REPOSITORY = Path(__file__).parents[1]
COMMANDS = {
    "shards.pack": pack.PackConfig,
    "shards.verify": verify.VerifyConfig,
    "shards.show": show.ShowConfig,
    "petseg/train.py": train.Command,
    "slurm/train.sbatch": train.Command,
    "petseg.evaluate": evaluate.Command,
    "jobs/sweep.py": sweep.Command,
    "jobs/status.py": status.Command,
    "jobs/report.py": report.Command,
    "jobs/doctor.py": doctor.Command,
    "jobs/logs.py": logs.Command,
    "jobs/retry.py": retry.Command,
    "jobs/cancel.py": cancel.Command,
    "jobs/clean.py": clean.Command,
    "jobs/usage.py": usage.Command,
    "jobs/chain.py": chain.Command,
}


def readme_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


def own_commands() -> list[tuple[str, list[str]]]:
    """(our command, its arguments) of each line that has one."""
    found = []
    for line in readme_lines():
        words = shlex.split(line)
        for place, word in enumerate(words):
            if word in COMMANDS:
                found.append((word, words[place + 1 :]))
    return found


def test_the_readme_shows_every_command() -> None:
    assert {name for name, _ in own_commands()} == set(COMMANDS)


@pytest.mark.parametrize(("name", "arguments"), own_commands(), ids=lambda value: str(value))
def test_each_command_line_is_understood(name: str, arguments: list[str]) -> None:
    if name == "jobs/chain.py":  # two commands in one line, taken apart by its own reader
        words = chain.read_chain(arguments)
        if words.pack_flags:
            tyro.cli(pack.PackConfig, args=words.pack_flags)
    else:
        tyro.cli(COMMANDS[name], args=arguments, config=(tyro.conf.PositionalRequiredArgs,))


def test_make_knows_what_the_readme_asks_of_it() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for line in readme_lines():
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, flags=re.MULTILINE)


def test_python_is_the_environments_from_the_first_command_on() -> None:
    """`make` installs into an environment that the shell which called it does not use."""
    lines = readme_lines()
    first = next(i for i, line in enumerate(lines) if line.startswith("python "))
    assert lines[first - 1].endswith(". .venv/bin/activate")
    assert lines[0] == "make demo"
    assert "demo" in lines[first].split()


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path) -> None:
    """What `make demo` does, on fewer pets and with one epoch, from another folder than the repository."""
    shards = tmp_path / "data" / "demo"
    steps = [
        [sys.executable, "-m", "shards.pack", "--synthetic", "60", "--image-size-px", "64", "--out", str(shards)],
        [sys.executable, "-m", "shards.verify", str(shards)],
        [sys.executable, "-m", "shards.show", str(shards), "--out", "sheet.png"],
        [
            sys.executable, REPOSITORY / "jobs" / "sweep.py", "--sweep", REPOSITORY / "jobs" / "sweeps" / "demo.yaml",
            "--cluster", "local", "--max-parallel", "2", "--set", "train.epochs=1", "--axis", "train.seed=0",
            "--axis", "augment.policy=none",
        ],
        [sys.executable, REPOSITORY / "jobs" / "status.py", "demo"],
        [sys.executable, REPOSITORY / "jobs" / "usage.py", "demo"],
        [sys.executable, REPOSITORY / "jobs" / "report.py", "demo"],
    ]  # fmt: skip
    output = ""
    for step in steps:
        done = subprocess.run(
            [str(word) for word in step], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        output = done.stdout
    assert "report.html" in output
    assert "resnet34_unet" in output
    assert (tmp_path / "runs" / "demo" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "sheet.png").exists()
