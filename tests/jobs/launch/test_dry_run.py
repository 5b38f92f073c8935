"""What --dry-run shows, against what sbatch gets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.launch import dry_run
from jobs.launch.dry_run import LISTED_FIRST, LISTED_WHOLE, render_scripts_text
from jobs.runs.sweep_file import load_sweep
from jobs.sweep import main
from shards.command import run_command
from slurm import cluster
from slurm.rehearsal import client
from slurm.rehearsal.cluster import Cluster, rehearse
from slurm.rehearsal.settings import Site

# stands before the real sbatch, and keeps what it was given
RECORDER = """\
#!{python}
import json, os, sys, shutil
arguments = sys.argv[1:]
if "--test-only" not in arguments:
    number = len(os.listdir({folder!r})) // 2
    shutil.copyfile(arguments[-1], os.path.join({folder!r}, f"{{number}}.sh"))
    with open(os.path.join({folder!r}, f"{{number}}.json"), "w") as file:
        json.dump(arguments, file)
os.execv({real!r}, ["sbatch", *arguments])
"""


@pytest.fixture(scope="module")
def site(slurm_daemons: None) -> Iterator[Cluster]:
    """Arrays of three jobs at most, and a partition that starts none."""
    with rehearse(Site(nodes=1, cpus=2, gpus=0, conf={"MaxArraySize": "3"})) as cluster:
        client.order(cluster.root, ["scontrol", "update", "PartitionName=gpu", "State=DOWN"])
        yield cluster


@pytest.fixture
def recorded(site: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The scripts that sbatch was given, with TOKEN and ARRAY1 in place of what only a submission has."""
    kept, first = tmp_path / "recorded", tmp_path / "bin"
    kept.mkdir()
    first.mkdir()
    for name, value in site.env.items():
        monkeypatch.setenv(name, value)
    real = shutil.which("sbatch", path=site.env["PATH"])
    (first / "sbatch").write_text(RECORDER.format(python=sys.executable, folder=str(kept), real=real))
    (first / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{first}{os.pathsep}{site.env['PATH']}")

    def scripts() -> list[str]:
        texts = []
        for number in range(len(list(kept.glob("*.sh")))):
            flag, _ = json.loads((kept / f"{number}.json").read_text())
            assert flag == "--parsable"
            text = (kept / f"{number}.sh").read_text()
            (token,) = re.findall(r"^#SBATCH --comment=petseg:(\w+)$", text, re.MULTILINE)
            texts.append(text.replace(token, "TOKEN"))
        return texts

    return scripts


@pytest.mark.slurm
@pytest.mark.parametrize("max_parallel", [0, 5, 1])
def test_the_scripts_are_those_that_sbatch_gets(
    recorded: Callable[[], list[str]],
    tiny_sweep: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    max_parallel: int,
) -> None:
    flags = [*tiny_sweep, "--axis", "train.seed=0,1,2,3", "--gpus", "0", "--cpus-per-task", "1", "--partition", "gpu"]
    flags += ["--name", "two words", "--max-parallel", str(max_parallel)]
    assert run_command(main, [*flags, "--dry-run", "--no-probe", "--all"]) == 0
    shown = capsys.readouterr().out
    assert recorded() == []
    assert run_command(main, flags) == 0
    folder = tmp_path / "runs" / "two words"
    ids = list(dict.fromkeys(s.job_id.partition("_")[0] for s in load_sweep(folder).submissions().values()))
    given = recorded()
    subprocess.run(["scancel", "--me"], check=True, timeout=30)
    assert len(given) == len(ids) == 3
    for number, script in enumerate(given, start=1):
        for place, array in enumerate(ids, start=1):
            script = re.sub(rf"(afterany:){array}\b", rf"\1ARRAY{place}", script)
        assert f"script {number}:\n{script}" in shown
    throttles = re.findall(r"^#SBATCH --array=\S+%(\d+)$", "".join(given), re.MULTILINE)
    assert [int(one) for one in throttles] == {0: [3, 3, 2], 5: [2, 2, 1], 1: [1, 1, 1]}[max_parallel]
    assert len(re.findall("--dependency=afterany", "".join(given))) == (2 if max_parallel == 1 else 0)
    assert f"python jobs/status.py '{folder}'\npython jobs/report.py '{folder}'\n" in capsys.readouterr().out


@pytest.mark.slurm
def test_what_waits_in_the_queue_is_not_to_run_again(
    recorded: Callable[[], list[str]], tiny_sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    flags = [*tiny_sweep, "--axis", "model.arch=unet", "--axis", "train.seed=0,1", "--gpus", "0"]
    asked = ["--cpus-per-task", "1", "--partition", "gpu"]
    assert run_command(main, [*flags, *asked]) == 0
    first, second = load_sweep(tmp_path / "runs" / "lab").submissions().values()
    subprocess.run(["scancel", second.job_id], check=True, timeout=30)
    capsys.readouterr()
    assert run_command(main, [*flags, *asked, "--dry-run", "--no-probe"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"{first.trial}.*queued", out)
    assert re.search(rf"{second.trial}.*to run", out)
    assert "1 trials to run" in out
    assert "#SBATCH --array" not in out
    subprocess.run(["scancel", "--me"], check=True, timeout=30)

    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho 'squeue: error: Invalid user' >&2; exit 1\n")
    (tmp_path / "bin" / "squeue").chmod(0o755)
    assert run_command(main, [*flags, *asked, "--dry-run", "--no-probe"]) == 4
    assert "unknown: 2 of 2 trials, because Slurm does not answer (Invalid user)" in capsys.readouterr().out


@pytest.mark.parametrize("shown", [[], ["--all"]])
def test_a_dry_run_beyond_the_budget_says_so(
    tiny_sweep: list[str], shown: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []

    def check(cost: object, budget: str) -> None:
        checked.append(budget)
        raise ValueError("over the budget")

    monkeypatch.setattr(dry_run, "check_budget", check)
    flags = [*tiny_sweep, "--cluster", "local", "--dry-run", "--no-probe", *shown]
    assert run_command(main, [*flags, "--budget", "1cpuh"]) == 2
    assert "over the budget" in capsys.readouterr().err
    assert run_command(main, flags) == 0
    assert checked == ["1cpuh"]


def test_a_thousand_trials_are_a_screenful(
    tiny_sweep: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "max_array_size", lambda patience_s=None: 20)
    seeds = ",".join(map(str, range(250)))
    flags = [*tiny_sweep, "--axis", f"train.seed={seeds}", "--axis", "optim.lr=0.1,0.2", "--gpus", "0", "--dry-run"]
    assert run_command(main, [*flags, "--no-probe"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 75
    assert f"and {1000 - LISTED_FIRST} more trials: --all shows everything" in out
    assert "50 scripts for sbatch, in this order; the first of them:" in out
    assert "script 2: --array=0-19%20\n" in out
    assert f"and {50 - LISTED_FIRST} more scripts: --all shows everything" in out
    assert run_command(main, [*flags, "--no-probe", "--all"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^[0-9a-f]{10}  .*to run$", out, re.MULTILINE)) == 1000
    assert out.count("#!/bin/bash") == 50
    assert "more" not in re.sub(r"#.*", "", out)


def test_all_goes_with_a_dry_run(tiny_sweep: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, [*tiny_sweep, "--all"]) == 2
    assert "--all is for --dry-run" in capsys.readouterr().err


def test_scripts_that_differ_say_in_what() -> None:
    first, same, other = (
        "#!/bin/bash\n#SBATCH --array=0-1%2\n#SBATCH --mem=1GB\ncommand\n",
        "#!/bin/bash\n#SBATCH --array=0-1%2\n#SBATCH --mem=1GB\ncommand\n",
        "#!/bin/bash\n#SBATCH --dependency=afterany:ARRAY1\n#SBATCH --mem=1GB\ncommand\n",
    )
    lines = render_scripts_text([first, same, other], False).splitlines()
    assert lines[-2:] == ["script 2: --array=0-1%2", "script 3: --dependency=afterany:ARRAY1"]
    assert render_scripts_text([first], False) == first
    assert LISTED_WHOLE > LISTED_FIRST
