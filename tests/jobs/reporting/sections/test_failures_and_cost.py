"""The operation of a sweep in numbers worked out by hand: what its failures have in common, its cost and its speed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.reporting.sections.operation import (
    MAX_FAILURES,
    MAX_NAMED,
    MAX_SPEEDS,
    TRACEBACK_CHARS,
    Cost,
    Speed,
    cause_in_words,
    cost_of,
    energy_of,
    error_line,
    group_failures,
    operate,
    speed_of,
)
from jobs.reporting.sections.trials import TrialRow
from jobs.reporting.statistics.records import Group, Record
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.state.triage import Diagnosis
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.attempts import Attempt
from petseg.run_folder.layout import Result
from shards.cause import Cause

RESULT = Result("x", {"val/dice": 0.9}, 1, 1, 1, 1, "node1", "cpu", 60.0, 80.0, 0.02, 90.0, threads=2)
ON_GPU = replace(RESULT, device="H100", threads=0)
HOUR = {"epoch": 1, "perf/seconds": 3600.0}
TRACEBACK = "Traceback (most recent call last):\n  File x\nValueError: a"


def record(number: int, status: str = "done", result: Result | None = None, rows: int = 0, **facts: Any) -> Record:
    trial = Trial(f"{number:02d}", {}, Path("none"))
    return Record(TrialStatus(trial, status, **facts), {}, {}, result, [HOUR] * rows)


def failed(number: int, cause: Cause = Cause.CODE, signature: str = "a", traceback: str = "", note: str = "") -> Record:
    return record(
        number, "failed", verdict=Diagnosis(cause, f"advice {number}", False, signature, traceback), note=note
    )


def row(of: Record, starts: int = 0) -> TrialRow:
    attempts = tuple(Attempt(number, "node1", "1", "", 0, 0.0) for number in range(1, starts + 1))
    return TrialRow(of, "", None, None, "", attempts, ())


@pytest.fixture
def bare(tmp_path: Path) -> Sweep:
    """Nothing is known of a launch."""
    return Sweep(tmp_path, "lab", {}, "0" * 16, "x", ())


def launch(sweep: Sweep, **resources: Any) -> None:
    (sweep.folder / "launch.json").write_text(json.dumps({"resources": resources}))


def submit(sweep: Sweep, jobs: list[str], cluster: str = "slurm") -> None:
    sweep.add_submissions(Submission(f"{number:02d}", job, cluster, "") for number, job in enumerate(jobs))


def test_failures_are_those_of_one_cause_and_signature_the_most_frequent_first() -> None:
    other = failed(0, Cause.DATA)
    found = group_failures(
        [other, record(1), failed(2), failed(3, signature="b"), failed(4), failed(5, Cause.NAN, "nan")]
    )
    assert [(one.cause, one.signature, one.count, one.trials) for one in found] == [
        ("code", "a", 2, ("02", "04")), ("data", "a", 1, ("00",)), ("code", "b", 1, ("03",)), ("NaN", "", 1, ("05",)),
    ]  # fmt: skip
    assert [one.unnamed for one in found] == [0] * 4


def test_a_failure_is_shown_by_the_first_of_its_trials_that_has_a_traceback() -> None:
    first, last = failed(0, note="it ended"), failed(2, note="x")
    (shown,) = group_failures([first, failed(1, traceback=f"{TRACEBACK}\n\n"), last])
    assert (shown.traceback, shown.first_line, shown.advice) == (TRACEBACK, "ValueError: a", "advice 1")
    (silent,) = group_failures([first, last])
    assert (silent.traceback, silent.first_line, silent.advice) == ("", "it ended", "advice 0")


def test_a_long_traceback_keeps_its_end_and_many_trials_are_counted() -> None:
    long = "x" * TRACEBACK_CHARS + f"\n{TRACEBACK}"
    (shown,) = group_failures([failed(number, traceback=long) for number in range(MAX_NAMED + 2)])
    assert shown.traceback == long[-TRACEBACK_CHARS:]
    assert (shown.count, shown.trials, shown.unnamed) == (10, tuple(f"{n:02d}" for n in range(MAX_NAMED)), 2)


@pytest.mark.parametrize(
    ("traceback", "line"),
    [
        ("Traceback (most recent call last):\n  File x: y\nKeyError: 'a'\n\n", "KeyError: 'a'"),
        (
            "ValueError: first\n\nTraceback (most recent call last):\n  f()\nRuntimeError: second",
            "RuntimeError: second",
        ),
        ("ValueError: a\n  more: of it\nKeyboardInterrupt", "ValueError: a"),
        ("ValueError: a\nTraceback (most recent call last):", "ValueError: a"),
        ("Traceback (most recent call last):\n  f()", ""),
    ],
)
def test_the_error_is_the_last_line_of_its_own_that_names_one(traceback: str, line: str) -> None:
    assert error_line(traceback) == line


def test_causes_in_words() -> None:
    causes = (Cause.GPU_MEMORY, Cause.NAN, Cause.NODE_FAILURE)
    assert [cause_in_words(cause) for cause in causes] == ["GPU memory", "NaN", "node failure"]


def test_what_is_beyond_the_limits_is_counted(bare: Sweep) -> None:
    rows = [row(failed(number, signature=str(number)), starts=number) for number in range(MAX_FAILURES + 3)]
    done = [Group({"a": number}, (record(number, result=RESULT),)) for number in range(MAX_SPEEDS + 2)]
    shown = operate(bare, [Group({"a": -1}, (record(0, "running"),)), *done], rows)
    assert (len(shown.failures), shown.more_failures) == (MAX_FAILURES, 3)
    assert ([speed.label for speed in shown.speeds], shown.more_speeds) == ([f"a={n}" for n in range(MAX_SPEEDS)], 2)
    assert (shown.starts, shown.restarts, shown.restarted) == (105, 91, 13)  # 0 to 14 of each trial
    assert [key for key, _ in shown.columns] == ["images_per_s", "headroom", "data_wait", "train_s"]
    assert shown.cost is None
    within = operate(bare, done[:1], rows[:1])
    assert (within.more_failures, within.more_speeds) == (0, 0)


def test_gpus_of_the_last_launch_are_what_a_trial_costs(bare: Sweep) -> None:
    """Two trials of one job, and one of another that started three times; the one that failed was the longest."""
    launch(bare, nodes=2, gpus_per_node=4, cpus_per_task=3, timeout_min=90)
    submit(bare, ["7", "7", "8"])
    rows = [
        row(record(0, result=RESULT, rows=1), 1), row(record(1, rows=1)), row(record(2, "failed", rows=3), 3),
        row(record(3, "planned")),
    ]  # fmt: skip
    assert cost_of(bare, rows) == Cost(
        unit="GPU hours",
        asked_h=1.5 * 8 * (0.5 + 0.5 + 3),
        used_h=5.0 * 8,
        wasted_h=3.0 * 8,
        epochs=5,
        train_s=5 * 3600.0,
        basis="8 GPUs for each trial, as the last launch asked for",
        energy_kwh=None,
    )


@pytest.mark.parametrize(
    ("cluster", "result", "resources", "unit", "used_h", "basis"),
    [
        ("slurm", RESULT, {"gpus_per_node": 1}, "GPU hours", 1, "1 GPU for each trial, as the last launch asked for"),
        (
            "slurm", RESULT, {"gpus_per_node": 0, "tasks_per_node": 2, "cpus_per_task": 3}, "CPU core hours", 6,
            "6 CPU cores for each trial, as the last launch asked for",
        ),
        ("slurm", RESULT, None, "CPU core hours", 1, "1 CPU core for each trial"),
        ("local", RESULT, {"gpus_per_node": 2, "cpus_per_task": 3}, "process hours", 2, "2 processes for each trial"),
        ("local", None, {"gpus_per_node": 2}, "GPU hours", 2, "2 GPUs for each trial"),
        ("local", ON_GPU, {"gpus_per_node": 1}, "GPU hours", 1, "1 GPU for each trial"),
        ("local", RESULT, None, "process hours", 1, "1 process for each trial"),
    ],
)  # fmt: skip
def test_the_unit_of_the_cost(
    bare: Sweep,
    cluster: str,
    result: Result | None,
    resources: dict[str, int] | None,
    unit: str,
    used_h: float,
    basis: str,
) -> None:
    """A launch on a machine without a GPU asks for one all the same; only Slurm limits cores, and time."""
    if resources is not None:
        launch(bare, **resources, timeout_min=60)
    submit(bare, ["7"], cluster)
    cost = cost_of(bare, [row(record(0, result=result, rows=1))])
    assert cost
    assert (cost.unit, cost.used_h, cost.basis) == (unit, used_h, basis)
    assert cost.asked_h == (used_h if cluster == "slurm" and resources else None)


def test_nothing_is_known_of_the_cost_before_the_first_epoch(bare: Sweep) -> None:
    launch(bare, timeout_min=60)
    submit(bare, ["7"])
    assert cost_of(bare, [row(record(0, "running"), 2)]) is None
    waits = cost_of(bare, [row(record(0, "running"), 2), row(record(1, rows=1))])
    assert waits
    assert waits.asked_h == 3.0  # two starts, and one of a trial without a job


def test_energy_is_that_of_the_epochs_that_know_it() -> None:
    metered = replace(record(0), rows=[HOUR | {"perf/energy_j": 3.6e6}, HOUR, HOUR | {"perf/energy_j": 1.8e6}])
    assert energy_of([row(metered), row(record(1, rows=1))]) == 1.5
    assert energy_of([row(record(1, rows=1))]) is None


def test_the_speed_of_a_cell_is_the_mean_of_what_its_runs_recorded() -> None:
    """One of three seeds is still running, and one alone knows its memory; devices are named once."""
    two = replace(RESULT, world_size=2, images_per_s=100.0, train_s=120.0, peak_memory_mb=300.0)
    records = (record(0, result=RESULT), record(1, "running"), record(2, result=two), record(3, result=RESULT))
    numbers = {"images_per_s": 260 / 3, "headroom": 90.0, "data_wait": 0.02, "mfu": None, "peak_memory_mb": 300.0}
    assert speed_of(Group({"arch": "unet"}, records)) == Speed(
        "unet", "cpu, 2 processes, cpu", pytest.approx(numbers | {"train_s": 80.0})
    )
