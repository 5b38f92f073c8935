"""A seeded storm over a sweep on a rehearsal cluster.

Ranks, nodes and launchers are killed, jobs preempted and requeued, processes paused, the disk filled.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Sweep
from slurm.rehearsal.cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
PAUSE_S, NODE_DOWN_S, DISK_FULL_S = 2.0, 1.0, 4.0

logger = logging.getLogger(__name__)
_room = threading.Lock()  # held while the disk is full: a user who launches then is told so, and waits


@dataclass
class Storm:
    """What blows over one sweep; `happened` counts the events that hit something."""

    cluster: Cluster
    flags: Sequence[str]
    folder: Path
    seed: int
    happened: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._events: dict[str, Callable[[], bool]] = {
            "kill a rank": self.kill_a_rank,
            "pause a rank": self.pause_a_rank,
            "signal a job": self.signal_a_job,
            "requeue a job": self.requeue_a_job,
            "kill a node": self.kill_a_node,
            "kill the launcher": self.kill_the_launcher,
            "preempt": self.preempt,
        }
        if os.path.ismount(self.folder.parent):  # a disk of its own, which others do not miss
            self._events["fill the disk"] = self.fill_the_disk

    def blow(self, seconds: float, every_s: float) -> None:
        """Events one after another, each kind once before any comes again, until time is up or the sweep is done."""
        end = time.monotonic() + seconds
        order: list[str] = []
        while time.monotonic() < end and not self.is_done():
            if not order:
                order = self._random.sample(list(self._events), len(self._events))
            name = order.pop()
            if self._events[name]():
                self.happened[name] += 1
                logger.info("%s", name)
            self.launch()
            time.sleep(every_s * self._random.uniform(0.5, 1.5))

    def calm_down(self, seconds: float) -> None:
        """Launch again now and then until all trials are done; an assertion fails if time is up before."""
        end = time.monotonic() + seconds
        while not self.is_done():
            assert time.monotonic() < end, [trial.state() for trial in self.sweep().trials]
            self.launch()
            time.sleep(2)

    def launch(self) -> None:
        """`python jobs/sweep.py`, as a user types it again and again."""
        with _room:
            done = self._launcher().wait(timeout=120)
        assert done == 0, (self.folder.parent / "launcher.log").read_text()[-2000:]

    def sweep(self) -> Sweep:
        return load_sweep(self.folder)

    def is_done(self) -> bool:
        return (self.folder / "sweep.json").exists() and all(trial.result() for trial in self.sweep().trials)

    def kill_a_rank(self) -> bool:
        return self._send(signal.SIGKILL)

    def pause_a_rank(self) -> bool:
        pid = self._a_rank()
        if pid is None or not _signal(pid, signal.SIGSTOP):
            return False
        time.sleep(PAUSE_S)
        return _signal(pid, signal.SIGCONT)

    def signal_a_job(self) -> bool:
        job = self._a_job()
        return job is not None and self._slurm("scancel", f"--signal={self._random.choice(['USR2', 'TERM'])}", job)

    def requeue_a_job(self) -> bool:
        job = self._a_job()
        return job is not None and self._slurm("scontrol", "requeue", job)

    def kill_a_node(self) -> bool:
        node = self._random.choice(self.cluster.nodes)
        self.cluster.break_node(node)
        time.sleep(NODE_DOWN_S)
        self.cluster.heal_node(node)
        return True

    def preempt(self) -> bool:
        """Somebody else's job on the partition that goes first, on all nodes."""
        nodes = len(self.cluster.nodes)
        command = [
            "--partition=gpu",
            f"--nodes={nodes}",
            "--exclusive",
            "--time=1",
            "--wrap=sleep 1",
            "--output=/dev/null",
        ]
        return self._slurm("sbatch", *command)

    def kill_the_launcher(self) -> bool:
        launcher = self._launcher()
        time.sleep(self._random.uniform(0.0, 1.5))
        launcher.kill()
        return launcher.wait(timeout=60) == -signal.SIGKILL

    def fill_the_disk(self) -> bool:
        """What has to be written meanwhile fails; the trials are submitted again when there is room."""
        path = self.folder.parent / "somebody_elses"
        with _room, path.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):  # until there is no space left
                while file.write(bytes(2**16)):
                    pass
            time.sleep(DISK_FULL_S)
            path.unlink()
        return True

    def _launcher(self) -> subprocess.Popen[bytes]:
        with (self.folder.parent / "launcher.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "jobs/sweep.py", *self.flags],
                cwd=REPOSITORY, env=self.cluster.env | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log,
            )  # fmt: skip

    def _slurm(self, *command: str) -> bool:
        done = subprocess.run(command, env=self.cluster.env, capture_output=True, timeout=60, check=False)
        return done.returncode == 0

    def _a_job(self) -> str | None:
        done = subprocess.run(
            ["squeue", "--me", "--noheader", "--array", "--states=RUNNING", "--format=%i|%j"],
            env=self.cluster.env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        jobs = [line.partition("|")[0] for line in done.stdout.splitlines() if "|petseg-" in line]
        return self._random.choice(jobs) if jobs else None

    def _a_rank(self) -> int | None:
        kinds, folder = (b"submitit.core._submit", b"jobs.node.worker"), os.fsencode(self.folder)
        ranks = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            ours = folder in command and any(kind in command for kind in kinds)
            if ours and command.startswith(os.fsencode(sys.executable)):
                ranks.append(int(process.name))
        return self._random.choice(sorted(ranks)) if ranks else None

    def _send(self, number: signal.Signals) -> bool:
        pid = self._a_rank()
        return pid is not None and _signal(pid, number)


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
