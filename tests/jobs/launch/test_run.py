"""The way of a sweep from its cells to its jobs: what comes before what, and which code it ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.launch import run as module
from jobs.launch.options import Options
from jobs.launch.run import (
    count_text,
    estimate_cost,
    print_warnings,
    require_possible,
    submit_missing,
)
from jobs.launch.submit import Submitted
from jobs.runs.launch import Launch, load_launch
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Sweep, Trial
from jobs.runs.trials import Trials
from jobs.state.observed import Observed
from jobs.state.trial_status import STATES, TrialStatus
from petseg.config import RunConfig
from petseg.config.values import with_values
from shards.command import INTERRUPTED, NOT_KNOWN, OK
from shards.terminal import Terminal
from slurm.resources import Resources


class Way:
    """Notes what is done in turn; the trials are seen in the states that the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done, self.states, self.left = list[Any](), list[str](), 0
        note = self.done.append
        monkeypatch.setattr(module, "reconcile", lambda sweep: note("reconcile"))
        monkeypatch.setattr(module, "observe", self.observe)
        monkeypatch.setattr(module, "estimate", lambda trials, launch, probe: note(("cost", list(trials.cells), probe)))
        monkeypatch.setattr(module, "render_cost", lambda cost: "the cost")
        monkeypatch.setattr(module, "check_budget", lambda cost, budget: note(budget))
        monkeypatch.setattr(module, "submit_trials", self.submit)
        monkeypatch.setattr(module, "report_end", lambda launch, sweep, submitted: note(submitted) or OK)

    def observe(self, sweep: Sweep) -> Observed:
        given = zip(sweep.trials, self.states or ["planned"] * len(sweep.trials), strict=True)
        return Observed(sweep, tuple(TrialStatus(trial, state, silence="timed out") for trial, state in given))

    def submit(self, launch: Launch, sweep: Sweep, trials: Sequence[Trial], named: frozenset[str]) -> Submitted:
        self.done.append(("submit", [trial.id for trial in trials], named))
        return Submitted(tuple(trials), tuple(trials[len(trials) - self.left :]))


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Way:
    return Way(monkeypatch)


def test_trials_without_a_result_or_a_job_are_submitted(
    options: Options, trials: Trials, way: Way, pet_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    way.states, way.left = ["done", "failed", "planned"], 1
    assert submit_missing(options, trials) == OK
    everything, ids = trials.sweep.trials, [trial.id for trial in trials.sweep.trials]
    assert way.done == [
        "reconcile", ("submit", ids[1:], frozenset({str(pet_shards)})), Submitted(everything, everything[2:]),
    ]  # fmt: skip
    assert [trial.id for trial in load_sweep(trials.sweep.folder).trials] == ids
    assert all((trial.folder / "config.json").exists() for trial in everything)
    assert load_launch(trials.sweep.folder) == options.launch
    folder = trials.sweep.folder
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: 3 trials, 1 done, 0 queued or running, 2 to submit",
        f"python jobs/status.py {folder}",
        f"python jobs/report.py {folder}",
    ]


def test_where_nothing_is_missing_nothing_is_submitted(options: Options, trials: Trials, way: Way) -> None:
    way.states = ["done", "running", "queued"]
    assert submit_missing(replace(options, budget="1cpuh"), trials) == OK
    assert way.done == ["reconcile", Submitted(trials.sweep.trials)]
    assert not (trials.sweep.folder / "launch.json").exists()


def test_what_slurm_does_not_say_is_in_the_exit_code(options: Options, trials: Trials, way: Way) -> None:
    way.states = ["done", "unknown", "done"]
    assert submit_missing(options, trials) == NOT_KNOWN


