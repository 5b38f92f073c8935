"""How a sweep is launched: its share of this machine, and the copy of the code that its jobs run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.launch import submit as submit_module
from jobs.launch.submit import JobLog
from jobs.runs import launch as launch_module
from jobs.runs import snapshot
from jobs.runs.launch import Launch
from jobs.runs.snapshot import take_snapshot
from jobs.runs.trial import Submission, Trial
from jobs.runs.trial_state import TrialState
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.checkout import Checkout
from shards.cause import Cause
from shards.command import FAILED, OK
from slurm.resources import Resources
from tests.jobs.written_trials import finish, sweep_of


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


class Sweep:
    """Keeps what is noted of it."""

    def __init__(self) -> None:
        self.noted: list[list[str]] = []

    def add_submissions(self, submissions: Sequence[Submission]) -> None:
        self.noted.append([f"{one.trial} {one.job_id}" for one in submissions])


class Progress:
    def started(self, trials: Sequence[Trial], job_id: str, position: str) -> None: ...
    def ended(self, trials: Sequence[Trial]) -> None: ...


def job_log(cluster: Any, groups: int) -> tuple[JobLog, Sweep]:
    """The log of jobs of two trials each."""
    names = [[f"{letter}{number}" for letter in "ab"] for number in range(groups)]
    sweep: Any = Sweep()
    progress: Any = Progress()
    trials = [[Trial(name, {}, Path(name)) for name in group] for group in names]
    return JobLog(Launch(cluster, Resources(), 1, 2), sweep, trials, progress), sweep


def job(number: int) -> Any:
    return SimpleNamespace(job_id=str(number), paths=SimpleNamespace(stdout="x.out"))


def test_all_trials_of_the_jobs_that_run_are_stopped() -> None:
    log, sweep = job_log("local", 3)
    for index in range(3):
        log.on_job(index, job(index), "started")
    log.on_job(1, job(1), "ended")
    assert [(trial.id, job_id) for trial, job_id in log.stopped()] == [
        ("a0", "0"), ("b0", "0"), ("a2", "2"), ("b2", "2"),
    ]  # fmt: skip
    assert sweep.noted == [["a0 0", "b0 0"], ["a1 1", "b1 1"], ["a2 2", "b2 2"]]  # each as soon as it has started


def test_jobs_of_slurm_are_noted_together_and_the_last_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_module, "NOTED_TOGETHER", 4)
    log, sweep = job_log("slurm", 5)
    for index in range(5):
        log.on_job(index, job(index), "submitted")
    assert sweep.noted == [["a0 0", "b0 0", "a1 1", "b1 1"], ["a2 2", "b2 2", "a3 3", "b3 3"], ["a4 4", "b4 4"]]
    assert log.stopped() == []  # which go on without the launcher
    log.note()
    assert len(sweep.noted) == 3


def test_each_trial_is_told_with_its_job_and_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """On this machine by what shows the progress."""
    caplog.set_level("INFO")
    log, _ = job_log("slurm", 2)
    log.on_job(1, job(7), "submitted")
    assert caplog.messages == [f"{name} : submitted as job 7 (2 of 2)" for name in ("a1", "b1")]
    told: list[Any] = []
    here, _ = job_log("local", 2)
    here.progress = SimpleNamespace(  # type: ignore[assignment]
        started=lambda trials, *about: told.append(([one.id for one in trials], *about)),
        ended=lambda trials: told.append([one.id for one in trials]),
    )
    here.on_job(0, job(8), "started")
    here.on_job(0, job(8), "ended")
    assert told == [(["a0", "b0"], "8", "1 of 2"), ["a0", "b0"]]
    assert here.stopped() == []


@pytest.mark.parametrize("cluster", ["slurm", "local"])
def test_what_wandb_has_is_told_by_who_waits_for_the_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cluster: Any
) -> None:
    sweep = sweep_of(tmp_path / "lab", 1)
    asked: list[Any] = []

    def status(folder: Path, rows: Any) -> Any:
        asked.append((folder, [row.trial.id for row in rows]))
        return SimpleNamespace(lines=lambda: ["wandb: [x]", "more"])

    monkeypatch.setattr(submit_module, "wandb_status", status)
    submit_module.report_wandb(Launch(cluster, Resources(), 0, 1), sweep)
    waits = cluster != "slurm"
    assert capsys.readouterr().out == "wandb: [x]\nmore\n" * waits
    assert asked == [(sweep.folder, [sweep.trials[0].id])] * waits


def test_trials_of_this_machine_that_failed_name_their_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trial = sweep_of(tmp_path / "lab", 1).trials[0]
    rows = [
        TrialStatus(trial, "failed", note="KeyError", log="a.out"), TrialStatus(trial, "planned"),
    ]  # fmt: skip
    assert submit_module._report_failures(rows) == FAILED
    name = f"{trial.id} unet seed=0"
    assert caplog.messages == [f"{name}: failed: KeyError; its log: a.out", f"{name}: planned"]
    assert submit_module._report_failures([]) == OK


def test_the_state_of_a_stopped_trial_says_that_the_launcher_was_stopped(tmp_path: Path) -> None:
    """What it says of its own end stays, and a finished trial is left alone."""
    trials = sweep_of(tmp_path / "lab", 5).trials
    running, failed, done, waits, saved = trials
    finish(done)
    running.write_state(TrialState("running", job_id="1"))
    failed.write_state(TrialState("failed", job_id="1", error="a NaN", cause=Cause.NAN))
    saved.write_state(TrialState("interrupted", job_id="1", error="saved at step 7"))
    told = submit_module._report_stop(trials, [(trial, "1") for trial in trials])
    assert told.startswith("1 of 5 trials are done; ")
    states = [trial.state() for trial in (running, failed, done, waits, saved)]
    stopped, never = ("interrupted", "stopped"), "the sweep was stopped before it began"
    assert [(one.status, one.cause) for one in states] == [stopped, ("failed", "nan"), ("", None), stopped, stopped]
    assert [one.error for one in states] == [never, "a NaN", "", never, "saved at step 7"]
