"""What a dry run prints of trials, their cost and their scripts, and the code that it ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

from jobs.launch import dry_run as module
from jobs.launch.dry_run import (
    LISTED_FIRST,
    LISTED_WHOLE,
    SLURM_PATIENCE_S,
    most_of,
    pictures_of_val,
    render_scripts_text,
    render_trials,
    scripts_text,
    show_plan,
)
from jobs.launch.options import Options
from jobs.runs.trial import Submission, Sweep
from jobs.runs.trials import Trials
from jobs.state.observed import Observed
from jobs.state.trial_status import TrialStatus
from shards.command import NOT_KNOWN, OK
from slurm.request import Request


class Plan:
    """Shows the plan of three trials in these states, with stand-ins for what is printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trials: Trials) -> None:
        self.trials, self.asked, self.states = trials, list[Any](), ["done", "failed", "planned"]
        note = self.asked.append
        monkeypatch.setattr(module, "find_cells", lambda options: SimpleNamespace(spec=SimpleNamespace(name="lab")))
        monkeypatch.setattr(module, "plan_trials", lambda cells, folder: trials)
        monkeypatch.setattr(module, "observe", self.observe)
        monkeypatch.setattr(module, "print_warnings", lambda trials, observed, console: console.print("warnings"))
        monkeypatch.setattr(module, "estimate_cost", lambda options, missing: note(("cost", list(missing.cells))))
        monkeypatch.setattr(module, "render_cost", lambda cost, most: f"cost of {most}")
        monkeypatch.setattr(module, "plan_text", lambda sweep, cells, pictures: f"[{len(cells)} {pictures}]")
        monkeypatch.setattr(module, "check_budget", lambda cost, budget: note(budget))
        monkeypatch.setattr(module, "render_scripts", self.scripts)

    def observe(self, sweep: Sweep, patience_s: float) -> Observed:
        self.asked.append(patience_s)
        rows = (
            TrialStatus(t, s, submission=Submission(t.id, "9_1", "slurm", ""), silence="timed out")
            for t, s in zip(sweep.trials, self.states, strict=True)
        )
        return Observed(sweep, tuple(rows))

    def scripts(self, count: int, request: Request, patience_s: float) -> list[str]:
        self.asked.append((count, request.folder, request.name, request.max_parallel, patience_s))
        return ["#!script"]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, trials: Trials) -> Plan:
    return Plan(monkeypatch, trials)


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines below the table."""
    lines = capsys.readouterr().out.splitlines()
    return lines[lines.index("warnings") :]


def test_a_plan_ends_with_the_script_for_what_is_missing(
    plan: Plan, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show_plan(options) == OK
    folder, ids = plan.trials.sweep.folder, list(plan.trials.cells)
    assert plan.asked == [
        SLURM_PATIENCE_S, ("cost", ids[1:]), (2, folder / "logs", "petseg-lab", 2, SLURM_PATIENCE_S),
    ]  # fmt: skip
    assert printed(capsys) == ["warnings", "cost of 1", "[3 3]", "#!script"]


def test_a_budget_is_checked_before_the_script_is_shown(
    plan: Plan, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    show_plan(replace(options, budget="1cpuh"))
    assert plan.asked[2] == "1cpuh"


def test_where_nothing_is_missing_there_is_neither_cost_nor_script(
    plan: Plan, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.states = ["done", "unknown", "queued"]
    assert show_plan(options) == NOT_KNOWN
    assert plan.asked == [SLURM_PATIENCE_S]
    assert printed(capsys) == ["warnings", "[3 3]"]


def test_a_plan_for_this_machine_has_no_script_and_that_of_a_search_no_power(
    plan: Plan, options: Options, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show_plan(replace(options, cluster="local"))
    assert printed(capsys) == ["warnings", "cost of 1", "[3 3]"]
    trials = replace(plan.trials, sweep=replace(plan.trials.sweep, method="bayes"))
    monkeypatch.setattr(module, "plan_trials", lambda cells, folder: trials)
    show_plan(options)
    assert printed(capsys) == ["warnings", "cost of 1", "#!script"]


def test_only_the_trials_of_the_command_are_shown(
    plan: Plan, options: Options, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder has others, whose jobs count where there is a limit."""
    some = plan.trials.only(plan.trials.sweep.trials[1:])
    plan.states = ["running", "planned", "planned"]
    monkeypatch.setattr(module, "plan_trials", lambda cells, folder: some)
    live: list[Any] = []
    monkeypatch.setattr(module, "scripts_text", lambda options, missing, jobs: live.append((list(missing.cells), jobs)))
    show_plan(options)
    assert live == [(list(some.cells), ("9_1",))]
    assert f"{plan.trials.sweep.folder}: 2 trials" in capsys.readouterr().out


