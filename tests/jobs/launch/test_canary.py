"""A key in the environment of whoever launches a sweep reaches no file, no job, no message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Sweep
from jobs.state.trial_status import trial_statuses
from shards.command import FAILED
from slurm.rehearsal.cluster import Cluster
from tests.jobs.faulty_checkout import REPOSITORY, wait_until

ON_SLURM = ["--partition", "gpu", "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "2", "--timeout-min", "10"]


@pytest.fixture
def canary() -> str:
    """As long as a key of wandb, since its client refuses a shorter one; in no process of another test."""
    return f"canary{uuid.uuid4().hex}01"


@pytest.fixture
def said() -> list[str]:
    """All that commands wrote."""
    return []


@pytest.fixture
def command(said: list[str], canary: str) -> Callable[..., None]:
    """Runs `python jobs/NAME.py WORDS` with the key in its environment, and keeps what it writes."""

    def run(name: str, *words: str, code: int = 0) -> None:
        env = {**os.environ, "WANDB_API_KEY": canary, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, f"jobs/{name}.py", *words], cwd=REPOSITORY, env=env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == code, (name, done.stdout, done.stderr)
        said.extend((done.stdout, done.stderr))

    return run


def slurm(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout


def files_with_it(canary: str, folders: Iterable[Path]) -> list[str]:
    """Files that contain the key, or bear it in their name."""
    found = []
    for path in (path for folder in folders for path in folder.rglob("*")):
        try:
            if canary in path.name or (path.is_file() and canary.encode() in path.read_bytes()):
                found.append(str(path))
        except FileNotFoundError:  # Slurm's daemons are at work
            continue
    return found


def processes_with_it(canary: str) -> list[str]:
    """Processes that have the key in their environment or their arguments."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if canary.encode() in (process / "environ").read_bytes() + (process / "cmdline").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def statuses(sweep: Sweep) -> list[str]:
    return [row.status for row in trial_statuses(sweep)]


@pytest.mark.slurm
@pytest.mark.slow
def test_a_key_in_the_launchers_environment_reaches_nothing(
    tiny_sweep: list[str], tmp_path: Path, on_cluster: Cluster, command: Callable, said: list[str], canary: str
) -> None:
    """One trial ends well, one fails and is retried; all commands are used on them."""
    runs = tmp_path / "runs"
    flags = [*tiny_sweep, "--axis", "model.arch=unet", "--axis", "optim.lr=1e-3,1e30"]
    flags += ["--set", "tracking.wandb=offline"]
    doctor = ["--skip", "shards,splits,transforms", "--quick"]
    command("doctor", *doctor, *tiny_sweep, *ON_SLURM)
    command("sweep", *flags, *ON_SLURM, "--dry-run", "--no-probe")
    command("sweep", *flags, *ON_SLURM)
    sweep = load_sweep(runs / "lab")
    seen: list[str] = []

    def over() -> bool:
        seen.extend(processes_with_it(canary))  # of the jobs: the launcher has ended
        return statuses(sweep) == ["done", "failed"]

    wait_until(over)
    command("status", str(sweep.folder), code=FAILED)
    command("status", str(sweep.folder), "--json", code=FAILED)
    command("logs", str(sweep.folder), sweep.trials[1].id)
    command("retry", str(sweep.folder), "--failed", "--even-so")
    command("cancel", str(sweep.folder), "--yes")
    command("usage", str(sweep.folder), "--json")
    command("report", str(sweep.folder))
    command("clean", str(sweep.folder), "--dry-run")

    assert "offline" in (sweep.trials[0].folder / "config.json").read_text()
    assert list((sweep.trials[0].folder / "wandb").glob("offline-run-*/*.wandb"))
    assert_clean(canary, [tmp_path, on_cluster.root], said)
    assert seen == []
    jobs = {job for line in (sweep.folder / "submissions.jsonl").read_text().splitlines() for job in job_ids(line)}
    assert len(jobs) == 3
    for job in sorted(jobs):
        shown = slurm("scontrol", "show", "job", "-o", job)
        script = slurm("scontrol", "write", "batch_script", job.partition("_")[0], "-")
        assert "Comment=petseg:" in shown
        assert "submitit.core._submit" in script
        assert canary not in shown + script


def job_ids(line: str) -> Iterable[str]:
    job = json.loads(line)["job_id"]
    return [job] if job else []


def assert_clean(canary: str, folders: list[Path], said: list[str]) -> None:
    assert files_with_it(canary, folders) == []
    assert not [text for text in said if canary in text]
    assert sum(len(text) for text in said) > 1000


@pytest.mark.slow
def test_on_this_machine_it_reaches_the_jobs_and_no_file(
    tiny_sweep: list[str], tmp_path: Path, command: Callable, said: list[str], canary: str
) -> None:
    """Jobs here are children of the launcher and may use its key; wandb's own files do not hold it either."""
    flags = [*tiny_sweep, "--cluster", "local", "--axis", "model.arch=unet", "--set", "tracking.wandb=offline"]
    command("sweep", *flags)
    command("status", str(tmp_path / "runs" / "lab"))
    command("logs", str(tmp_path / "runs" / "lab"), "unet")
    command("report", str(tmp_path / "runs" / "lab"))
    assert list(tmp_path.glob("runs/lab/trials/*/wandb/offline-run-*/*.wandb"))
    assert_clean(canary, [tmp_path], said)
