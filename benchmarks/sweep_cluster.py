"""A rehearsal cluster with a small shard set, and what is timed on it beyond single commands."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from petseg.run_folder.attempts import read_attempts
from petseg.run_folder.heartbeat import read_heartbeat
from shards.pack import pack
from shards.packing.options import PackConfig
from slurm.rehearsal.cluster import Cluster, rehearse
from slurm.rehearsal.settings import Site

REPOSITORY = Path(__file__).parents[1]
NUM_SHORT_TRIALS = 24
COMMAND_TIMEOUT_S = 300.0
TRIALS_TIMEOUT_S = 1_800.0
POLL_S = 0.02

SPEC: dict[str, Any] = {
    "name": "bench",
    "method": "grid",
    "metric": {"name": "val/dice", "goal": "maximize"},
    "parameters": {
        "model.arch": {"values": ["unet"]},
        "train.seed": {"values": [0]},
        "data.image_size_px": {"value": 64},
        "model.width": {"value": 4},
        "train.epochs": {"value": 2},
        "train.batch_size": {"value": 16},
        "tracking.overlays": {"value": 2},
    },
}
RESOURCES = ["--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "1", "--timeout-min", "60"]


@dataclass(frozen=True)
class Lab:
    """Where commands run: a cluster, a sweep file, a folder for sweeps, and a count of calls to sbatch."""

    folder: Path
    cluster: Cluster
    env: dict[str, str]

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def run(self, command: Sequence[str], allowed: Sequence[int] = (0,)) -> float:
        """Seconds of a Python command of the repository; raises ValueError with its last lines if it fails."""
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        seconds = time.perf_counter() - start
        if done.returncode not in allowed:
            raise ValueError(f"{' '.join(command)[:200]} ended with {done.returncode}: {done.stderr[-1000:]}")
        return seconds

    def sweep(self, name: str, *flags: str) -> float:
        where = ["--sweep", str(self.folder / "sweep.yaml"), "--name", name, "--runs-dir", str(self.runs)]
        return self.run(["jobs/sweep.py", *where, *RESOURCES, *flags])

    def sbatch_calls(self) -> int:
        calls = self.folder / "sbatch_calls"
        return len(calls.read_text().splitlines()) if calls.exists() else 0

    def slurm(self, *command: str) -> str:
        done = subprocess.run(list(command), env=self.env, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def partition(self, state: str) -> None:
        """DOWN: jobs are taken, and wait."""
        self.slurm("scontrol", "update", "PartitionName=gpu", f"State={state}")

    def cancel_all(self) -> None:
        self.slurm("scancel", "--me")
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while self.slurm("squeue", "--me", "--noheader"):
            _require_time(deadline, "scancel")
            time.sleep(POLL_S)


@contextlib.contextmanager
def open_lab(scratch: Path) -> Iterator[Lab]:
    """Raises ValueError if Slurm is not installed."""
    with tempfile.TemporaryDirectory(dir=scratch) as name, rehearse(Site(nodes=1, cpus=4, gpus=0)) as cluster:
        folder = Path(name)
        pack(PackConfig(out=folder / "shards", synthetic=60, image_size_px=64, samples_per_shard=16, workers=1))
        spec = SPEC | {"parameters": {**SPEC["parameters"], "data.shards": {"value": str(folder / "shards")}}}
        (folder / "sweep.yaml").write_text(json.dumps(spec))  # JSON is YAML
        path = f"{counting_sbatch(folder)}:{cluster.env['PATH']}"
        extra = {"PATH": path, "OMP_NUM_THREADS": "1", "PETSEG_CACHE": str(folder / "cache")}
        lab = Lab(folder, cluster, cluster.env | extra)
        try:
            yield lab
        finally:
            lab.cancel_all()


def counting_sbatch(folder: Path) -> Path:
    """A folder for PATH whose sbatch notes each call, and goes on as the real one."""
    real = shutil.which("sbatch")
    if real is None:
        raise ValueError("no sbatch on PATH")
    (folder / "bin").mkdir()
    script = folder / "bin" / "sbatch"
    script.write_text(f'#!/bin/sh\necho call >> "{folder}/sbatch_calls"\nexec "{real}" "$@"\n')
    script.chmod(0o755)
    return script.parent


@dataclass(frozen=True)
class Packing:
    """How short trials are put into jobs, on two cores in any case."""

    per_job: int
    at_once: int = 1
    cores: int = 1  # of a job

    @property
    def places(self) -> int:
        """Jobs at a time."""
        return 2 // self.cores

    @property
    def text(self) -> str:
        jobs = "1 job of 2 cores" if self.cores == 2 else "2 jobs of a core"
        together = f", {self.at_once} of them at once" if self.at_once > 1 else ""
        return f"{jobs} at a time, {self.per_job} trial{'s' * (self.per_job > 1)} a job{together}"


def time_short_trials(lab: Lab, name: str, epochs: int, packing: Packing) -> float:
    """Seconds from the launch to the last result. Raises ValueError if a trial fails."""
    seeds = ",".join(str(seed) for seed in range(NUM_SHORT_TRIALS))
    start = time.perf_counter()
    flags = ["--axis", f"train.seed={seeds}", "--set", f"train.epochs={epochs}"]
    flags += ["--max-parallel", str(packing.places), "--cpus-per-task", str(packing.cores)]
    lab.sweep(name, *flags, "--trials-per-job", str(packing.per_job), "--trials-at-once", str(packing.at_once))
    deadline = time.monotonic() + TRIALS_TIMEOUT_S
    while len(list((lab.runs / name / "trials").glob("*/result.json"))) < NUM_SHORT_TRIALS:
        if any(read(path).get("status") == "failed" for path in (lab.runs / name / "trials").glob("*/state.json")):
            raise ValueError(f"a trial failed: python jobs/status.py {lab.runs / name}")
        _require_time(deadline, f"{NUM_SHORT_TRIALS} trials")
        time.sleep(5 * POLL_S)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Requeue:
    """The parts of one requeue, in seconds."""

    save_s: float  # from USR2 until its state says that it is saved
    end_s: float  # until Slurm has ended the old processes
    slurm_s: float  # until Slurm starts the job again
    start_s: float  # until Python runs the trial: srun, submitit, the task
    first_step_s: float  # until the first new step is done: torch, model, checkpoint, data

    @property
    def total_s(self) -> float:
        return self.save_s + self.end_s + self.slurm_s + self.start_s + self.first_step_s


def time_requeues(lab: Lab, count: int) -> list[Requeue]:
    """One long trial, told to save and requeue again and again."""
    lab.sweep("long", "--set", "train.epochs=100000", "--set", "train.batch_size=4", "--set", "train.log_every=1")
    (trial,) = (lab.runs / "long" / "trials").iterdir()
    (job_id,) = lab.slurm("squeue", "--me", "--noheader", "--format=%A").split()
    await_step(trial, attempt=1)
    rounds = []
    for attempt in range(2, count + 2):
        asked = time.time()
        lab.slurm("scancel", "--signal=USR2", job_id)
        saved = await_state(trial, "interrupted")
        running = await_state(trial, "running")
        stepped = await_step(trial, attempt)
        log = (lab.cluster.root / "log" / "slurmctld.log").read_text()
        ended, started = (last_time(log, f"{what} JobId={job_id}") for what in ("Requeuing", "(?:Allocate|Started)"))
        rounds.append(Requeue(saved - asked, ended - saved, started - ended, running - started, stepped - running))
    lab.cancel_all()
    return rounds


def await_state(trial: Path, status: str) -> float:
    """When the trial wrote that state."""
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    while (state := read(trial / "state.json")).get("status") != status:
        _require_time(deadline, f"state {status}")
        time.sleep(POLL_S)
    return float(state["time"])


def await_step(trial: Path, attempt: int) -> float:
    """When the first step of that attempt of the trial was done: its first heartbeat."""
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    while True:
        attempts, beat = read_attempts(trial), read_heartbeat(trial)
        if len(attempts) >= attempt and beat and beat.time > attempts[-1].time:
            return beat.time
        _require_time(deadline, f"start {attempt}")
        time.sleep(POLL_S)


def last_time(log: str, pattern: str) -> float:
    """When slurmctld last noted this, in seconds since 1970; its log has milliseconds, squeue whole seconds."""
    found = re.findall(rf"^\[([^\]]+)\].*{pattern}\b", log, re.MULTILINE)
    if not found:
        raise ValueError(f"slurmctld's log has no line with {pattern}: its wording has changed")
    return datetime.fromisoformat(found[-1]).timestamp()


def read(path: Path) -> Any:
    """A JSON file, {} while there is none."""
    with contextlib.suppress(FileNotFoundError):
        return json.loads(path.read_text())
    return {}


def _require_time(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise ValueError(f"{what} did not come in time")
