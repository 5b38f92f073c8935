"""The commands of README and docs/: each is understood, and the whole way from drawing to report is walked once."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tyro

from jobs import best as jobs_best
from jobs import cancel, chain, clean, doctor, logs, report, retry, status, sync, usage
from jobs.launch import options, prediction_options
from jobs.launch.chain import read_chain
from petseg import best, compress, demo, estimate, evaluate, export, predict, train
from petseg.augment import __main__ as augment_sheet
from petseg.models import weights
from shards import duplicates, pack, show, verify
from slurm.rehearsal import __main__ as rehearsal
from tests.test_architecture import is_listed

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
REHEARSAL = rehearsal.Start | rehearsal.Stop | rehearsal.Env | rehearsal.Break | rehearsal.Heal | rehearsal.Disturb
COMMANDS = {
    "shards.duplicates": duplicates.DuplicatesConfig,
    "petseg.estimate": estimate.Command,
    "petseg.best": best.Command,
    "petseg.predict": predict.Command,
    "petseg/predict.py": predict.Command,
    "petseg.demo": demo.Command,
    "petseg.export": export.Command,
    "petseg.compress": compress.Int8 | compress.Prune | compress.Measure,
    "petseg.augment": augment_sheet.Command,
    "petseg.models.weights": weights.Command,
    "jobs/sync.py": sync.Command,
    "slurm.rehearsal": REHEARSAL,
    "shards.pack": pack.PackConfig,
    "shards.verify": verify.VerifyConfig,
    "shards.show": show.ShowConfig,
    "petseg/train.py": train.Command,
    "slurm/train.sbatch": train.Command,
    "petseg.evaluate": evaluate.Command,
    "jobs/sweep.py": options.Options,
    "jobs/status.py": status.Command,
    "jobs/report.py": report.Command,
    "jobs/best.py": jobs_best.Command,
    "jobs/doctor.py": doctor.Command,
    "jobs/logs.py": logs.Command,
    "jobs/retry.py": retry.Command,
    "jobs/cancel.py": cancel.Command,
    "jobs/clean.py": clean.Command,
    "jobs/usage.py": usage.Command,
    "jobs/chain.py": chain.ChainOptions,
    "jobs/predict.py": prediction_options.PredictionOptions,
}


FOLDERS = ("benchmarks", "docs", "jobs", "petseg", "shards", "slurm", "tests")
PLACEHOLDERS = {"NAME": "name", "FLAGS": "--dry-run", "TRIAL": "0123"}


def lines_of(page: Path) -> list[str]:
    """The lines of a page's shell blocks, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def own_commands() -> list[tuple[str, str, list[str]]]:
    """(page, our command, its arguments) of each line that has one."""
    found = []
    for page in (page for page in PAGES if page.name != "extending.md"):  # which test_extending runs, with new values
        for line in lines_of(page):
            words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line.partition(";")[0])]
            for place, word in enumerate(words):
                if word in COMMANDS and "slurm.rehearsal" not in words[:place]:
                    found.append((page.name, word, words[place + 1 :]))
    return found


def test_the_pages_show_every_command() -> None:
    assert {name for _, name, _ in own_commands()} == set(COMMANDS)


@pytest.mark.parametrize(("page", "name", "arguments"), own_commands(), ids=lambda value: str(value))
def test_each_command_line_is_understood(page: str, name: str, arguments: list[str]) -> None:
    if name == "jobs/chain.py":  # two commands in one line, taken apart by its own reader
        words, pack_flags = options.split_words(arguments)
        read = read_chain(chain.parse_options(words), words, pack_flags)
        if read.pack_flags:
            tyro.cli(pack.PackConfig, args=read.pack_flags)
    elif name == "slurm.rehearsal" and arguments[0] == "run":
        assert arguments[1] == "--"
    elif name == "slurm.rehearsal":
        tyro.cli(REHEARSAL, args=arguments)
    else:
        positional = (tyro.conf.PositionalRequiredArgs,) if name.startswith("shards.") else ()
        tyro.cli(COMMANDS[name], args=arguments, config=positional)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in filter(None, links):
        assert (page.parent / link).exists(), link
    for module in re.findall(r"`python -m ([a-z_.]+)", text):
        assert find_spec(module), module
    for script in re.findall(r"`python ([a-z_/]+\.py)", text):
        assert (REPOSITORY / script).is_file(), script
    if page.name != "extending.md":  # which creates files
        for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)", text):
            assert (REPOSITORY / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    for file, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page.read_text()):
        if "://" not in file:
            target = page.parent / file if file else page
            headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, anchor


def test_the_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("reference", REPOSITORY / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = reference  # dataclasses look their module up there
    spec.loader.exec_module(reference)
    assert reference.PAGE.read_text() == reference.render(), "run `python docs/reference.py`"


def test_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 120


def test_make_knows_what_the_readme_asks_of_it() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for line in (line for page in PAGES for line in lines_of(page)):
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, flags=re.MULTILINE)


def test_python_is_the_environments_from_the_first_command_on() -> None:
    """`make` installs into an environment that the shell which called it does not use."""
    lines = lines_of(REPOSITORY / "README.md")
    first = next(i for i, line in enumerate(lines) if line.startswith("python "))
    assert lines[first - 1].endswith(". .venv/bin/activate")
    assert lines[0] == "make demo"
    assert "demo" in lines[first].split()


def test_pictures_are_not_taken_for_weights() -> None:
    """--weights takes all the words that follow it: the pictures come first."""
    lines = [rest for _, command, rest in own_commands() if command in ("petseg.predict", "petseg/predict.py")]
    lines += [shlex.split(line)[3:] for line in demo_hints() if "petseg.predict" in line]
    assert len(lines) >= 4
    for words in lines:
        command = tyro.cli(predict.Command, args=words)
        assert command.paths, words
        assert {path.suffix for path in command.weights} == {".safetensors"}, words


def demo_hints() -> list[str]:
    """The commands that `make demo` prints at its end."""
    makefile = (REPOSITORY / "Makefile").read_text()
    return re.findall(r"^\t@echo '  (python .*)'$", makefile, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.long
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
    hints = [shlex.split(line.replace("jobs/", f"{REPOSITORY}/jobs/"))[1:] for line in demo_hints()]
    steps[-1:-1] = [[sys.executable, *hint] for hint in hints]  # the report stays last
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
    assert len([*(tmp_path / "runs" / "demo-masks" / "overlays").iterdir()]) == 60
    sweep = tmp_path / "runs" / "demo"
    assert [path for path in sweep.rglob("*") if path.is_file() and not is_listed(path.relative_to(sweep))] == []