def test_a_submission_that_is_not_whole_comes_before_a_doubt(
    options: Options, trials: Trials, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    way.states = ["planned", "unknown", "done"]
    monkeypatch.setattr(module, "report_end", lambda launch, sweep, submitted: INTERRUPTED)
    assert submit_missing(options, trials) == INTERRUPTED


def test_a_budget_is_checked_before_anything_is_submitted(
    options: Options, trials: Trials, way: Way, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    way.states = ["done", "planned", "planned"]
    missing = [trial.id for trial in trials.sweep.trials[1:]]
    submit_missing(replace(options, budget="1cpuh"), trials)
    assert way.done[1:3] == [("cost", missing, True), "1cpuh"]
    assert way.done[3][0] == "submit"
    assert "\nthe cost\n" in capsys.readouterr().out

    def refuse(cost: object, budget: str) -> None:
        raise ValueError("over the budget")

    way.done.clear()
    monkeypatch.setattr(module, "check_budget", refuse)
    with pytest.raises(ValueError, match="over the budget"):
        submit_missing(replace(options, budget="1cpuh"), trials)
    assert [step for step in way.done if step[0] == "submit"] == []


@pytest.mark.parametrize("no_probe", [True, False])
def test_a_cost_is_probed_unless_the_user_declines(options: Options, trials: Trials, way: Way, no_probe: bool) -> None:
    estimate_cost(replace(options, no_probe=no_probe), trials)
    assert way.done == [("cost", list(trials.cells), not no_probe)]


def test_only_the_trials_that_are_meant_are_looked_at(options: Options, trials: Trials, way: Way) -> None:
    way.states = ["failed", "failed", "done"]
    submit_missing(options, trials.only(trials.sweep.trials[1:]))
    assert ("submit", [trials.sweep.trials[1].id], frozenset(trials.sets.manifests)) in way.done


def test_states_are_counted_in_words(trials: Trials) -> None:
    def counted(*states: str) -> str:
        return count_text(Observed(trials.sweep, tuple(TrialStatus(trials.sweep.trials[0], word) for word in states)))

    assert counted() == "0 done, 0 queued or running"
    assert counted(*STATES, *STATES) == "2 done, 2 pruned, 6 queued or running, 2 unknown"


def test_each_warning_is_told_once_and_nothing_else(
    trials: Trials, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "earlier_line", lambda sweep, cells: f"{len(cells)} of [{sweep.name}]")
    monkeypatch.setattr(
        module, "enlarged_line", lambda manifest, *about: f"{manifest.hash[:4]} {' '.join(map(str, about[1:]))}"
    )
    unknown = Observed(trials.sweep, (TrialStatus(trials.sweep.trials[0], "unknown", silence="timed out"),))
    console = Terminal(soft_wrap=True)
    print_warnings(trials, unknown, console)
    first, enlarged, doubt = capsys.readouterr().out.splitlines()
    config = next(iter(trials.cells.values())).config
    manifest = trials.sets.manifests[config.data.shards]
    assert (first, enlarged) == ("3 of [lab]", f"{manifest.hash[:4]} 64 {config.data.fit}")
    assert doubt == unknown.doubt
    monkeypatch.setattr(module, "earlier_line", lambda sweep, cells: "")
    monkeypatch.setattr(module, "enlarged_line", lambda *about: "")
    print_warnings(trials, Observed(trials.sweep, ()), console)
    assert capsys.readouterr().out == ""


def cell_with(**values: Any) -> Any:
    names = {name.replace("__", "."): value for name, value in values.items()}
    return SimpleNamespace(config=with_values(RunConfig(), names))


def launch(gpus: int, nodes: int = 1) -> Launch:
    return Launch("slurm", Resources(gpus_per_node=gpus, nodes=nodes), 0, 1)


def test_what_no_process_could_train_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_possible(launch(2), [cell_with(train__mixed_precision="fp16"), cell_with(train__batch_size=2)])
    with pytest.raises(ValueError, match=r"^train\.mixed_precision = 'fp16' needs a GPU, and these trials have none"):
        require_possible(launch(0), [cell_with(), cell_with(train__mixed_precision="fp16")])
    with pytest.raises(ValueError, match=r"^train\.batch_size = 3 is the batch of all 4 processes of a trial together"):
        require_possible(launch(2, nodes=2), [cell_with(train__batch_size=3)])
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    require_possible(launch(1), [cell_with(model__arch="unet")])
    monkeypatch.setattr(module, "OWN_ARCHITECTURES", ())
    needs = r"^model\.arch = 'unet' needs segmentation_models_pytorch: pip install 'petseg\[encoders\]'$"
    with pytest.raises(ValueError, match=needs):
        require_possible(launch(1), [cell_with(model__arch="unet")])
