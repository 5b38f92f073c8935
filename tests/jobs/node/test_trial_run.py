"""How a job's process runs one trial: what its state says meanwhile, and what the training is given."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.node import task as module
from jobs.node.task import MAX_STARTS_WITHOUT_PROGRESS, TrialTask, others
from jobs.runs.naming import trial_name
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Sweep, Trial
from jobs.runs.trial_state import NOT_BEGUN, TrialState
from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.footprint.gpus import NodeFault
from petseg.run_folder.attempts import begin_attempt
from petseg.run_folder.layout import Pruned, claim_folder
from petseg.training import interrupt, loop
from petseg.training.pruning import EarlyStop, Hyperband, StoppedEarly
from shards.command import Interrupted
from tests.jobs.written_trials import sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "lab", 3)


def process(rank: int = 0) -> Any:
    return SimpleNamespace(global_rank=rank, job_id="12_0")


def run(task: TrialTask, trial: Trial, rank: int = 0, slot: int = 0) -> list[Exception]:
    return task.run_all([str(trial.folder)], process(rank), slot)


def train_as(monkeypatch: pytest.MonkeyPatch, end: Exception | None = None) -> list[TrialState]:
    """The states that trials have while they are trained, which ends so."""
    states: list[TrialState] = []

    def train(task: TrialTask, trial: Trial) -> None:
        states.append(trial.state())
        if end:
            raise end

    monkeypatch.setattr(TrialTask, "_train", train)
    return states


@pytest.mark.parametrize(("slot", "at_once"), [(0, 1), (2, 3)])
def test_while_it_runs_a_state_says_where(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, slot: int, at_once: int
) -> None:
    """It was begun twice before; only a worker has a slot, and others at its side."""
    trial, states = sweep.trials[0], train_as(monkeypatch)
    for _ in range(2):
        begin_attempt(trial.folder, 0)
    assert run(TrialTask(1, 1, 3), trial, slot=slot) == []
    here = TrialState(
        "running", host=socket.gethostname(), job_id="12_0", pid=os.getpid(), restarts=2, slot=slot, at_once=at_once
    )
    assert [replace(state, time=0.0) for state in states] == [here]
    assert replace(trial.state(), time=0.0) == replace(here, status="done")


@pytest.mark.parametrize(
    ("end", "status", "error"),
    [
        (None, "done", ""),
        (StoppedEarly(Pruned("0" * 10, 4, 10, 3, 0.7, 0.6, 0.65, 16, "node9", 60.0)), "pruned", ""),
        (Interrupted("saved at step 7", False), "interrupted", "saved at step 7"),
        (NodeFault("no GPU"), "running", ""),  # decided for the whole job
        (KeyError("dice"), "failed", "KeyError: 'dice'"),
    ],
)
def test_the_end_of_a_trial_is_written_by_rank_0_alone(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, end: Any, status: str, error: str
) -> None:
    train_as(monkeypatch, end)
    first, second = sweep.trials[:2]
    goes_on = end is None or isinstance(end, StoppedEarly)
    for rank, trial in enumerate((first, second)):
        with caplog.at_level(logging.INFO), nullcontext() if goes_on else pytest.raises(type(end)):
            run(TrialTask(2, 1), trial, rank)
    assert (first.state().status, first.state().error) == (status, error)
    assert second.state() == NOT_BEGUN
    assert caplog.messages == ([f"{trial.id}: {end}" for trial in (first, second)] if end and goes_on else [])


@pytest.mark.parametrize("requeue", [True, False])
def test_several_ranks_meet_before_a_signal_stops_them(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, requeue: bool
) -> None:
    states = train_as(monkeypatch)
    monkeypatch.setattr(interrupt, "requested", lambda: True)
    monkeypatch.setattr(interrupt, "requeue_requested", lambda: requeue)
    with pytest.raises(Interrupted, match="a signal came before the start") as stopped:
        run(TrialTask(1, 1), sweep.trials[0])
    assert (states, stopped.value.requeue) == ([], requeue)
    run(TrialTask(2, 1), sweep.trials[0])
    assert len(states) == 1


def test_the_failure_of_one_trial_is_logged_as_the_log_is_divided(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    end = KeyError("dice")
    train_as(monkeypatch, end)
    assert run(TrialTask(1, 1), sweep.trials[0]) == [end]
    (record,) = caplog.records
    assert record.getMessage() == f"trial {sweep.trials[0].id} failed; the next one follows"
    assert record.exc_info


def test_a_job_whose_last_trial_fails_ends_with_that_failure(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback is the last of the log."""

    def train(task: TrialTask, trial: Trial) -> None:
        raise KeyError(trial.id)

    monkeypatch.setattr(TrialTask, "_train", train)
    monkeypatch.setattr(interrupt, "install", lambda: None)
    monkeypatch.setattr(module, "set_up_logging", lambda rank: None)
    monkeypatch.setattr(module, "set_up_ranks", lambda environment: None)
    monkeypatch.setattr(module.submitit, "JobEnvironment", process)
    with pytest.raises(KeyError, match=sweep.trials[-1].id):
        TrialTask(1, 1)([str(trial.folder) for trial in sweep.trials])
    assert [trial.state().status for trial in sweep.trials] == ["failed"] * 3


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the training is given."""
    calls: list[Any] = []
    threads = torch.get_num_threads()
    monkeypatch.setattr(loop, "train", lambda *words: calls.append((*words, torch.get_num_threads())))
    yield calls
    torch.set_num_threads(threads)


def claimed(sweep: Sweep, shards: str) -> tuple[Trial, RunConfig]:
    trial = sweep.trials[1]
    config = with_values(RunConfig(), {"data.shards": shards, "train.epochs": 3})
    (trial.folder / "config.json").unlink()
    claim_folder(config, "0" * 16, trial.folder)
    return trial, config


def test_a_trial_is_trained_as_its_config_says_under_the_name_of_its_sweep(sweep: Sweep, given: list[Any]) -> None:
    trial, config = claimed(sweep, "/data/set")
    assert run(TrialTask(1, 2), trial) == []
    ((asked, folder, terms, threads),) = given
    assert (asked, folder, threads) == (config, trial.folder, 2)
    assert terms == loop.Terms(trial_name(sweep, trial.id, config), 1, MAX_STARTS_WITHOUT_PROGRESS, None)


def test_a_sweep_that_stops_trials_early_compares_them_with_all_others(sweep: Sweep, given: list[Any]) -> None:
    rule = Hyperband(4)
    save_sweep(replace(sweep, early_stopping=rule))
    trial, _ = claimed(sweep, "/data/set")
    run(TrialTask(1, 1), trial)
    early = given[0][2].early
    assert isinstance(early, EarlyStop)
    assert early.rule == rule
    assert others(trial) == [sweep.trials[0].folder, sweep.trials[2].folder]


@pytest.mark.parametrize(
    ("named", "trains"), [((), False), (("https://b.org/x",), False), (("https://a.org/x",), True)]
)
def test_only_sets_that_the_submission_names_are_fetched(
    sweep: Sweep, given: list[Any], named: tuple[str, ...], trains: bool
) -> None:
    trial, _ = claimed(sweep, "https://a.org/x")
    failed = run(TrialTask(1, 1, named=named), trial)
    assert bool(given) is trains
    told = (
        f"{trial.folder / 'config.json'} names the shards https://a.org/x, which the sweep was not submitted with: "
        "submit it again"
    )
    assert [(type(error), str(error)) for error in failed] == ([] if trains else [(ValueError, told)])


def test_a_log_says_which_rank_wrote_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(module.logging, "basicConfig", lambda **options: asked.append(options))
    module.set_up_logging(3)
    form = "%(asctime)s rank 3 %(levelname)s %(name)s: %(message)s"
    assert asked == [{"level": logging.INFO, "format": form, "datefmt": "%H:%M:%S"}]
