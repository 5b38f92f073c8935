"""Hours of jobs that several trials share, that were requeued, or of which little is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.cost import usage as module
from jobs.cost.accounting import Accounts, Start
from jobs.cost.usage import (
    Kept,
    Usage,
    by_records,
    by_sacct,
    kept_by_attempt,
    label_of,
    measure,
    read_resources,
    wasted_s,
)
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.state.observed import Observed
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.attempts import Attempt
from petseg.run_folder.layout import append_metrics
from slurm.resources import Resources
from tests.jobs.written_trials import sweep_of

HELD = Resources(nodes=2, gpus_per_node=4, timeout_min=90)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Three trials of 100 s of training each."""
    sweep = sweep_of(tmp_path / "runs" / "lab", 3)
    for trial in sweep.trials:
        append_metrics({"epoch": 1, "step": 10, "perf/seconds": 60.0}, trial.folder)
        append_metrics({"epoch": 2, "step": 20, "perf/seconds": 40.0}, trial.folder)
    return sweep


def attempt(number: int, first_step: int, time: float) -> Attempt:
    return Attempt(number, "node1", "12", "", first_step, time)


def attempted(trial: Trial, *attempts: Attempt) -> None:
    (trial.folder / "lives.json").write_text(json.dumps([vars(one) for one in attempts]))


def rows(sweep: Sweep, *words: str) -> list[TrialStatus]:
    return [TrialStatus(trial, word) for trial, word in zip(sweep.trials, words, strict=True)]


def given(sweep: Sweep, *job_ids: str, cluster: str = "slurm") -> list[Submission]:
    return [Submission(trial.id, job_id, cluster, "") for trial, job_id in zip(sweep.trials, job_ids, strict=False)]


def start(job_id: str, state: str, elapsed_s: float, began: float, gpus: int | None = None, **more: float) -> Start:
    return Start(job_id, state, elapsed_s, began, 3600.0, 8, gpus, more.get("energy_j"))


def test_attempts_share_an_epoch_by_its_steps(sweep: Sweep) -> None:
    trial = sweep.trials[0]
    assert kept_by_attempt(trial) == []
    append_metrics({"epoch": 3, "step": 30}, trial.folder)  # of unknown time
    append_metrics({"epoch": 3, "perf/seconds": 1e6}, trial.folder)  # of no step
    append_metrics({"epoch": 3, "step": 30, "perf/seconds": 1e6}, trial.folder)
    append_metrics({"epoch": 4, "step": 40, "perf/seconds": 10.0}, trial.folder)
    attempted(trial, attempt(1, 0, 0.0), attempt(2, 5, 10.0), attempt(3, 18, 20.0))
    assert [one.seconds for one in kept_by_attempt(trial)] == pytest.approx([30.0, 30.0 + 32.0, 8.0 + 10.0])
    trial.write_state(TrialState("running", at_once=2))
    kept = kept_by_attempt(trial)
    assert [one.seconds for one in kept] == pytest.approx([15.0, 31.0, 9.0])
    assert [one.attempt.number for one in kept] == [1, 2, 3]


@pytest.mark.parametrize(
    ("time", "wasted"),
    [
        (94.9, [50.0, 80.0, 0.0]),  # before any start: of another job
        (95.0, [20.0, 80.0, 0.0]),  # clocks differ by five seconds at most
        (194.9, [20.0, 80.0, 0.0]),
        (195.0, [50.0, 50.0, 0.0]),
        (295.0, [50.0, 80.0, 0.0]),
    ],
)
def test_an_attempt_belongs_to_the_last_start_before_it(time: float, wasted: list[float]) -> None:
    starts = [start("1", "NODE_FAIL", 50, 100), start("1", "TIMEOUT", 80, 200), start("1", "COMPLETED", 90, 300)]
    assert wasted_s(starts, [Kept(attempt(1, 0, time), 30.0)], failed=False) == wasted
    assert wasted_s(starts, [Kept(attempt(1, 0, time), 30.0)], failed=True) == [50.0, 80.0, 0.0]


def test_a_start_wastes_no_less_than_nothing_and_keeps_what_all_its_trials_trained() -> None:
    starts = [start("1", "TIMEOUT", 100, 0)]
    kept = [Kept(attempt(1, 0, 1.0), 40.0), Kept(attempt(1, 0, 50.0), 50.0)]
    assert wasted_s(starts, kept, failed=False) == [10.0]
    assert wasted_s(starts, [*kept, Kept(attempt(2, 0, 60.0), 50.0)], failed=False) == [0.0]


