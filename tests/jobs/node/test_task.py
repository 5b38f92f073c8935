"""Which trials of a job are still trained once one of them has failed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.node import task
from jobs.node.task import TrialTask
from jobs.runs.trial import Sweep, Trial
from jobs.state.triage import Evidence, judge
from petseg.run.peers import LostPeer
from petseg.training import interrupt
from shards.command import INTERRUPTED, Interrupted
from tests.jobs.written_trials import sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "lab", 3)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the trials that began to train; the first one fails."""
    began: list[str] = []

    def train(task: TrialTask, trial: Trial) -> None:
        began.append(trial.id)
        if len(began) == 1:
            raise KeyError("dice")

    monkeypatch.setattr(TrialTask, "_train", train)
    return began


def run_all(sweep: Sweep, world_size: int) -> list[Exception]:
    environment = SimpleNamespace(global_rank=0, job_id="12_0")
    folders = [str(trial.folder) for trial in sweep.trials]
    return TrialTask("lab", world_size, 1).run_all(folders, environment, last=folders[-1])


def test_a_process_alone_goes_on_with_the_next_trial(sweep: Sweep, trained: list[str]) -> None:
    failed = run_all(sweep, world_size=1)
    assert trained == [trial.id for trial in sweep.trials]
    assert [repr(error) for error in failed] == ["KeyError('dice')"]
    assert [trial.state()["status"] for trial in sweep.trials] == ["failed", "done", "done"]


def test_ranks_do_not_go_on_after_an_error_that_one_of_them_met(sweep: Sweep, trained: list[str]) -> None:
    """The others are still in the failed trial, and would wait in it for this one."""
    with pytest.raises(KeyError, match="dice"):
        run_all(sweep, world_size=2)
    assert trained == [sweep.trials[0].id]


def test_a_signal_before_a_trial_leaves_the_rest_untouched(
    sweep: Sweep, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "requested", lambda: len(trained) == 2)
    with pytest.raises(Interrupted, match="a signal came before the start"):
        run_all(sweep, world_size=1)
    assert len(trained) == 2
    assert [trial.state()["status"] for trial in sweep.trials] == ["failed", "done", "interrupted"]


def test_a_rank_whose_peer_is_gone_ends_with_75_and_the_logs_of_all_say_why(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(task: TrialTask, trial: Trial) -> None:
        raise LostPeer("another process of the run is gone (Connection closed by peer): see its log")

    monkeypatch.setattr(TrialTask, "_train", train)
    monkeypatch.setattr(interrupt, "install", lambda: None)
    monkeypatch.setattr(task, "set_up_ranks", lambda environment: None)
    environment = SimpleNamespace(global_rank=0, job_id="12_0", name=lambda: "slurm")
    monkeypatch.setattr(task.submitit, "JobEnvironment", lambda: environment)
    with pytest.raises(SystemExit) as end:
        TrialTask("lab", 2, 1)([str(trial.folder) for trial in sweep.trials])
    assert end.value.code == INTERRUPTED
    state = sweep.trials[0].state()
    assert state["status"] == "failed"
    seen = {"said": "failed", "error": state["error"]}
    assert judge(Evidence(**seen, logs=("",))).retryable
    told = 'Traceback (most recent call last):\n  File "x.py", line 1\ntorch.OutOfMemoryError: CUDA out of memory'
    assert judge(Evidence(**seen, logs=("", told))).cause == "gpu_memory"
