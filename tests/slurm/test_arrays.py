"""What sbatch gets for many items, and what is told where it takes only some of them."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slurm import arrays
from slurm.arrays import _explain, _raise_throttle, render_scripts, submit_arrays
from slurm.chunks import plan_chunks
from slurm.request import Request
from slurm.resources import Resources
from slurm.room import Room

SMALL = Resources(partition="gpu", gpus_per_node=0, cpus_per_task=1, mem_gb=1, timeout_min=5)


def options(script: str, *names: str) -> list[str]:
    """The values of these options of sbatch, in the script's order."""
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]
    return [line.partition("=")[2] for line in lines if line.partition("=")[0] in names]


@pytest.fixture
def small_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that allows three tasks an array."""
    monkeypatch.setattr(arrays.cluster, "max_array_size", lambda patience_s=None: 3)


@pytest.mark.usefixtures("small_arrays")
def test_scripts_of_arrays_share_the_limit_and_wait_for_those_of_their_lane(tmp_path: Path) -> None:
    scripts = render_scripts(10, Request(tmp_path, SMALL, "pets", 2))
    assert [options(script, "array") for script in scripts] == [["0-2%1"], ["0-2%1"], ["0-1%1"], ["0-1%1"]]
    after = [options(script, "dependency") for script in scripts]
    assert after == [[], [], ["afterany:ARRAY1"], ["afterany:ARRAY2"]]


@pytest.mark.usefixtures("small_arrays")
def test_scripts_without_a_limit_wait_for_nothing(tmp_path: Path) -> None:
    scripts = render_scripts(7, Request(tmp_path, SMALL, "pets", 7))
    assert [options(script, "array", "dependency") for script in scripts] == [["0-2%3"], ["0-2%3"], []]


class Slurm:
    """Takes arrays, or as many jobs of each as there is room for."""

    def __init__(self, rooms: Sequence[int] = ()) -> None:
        self.rooms, self.arrays, self.called = list(rooms), list[Request](), list[list[str]]()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(arrays, "_submit_what_fits", self.submit)
        monkeypatch.setattr(arrays.shutil, "which", lambda name: name)
        monkeypatch.setattr(arrays.patience, "call", lambda command, patience_s: self.called.append(command))

    def submit(self, function: Any, items: Sequence[Any], indices: range, array: Request) -> tuple[Room, list[Any]]:
        self.arrays.append(array)
        fitting = min(len(indices), self.rooms.pop(0) if self.rooms else len(indices))
        jobs = [SimpleNamespace(job_id=f"{len(self.arrays)}_{number}") for number in range(fitting)]
        return Room(fitting, "" if fitting == len(indices) else "MaxJobCount"), jobs


@pytest.mark.usefixtures("small_arrays")
def test_arrays_are_submitted_as_their_scripts_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm, told = Slurm(), []
    slurm.install(monkeypatch)
    request = Request(tmp_path, SMALL, "pets", 2)
    jobs = submit_arrays(abs, range(10), request, lambda index, job, state: told.append((index, job.job_id, state)))
    assert [array.max_parallel for array in slurm.arrays] == [1, 1, 1, 1]
    assert [array.resources.dependency for array in slurm.arrays] == [None, None, "afterany:1", "afterany:2"]
    assert told == [(index, job.job_id, "submitted") for index, job in enumerate(jobs)]
    assert len(jobs) == 10
    assert slurm.called == []


@pytest.mark.usefixtures("small_arrays")
@pytest.mark.parametrize(
    ("rooms", "taken", "throttle"),
    [
        ([2], 2, ["JobId=1", "ArrayTaskThrottle=2"]),  # alone, and with the whole limit
        ([3, 0], 3, ["JobId=1", "ArrayTaskThrottle=2"]),
        ([3, 3, 1], 7, None),  # both lanes are there
        ([0], 0, None),
    ],
)
def test_what_slurm_takes_runs_by_the_whole_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rooms: list[int], taken: int, throttle: list[str] | None
) -> None:
    slurm = Slurm(rooms)
    slurm.install(monkeypatch)
    jobs = submit_arrays(abs, range(10), Request(tmp_path, SMALL, "pets", 2), lambda index, job, state: None)
    assert len(jobs) == taken
    assert slurm.called == ([["scontrol", "update", *throttle]] if throttle else [])


def test_a_limit_that_cannot_be_raised_is_told_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(command: list[str], patience_s: float) -> str:
        raise subprocess.CalledProcessError(1, command, "", "scontrol: error: Access denied\n")

    monkeypatch.setattr(arrays.patience, "call", refuse)
    job: Any = SimpleNamespace(job_id="12_0")
    with caplog.at_level(logging.WARNING):
        _raise_throttle([job], plan_chunks(10, 3, 2)[:1], 2)
    assert caplog.messages == ["fewer jobs than --max-parallel may run at a time: scontrol: Access denied"]


def test_a_refusal_says_what_was_submitted_before() -> None:
    refusal = "sbatch: error: Batch job submission failed: Job violates limits"
    assert "were submitted before" not in _explain(refusal, 0, 10, SMALL)
    assert _explain(refusal, 6, 10, SMALL).endswith("; 6 of 10 jobs were submitted before, and run")