def test_a_job_of_several_trials_is_lost_only_if_all_of_them_failed(sweep: Sweep) -> None:
    """Its starts come in any order, the later one on fewer GPUs."""
    starts = [
        start("7", "FAILED", 1800, 5000, gpus=1, energy_j=3.6e6), start("7", "NODE_FAIL", 3600, 1000, gpus=2),
        start("7", "CANCELLED", 0, 9000, gpus=2, energy_j=1.8e6), start("8", "FAILED", 3600, 1000, gpus=2),
    ]  # fmt: skip
    submissions = given(sweep, "7", "7", "8") + given(sweep, "7") + [Submission("gone", "7", "slurm", "")]
    for trial, when in zip(sweep.trials, (1010.0, 5010.0, 1010.0), strict=True):
        attempted(trial, attempt(1, 0, when))
    usage = by_sacct(sweep, rows(sweep, "failed", "queued", "failed"), submissions, starts, None)
    first, second = usage.lines
    assert (usage.source, usage.unit) == ("sacct", "GPU hours")
    assert (first.label, first.trials) == ("unet seed=0 and 1 more", tuple(trial.id for trial in sweep.trials[:2]))
    assert (first.starts, first.state) == (2, "NODE_FAIL, FAILED, CANCELLED")
    assert (first.asked_h, first.used_h) == (2 * 1 + 1 * 1, 2 * 1 + 1 * 0.5)
    assert first.wasted_h == pytest.approx((2 * 3500 + 1 * 1700) / 3600)
    assert (second.label, second.used_h, second.wasted_h, second.energy_kwh) == ("unet seed=2", 2.0, 2.0, None)
    assert (first.energy_kwh, usage.energy_kwh) == (1.5, 1.5)
    assert usage.notes == ("energy: of whole nodes, whatever else ran there, as Slurm's meters have it",)
    whole = by_sacct(sweep, rows(sweep, "failed", "failed", "failed"), submissions, starts, None)
    assert whole.lines[0].wasted_h == 2.5
    assert (whole.total("wasted_h"), whole.total("asked_h")) == (4.5, 5.0)


def test_gpus_that_accounting_does_not_keep_are_those_of_the_launch(sweep: Sweep) -> None:
    starts, words = [start("7", "COMPLETED", 1800, 0)], rows(sweep, "done", "done", "done")
    usage = by_sacct(sweep, words, given(sweep, "7"), starts, HELD)
    assert by_sacct(sweep, words, given(sweep, "7"), [start("7", "COMPLETED", 1, 0)], HELD).lines[0].starts == 1
    assert (usage.unit, usage.lines[0].used_h, usage.energy_kwh) == ("GPU hours", 4.0, None)
    assert "(AccountingStorageTRES): their number is that of the last launch" in usage.notes[0]
    for resources in (None, Resources(gpus_per_node=0)):
        usage = by_sacct(sweep, words, given(sweep, "7"), starts, resources)
        assert (usage.unit, usage.lines[0].used_h, usage.notes) == ("CPU core hours", 4.0, ())
    kept = [start("7", "COMPLETED", 1800, 0, gpus=2), start("8", "COMPLETED", 1800, 0)]
    usage = by_sacct(sweep, words, given(sweep, "7", "8"), kept, HELD)
    assert ([line.used_h for line in usage.lines], usage.notes) == ([1.0, 4.0], ())


def test_records_know_what_was_trained_and_what_the_last_launch_asked(sweep: Sweep) -> None:
    """The first trial began twice, the second and the third share a job and failed once."""
    attempted(sweep.trials[0], attempt(1, 0, 0.0), attempt(2, 10, 9.0))
    submissions = [Submission(sweep.trials[0].id, "5", "local", ""), *given(sweep, "7", "8", "8")]
    append_metrics({"epoch": 3, "step": 30}, sweep.trials[0].folder)
    usage = by_records(sweep, rows(sweep, "done", "failed", "running"), submissions, HELD)
    assert [(line.job_id, line.starts, line.state) for line in usage.lines] == [
        ("7", 2, "done"), ("8", 0, "failed"), ("8", 0, "running"),
    ]  # fmt: skip
    assert [line.label for line in usage.lines] == ["unet seed=0", "unet seed=1", "unet seed=2"]
    assert [line.asked_h for line in usage.lines] == [1.5 * 8 * 2, 1.5 * 8 / 2, 1.5 * 8 / 2]
    assert [line.used_h for line in usage.lines] == pytest.approx([100 * 8 / 3600] * 3)
    assert [line.wasted_h for line in usage.lines] == pytest.approx([0.0, 100 * 8 / 3600, 0.0])
    assert (usage.source, usage.unit, len(usage.notes)) == ("records", "GPU hours", 1)


