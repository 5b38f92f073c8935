"""How a sweep is launched: its share of this machine, and the copy of the code that its jobs run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from jobs.runs import launch as launch_module
from jobs.runs import snapshot
from jobs.runs.launch import Launch
from jobs.runs.snapshot import take_snapshot
from petseg.run_folder.checkout import Checkout
from slurm.resources import Resources


@pytest.mark.parametrize(
    ("cores", "gpus", "asked", "settled"),
    [
        # (cores, visible GPUs, (max_parallel, GPUs per job), (max_parallel, GPUs per job, threads of a process))
        (8, 0, (0, 1), (1, 0, 8)),
        (8, 0, (2, 1), (2, 0, 4)),
        (2, 0, (4, 0), (4, 0, 1)),
        (16, 4, (0, 1), (4, 1, 4)),
        (16, 4, (0, 2), (2, 2, 4)),  # two jobs of two processes each
        (16, 4, (3, 2), (3, 2, 2)),
    ],
)
def test_the_trials_share_this_machine(
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    gpus: int,
    asked: tuple[int, int],
    settled: tuple[int, int, int],
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(launch_module, "visible_gpus", lambda: list(range(gpus)))
    launch = Launch("local", Resources(gpus_per_node=asked[1]), max_parallel=asked[0], trials_per_job=1)
    resources, max_parallel = launch.settle(num_jobs=18)
    assert (max_parallel, resources.gpus_per_node, resources.cpus_per_task) == settled


def test_slurm_gets_what_was_asked_for() -> None:
    resources = Resources(gpus_per_node=2, cpus_per_task=6)
    assert Launch("slurm", resources, max_parallel=0, trials_per_job=1).settle(18) == (resources, 18)
    assert Launch("slurm", resources, max_parallel=4, trials_per_job=1).settle(18) == (resources, 4)


@pytest.mark.parametrize(
    ("max_parallel", "live", "dependency"),
    [
        (0, ["7_0", "7_1"], None),  # no limit
        (5, [], None),
        (5, ["7_0", "7_1"], None),  # 3 new jobs have room beside them
        (4, ["7_0", "7_1"], "afterany:7"),
        (4, ["7_0", "9", "7_1"], "afterany:7:9"),
    ],
)
def test_jobs_beyond_the_limit_wait_for_those_of_earlier_submissions(
    max_parallel: int, live: list[str], dependency: str | None
) -> None:
    launch = Launch("slurm", Resources(), max_parallel, trials_per_job=1)
    resources, limit = launch.settle(3, live)
    assert (resources.dependency, limit) == (dependency, max_parallel or 3)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of a package whose copies are taken."""
    path = tmp_path / "petseg" / "train.py"
    path.parent.mkdir()
    path.write_text("RATE = 0.1\n")
    monkeypatch.setattr(snapshot, "_files", lambda: iter([(Path("petseg/train.py"), path)]))
    return path


def test_a_copy_is_taken_once(package: Path, tmp_path: Path) -> None:
    first = take_snapshot(tmp_path / "code")
    assert take_snapshot(tmp_path / "code") == first
    assert [path.name for path in (tmp_path / "code").iterdir()] == [first.code]


def test_jobs_are_told_the_commit_as_at_their_submission(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another commit can have the same code; a copy that is there already says which it was first taken from."""
    told = []
    for checkout in (Checkout("1111"), Checkout("2222", changed=True, remote="https://host/petseg")):
        monkeypatch.setattr(snapshot, "running_code", lambda checkout=checkout: checkout)
        taken = take_snapshot(tmp_path / "code")
        told.append([taken.variables()[f"PETSEG_{name}"] for name in ("CODE", "COMMIT", "CHANGED", "REMOTE")])
    assert told == [[taken.code, "1111", "", ""], [taken.code, "2222", "1", "https://host/petseg"]]
    assert json.loads((taken.folder / "snapshot.json").read_text())["commit"] == "1111"


def test_an_edit_of_the_same_size_is_another_copy(package: Path, tmp_path: Path) -> None:
    first = take_snapshot(tmp_path / "code")
    package.write_text("RATE = 0.2\n")
    second = take_snapshot(tmp_path / "code")
    assert second.code != first.code
    assert (second.folder / "petseg" / "train.py").read_text() == "RATE = 0.2\n"
    assert (first.folder / "petseg" / "train.py").read_text() == "RATE = 0.1\n"


def test_a_file_that_was_renamed_is_another_copy(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = take_snapshot(tmp_path / "code")
    monkeypatch.setattr(snapshot, "_files", lambda: iter([(Path("petseg/trains.py"), package)]))
    assert take_snapshot(tmp_path / "code").code != first.code