@pytest.mark.parametrize(("per_job", "jobs"), [(1, 3), (2, 2), (3, 1), (4, 1)])
def test_a_script_has_as_many_jobs_as_the_trials_fill(plan: Plan, options: Options, per_job: int, jobs: int) -> None:
    asked = replace(options, trials_per_job=per_job, max_parallel=1)
    assert scripts_text(asked, plan.trials, []) == "#!script"
    assert plan.asked[0][0] == jobs


def test_jobs_of_earlier_submissions_are_waited_for_in_the_script(
    plan: Plan, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Request] = []
    monkeypatch.setattr(module, "render_scripts", lambda count, request, patience_s: requests.append(request) or ["x"])
    scripts_text(replace(options, max_parallel=2), plan.trials, ["9_1"])
    assert (requests[0].resources.dependency, requests[0].max_parallel) == ("afterany:9", 2)


def test_the_smallest_val_split_counts(trials: Trials) -> None:
    location, manifest = trials.sets.first
    val = manifest.splits["val"]
    smaller = replace(manifest, splits={"val": replace(val, num_samples=2)})
    without = replace(manifest, splits={})
    assert pictures_of_val(trials) == val.num_samples == 3
    both = replace(trials, sets=replace(trials.sets, manifests={location: manifest, "b": smaller, "c": without}))
    assert pictures_of_val(both) == 2
    assert pictures_of_val(replace(trials, sets=replace(trials.sets, manifests={"c": without}))) == 0


@pytest.mark.parametrize(
    ("count", "everything", "shown"),
    [
        (0, False, 0),
        (LISTED_WHOLE, False, LISTED_WHOLE),
        (LISTED_WHOLE + 1, False, LISTED_FIRST),
        (LISTED_WHOLE + 1, True, LISTED_WHOLE + 1),
    ],
)
def test_of_many_items_the_first_are_shown(count: int, everything: bool, shown: int) -> None:
    assert most_of(count, everything) == shown


def rows_of(trials: Trials, count: int) -> list[TrialStatus]:
    return [TrialStatus(trials.sweep.trials[number % 3], "done") for number in range(count)]


def test_a_line_for_each_trial_has_its_axes_and_what_becomes_of_it(trials: Trials) -> None:
    rows = rows_of(trials, 2)
    (table,) = render_trials(trials.sweep, rows, {rows[1].trial.id}, False)
    assert isinstance(table, Table)
    assert [str(column.header) for column in table.columns] == ["trial", "train.seed", "state"]
    assert [column.overflow for column in table.columns] == ["fold"] * 3
    assert [[str(cell) for cell in column.cells] for column in table.columns] == [
        [row.trial.id for row in rows], ["0", "1"], ["done", "to run"],
    ]  # fmt: skip
    assert (str(table.title), table.title_justify) == (f"{trials.sweep.folder}: 2 trials", "left")


def test_many_trials_are_cut_or_plain_columns(trials: Trials) -> None:
    rows = rows_of(trials, LISTED_WHOLE + 1)
    table, left = render_trials(trials.sweep, rows, set(), False)
    assert isinstance(table, Table)
    assert (table.row_count, str(left)) == (LISTED_FIRST, "and 13 more trials: --all shows everything")
    (plain,) = render_trials(trials.sweep, rows, set(), True)
    assert isinstance(plain, Text)
    title, header, *lines = plain.plain.splitlines()
    assert (title, header.split()) == (f"{trials.sweep.folder}: 21 trials", ["trial", "train.seed", "state"])
    assert len(lines) == LISTED_WHOLE + 1
    assert len(render_trials(trials.sweep, rows[1:], set(), True)) == 1


def script(*options: str) -> str:
    return "\n".join(["#!/bin/bash", *(f"#SBATCH {option}" for option in options), "command", ""])


def differences(scripts: Sequence[str]) -> list[str]:
    return render_scripts_text(scripts, False).removeprefix(
        f"{len(scripts)} scripts for sbatch, in this order; the first of them:\n{scripts[0]}\nThe others differ in:\n"
    ).splitlines()  # fmt: skip


def test_of_several_scripts_the_first_is_whole_and_the_others_say_what_differs() -> None:
    scripts = [script("--array=0-1%2", "--mem=1GB"), script("--array=0-2%2", "--mem=1GB"), script("--mem=1GB")]
    assert differences(scripts) == ["script 2: --array=0-2%2", "script 3: a single job, no array"]
    assert render_scripts_text(scripts, True) == "\n".join(
        f"script {number}:\n{text}" for number, text in enumerate(scripts, start=1)
    )


@pytest.mark.parametrize("count", [LISTED_WHOLE, LISTED_WHOLE + 1])
def test_of_many_scripts_some_are_counted(count: int) -> None:
    shown = differences([script("--array=0-1%2")] * count)
    most = most_of(count, False)
    left = [f"and {count - most} more scripts: --all shows everything"] * (count > most)
    assert shown == [f"script {number}: --array=0-1%2" for number in range(2, most + 1)] + left
