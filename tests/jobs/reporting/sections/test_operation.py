"""The section about the operation: failures, restarts and what the sweep cost."""

import json
from dataclasses import replace

import pytest

from jobs.reporting.page import render_page
from jobs.reporting.sections.operation import error_line, group_failures, operate
from jobs.reporting.sections.trials import trial_row
from jobs.runs.trial import Submission, Sweep
from jobs.runs.trial_state import TrialState
from petseg.run_folder.layout import write_metrics
from tests.jobs.reporting.short_sweep import finish, groups_of


def test_operation_counts_failures_once_and_starts_all(sweep: Sweep) -> None:
    first, second, third, *others = sweep.trials
    for trial in others:
        finish(trial, 0.8)
    traceback = 'Traceback (most recent call last):\n  File "petseg/x.py", line 1, in f\nKeyError: <b>'
    for trial in (first, second):
        log = sweep.folder / "logs" / f"{trial.id}_0_log.out"
        log.parent.mkdir(exist_ok=True)
        log.write_text(traceback + "\n")
        sweep.add_submissions([Submission(trial.id, trial.id, "local", str(log))])
        trial.write_state(TrialState("failed", job_id=trial.id, error="KeyError: <b>"))
        write_metrics([{"epoch": 1, "perf/seconds": 1800.0, "perf/energy_j": 9e5, "val/dice": 0.1}], trial.folder)
    second.write_state(replace(second.state(), at_once=2))
    attempt = {"host": "node2", "job_id": "1", "first_step": 0, "time": 0.0}
    attempts = [{"number": 1, "code": "abc", **attempt}, {"number": 2, "code": "def", **attempt, "first_step": 10}]
    (third.folder / "lives.json").write_text(json.dumps(attempts))
    _, groups, records = groups_of(sweep)
    (failure,) = group_failures(records)
    assert (failure.count, failure.cause, failure.first_line) == (2, "code", "KeyError: <b>")
    assert failure.traceback == traceback
    operation = operate(sweep, groups, [trial_row(record, "h") for record in records])
    assert (operation.starts, operation.restarts, operation.restarted) == (2, 1, 1)
    assert operation.cost
    assert (operation.cost.unit, operation.cost.energy_kwh) == ("process hours", 0.25 + 0.125)
    assert (operation.cost.used_h, operation.cost.wasted_h) == (8.25, 0.75)  # the second had half of what it ran on
    assert operation.cost.asked_h is None
    assert [key for key, _ in operation.columns] == [
        "images_per_s", "headroom", "data_wait", "peak_memory_mb", "train_s",
    ]  # fmt: skip
    text = render_page(sweep, records)
    assert text.count("petseg/x.py&#34;, line 1") == 1
    assert "KeyError: &lt;b&gt;" in text
    assert "abc, then def" in text
    assert "0.375 kWh in GPUs" in text


def test_trials_at_once_share_the_cost_of_their_job(sweep: Sweep) -> None:
    """Five trials of 1.5 hours and one without a job, two at a time in one of 4 GPUs and an hour."""
    resources = {"gpus_per_node": 4, "timeout_min": 60}
    (sweep.folder / "launch.json").write_text(json.dumps({"resources": resources}))
    for trial in sweep.trials[:5]:
        finish(trial, 0.8)
        trial.write_state(replace(trial.state(), slot=1, at_once=2))
        sweep.add_submissions([Submission(trial.id, "1", "slurm", "")])
    _, groups, records = groups_of(sweep)
    cost = operate(sweep, groups, [trial_row(record, "h") for record in records]).cost
    assert cost
    assert (cost.used_h, cost.asked_h) == (pytest.approx(5 * 1.5 * 4 / 2), pytest.approx(4.0))
    assert (cost.train_s, cost.energy_kwh) == (5 * 1.5 * 3600, None)


def test_error_line_is_the_last_line_without_frames() -> None:
    text = "Traceback (most recent call last):\n  File x\n    f()\nValueError: a: b\n  more of it\n"
    assert error_line(text) == "ValueError: a: b"
    assert error_line("") == ""