@pytest.mark.parametrize(
    ("resources", "cluster", "unit", "hours", "note"),
    [
        (None, "slurm", "CPU core hours", 100 / 3600, "what the jobs held is not known: estimated as one core each"),
        (
            Resources(gpus_per_node=0, cpus_per_task=6, tasks_per_node=2),
            "local",
            "CPU core hours",
            100 * 12 / 3600,
            "run on this machine: estimated with what the last launch asked for",
        ),
    ],
)
def test_records_on_cores(
    sweep: Sweep, resources: Resources | None, cluster: str, unit: str, hours: float, note: str
) -> None:
    submissions = given(sweep, "7", cluster=cluster)
    usage = by_records(sweep, rows(sweep, "done", "planned", "planned"), submissions, resources)
    assert (usage.unit, [line.used_h for line in usage.lines]) == (unit, pytest.approx([hours]))
    assert usage.notes[1:] == (note,)
    assert usage.total("used_h") == pytest.approx(hours)
    assert usage.total("asked_h") == (usage.lines[0].asked_h or 0.0)
    assert (usage.lines[0].asked_h is None) == (cluster == "local")


def measured(sweep: Sweep, monkeypatch: pytest.MonkeyPatch, accounts: Accounts, row: TrialStatus) -> tuple[Usage, list]:
    asked: list[Sequence[str]] = []
    monkeypatch.setattr(module, "ask_sacct", lambda ids: asked.append(ids) or accounts)
    monkeypatch.setattr(module, "observe", lambda sweep: Observed(sweep, (row,)))
    return measure(sweep), asked


def test_jobs_that_accounting_does_not_know_are_counted(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = sweep.trials[0]
    jobs = [("10", "slurm"), ("9", "slurm"), ("9", "slurm"), ("77", "local"), ("", "slurm")]
    sweep.add_submissions([Submission(trial.id, job_id, cluster, "") for job_id, cluster in jobs])
    known = Accounts((start("9", "COMPLETED", 3600, 0),))
    usage, asked = measured(sweep, monkeypatch, known, TrialStatus(trial, "done"))
    assert asked == [["10", "9"]]
    assert (usage.source, usage.doubts) == ("sacct", ())
    assert usage.notes == ("2 jobs are not in it, because accounting does not know them (run here, or forgotten)",)
    both = Accounts((start("9", "COMPLETED", 1, 0), start("10", "COMPLETED", 1, 0), start("77", "COMPLETED", 1, 0)))
    assert measured(sweep, monkeypatch, both, TrialStatus(trial, "done"))[0].notes == ()


def test_what_slurm_did_not_answer_is_a_doubt(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    row = TrialStatus(sweep.trials[0], "unknown", silence="timed out")
    sweep.add_submissions(given(sweep, "9"))
    usage, _ = measured(sweep, monkeypatch, Accounts(silence="no answer in 60 s"), row)
    assert usage.source == "records"
    assert usage.doubts[0] == "unknown: what accounting has (sacct: no answer in 60 s)"
    assert usage.doubts[1].startswith("unknown: 1 of 1 trials, because Slurm does not answer (timed out)")
    usage, _ = measured(sweep, monkeypatch, Accounts((start("9", "COMPLETED", 1, 0),)), row)
    assert (usage.source, len(usage.doubts)) == ("sacct", 1)


def test_resources_of_the_last_launch_and_labels(sweep: Sweep) -> None:
    path = sweep.folder / "launch.json"
    assert read_resources(sweep) is None
    for text in ("{", "[]", "{}", '{"resources": {"no_such": 1}}'):
        path.write_text(text)
        assert read_resources(sweep) is None
    path.write_text(json.dumps({"resources": {"nodes": 2, "timeout_min": 7}}))
    assert read_resources(sweep) == Resources(nodes=2, timeout_min=7)
    assert [label_of(sweep.trials[:count]) for count in range(4)] == [
        "", "unet seed=0", "unet seed=0 and 1 more", "unet seed=0 and 2 more",
    ]  # fmt: skip
