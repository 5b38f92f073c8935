"""Which trials of a job are still trained once one of them has failed."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.node import task
from jobs.node.rendezvous import RanksNotMet
from jobs.node.task import TrialTask, note_failure
from jobs.runs.trial import Sweep, Trial
from jobs.runs.trial_state import NOT_BEGUN, TrialState
from jobs.state.triage import Evidence, diagnose
from petseg.footprint.gpus import NodeFault
from petseg.run.peers import LostPeer
from petseg.training import interrupt
from shards.cause import Cause, ShardSetError
from shards.command import INTERRUPTED, Failure, Interrupted
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
    return TrialTask(world_size, 1).run_all(folders, environment, last=folders[-1])


def test_a_process_alone_goes_on_with_the_next_trial(sweep: Sweep, trained: list[str]) -> None:
    failed = run_all(sweep, world_size=1)
    assert trained == [trial.id for trial in sweep.trials]
    assert [repr(error) for error in failed] == ["KeyError('dice')"]
    assert [trial.state().status for trial in sweep.trials] == ["failed", "done", "done"]


def test_ranks_do_not_go_on_after_an_error_that_one_of_them_met(sweep: Sweep, trained: list[str]) -> None:
    """The others are still in the failed trial, and would wait in it for this one."""
    with pytest.raises(KeyError, match="dice"):
        run_all(sweep, world_size=2)
    assert trained == [sweep.trials[0].id]


def test_the_failure_of_the_last_trial_ends_the_job(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback is then the last of the log, and the job's exit code says that it failed."""
    began: list[str] = []

    def train(task: TrialTask, trial: Trial) -> None:
        began.append(trial.id)
        raise KeyError(trial.id)

    monkeypatch.setattr(TrialTask, "_train", train)
    with pytest.raises(KeyError, match=sweep.trials[-1].id):
        run_all(sweep, world_size=1)
    assert began == [trial.id for trial in sweep.trials]
    assert [trial.state().status for trial in sweep.trials] == ["failed"] * 3


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """A job on Slurm, whose ends are recorded instead."""
    ends: list[tuple[str, object]] = []
    environment = SimpleNamespace(global_rank=0, job_id="12_0", name=lambda: "slurm")
    monkeypatch.setattr(interrupt, "install", lambda: None)
    monkeypatch.setattr(task, "set_up_logging", lambda rank: None)
    monkeypatch.setattr(task, "set_up_ranks", lambda environment: None)
    monkeypatch.setattr(task.submitit, "JobEnvironment", lambda: environment)
    monkeypatch.setattr(task, "exit_job", lambda environment, requeue, folders: ends.append(("saved", requeue)))
    monkeypatch.setattr(task, "exit_for_another_node", lambda *about: ends.append(("moves", str(about[1]))))
    monkeypatch.setattr(task, "work_off", lambda folders, *options: ends.append(("workers", options)))
    return ends


def test_a_job_in_which_some_trials_failed_fails_with_the_first(
    sweep: Sweep, trained: list[str], job: list[tuple[str, object]]
) -> None:
    with pytest.raises(KeyError, match="dice"):
        TrialTask(1, 1)([str(trial.folder) for trial in sweep.trials])
    assert len(trained) == 3
    assert job == []


@pytest.mark.parametrize("requeue", [True, False])
def test_a_job_that_was_interrupted_leaves_as_the_signal_asked(
    sweep: Sweep, job: list[tuple[str, object]], monkeypatch: pytest.MonkeyPatch, requeue: bool
) -> None:
    def train(task: TrialTask, trial: Trial) -> None:
        raise Interrupted("saved", requeue)

    monkeypatch.setattr(TrialTask, "_train", train)
    TrialTask(1, 1)([str(trial.folder) for trial in sweep.trials])
    assert job == [("saved", requeue)]
    assert [trial.state().status for trial in sweep.trials] == ["interrupted", "", ""]


def test_a_job_on_an_unfit_node_goes_to_another_before_it_fails(
    sweep: Sweep, job: list[tuple[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(task: TrialTask, trial: Trial) -> None:
        raise NodeFault("no GPU")

    monkeypatch.setattr(TrialTask, "_train", train)
    with pytest.raises(NodeFault):  # where Slurm refuses
        TrialTask(1, 1)([str(trial.folder) for trial in sweep.trials])
    assert job == [("moves", "no GPU")]


def test_a_job_hears_signals_before_its_ranks_meet_and_names_its_lines(
    sweep: Sweep, job: list[tuple[str, object]], trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[object] = []
    monkeypatch.setattr(interrupt, "install", lambda: began.append("signals"))
    monkeypatch.setattr(task, "set_up_logging", lambda rank: began.append(("log of", rank)))
    monkeypatch.setattr(task, "set_up_ranks", lambda environment: began.append(environment.job_id))
    with pytest.raises(KeyError):
        TrialTask(1, 1)([str(trial.folder) for trial in sweep.trials])
    assert began == ["signals", ("log of", 0), "12_0"]


def test_trials_side_by_side_are_given_to_workers(sweep: Sweep, job: list[tuple[str, object]]) -> None:
    TrialTask(1, 4, at_once=2, named=("s3://a",))([str(trial.folder) for trial in sweep.trials])
    assert job == [("workers", (2, 4, ("s3://a",)))]


def test_a_signal_before_a_trial_leaves_the_rest_untouched(
    sweep: Sweep, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "requested", lambda: len(trained) == 2)
    with pytest.raises(Interrupted, match="a signal came before the start"):
        run_all(sweep, world_size=1)
    assert len(trained) == 2
    assert [trial.state().status for trial in sweep.trials] == ["failed", "done", "interrupted"]


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
        TrialTask(2, 1)([str(trial.folder) for trial in sweep.trials])
    assert end.value.code == INTERRUPTED
    state = sweep.trials[0].state()
    assert (state.status, state.cause) == ("failed", Cause.UNKNOWN)
    assert diagnose(Evidence(state, logs=("",))).retryable
    told = 'Traceback (most recent call last):\n  File "x.py", line 1\ntorch.OutOfMemoryError: CUDA out of memory'
    assert diagnose(Evidence(state, logs=("", told))).cause == "gpu_memory"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Failure("a loss of NaN", Cause.NAN), Cause.NAN),
        (ShardSetError("no set"), Cause.DATA),
        (OSError(errno.ENOSPC, "full"), Cause.DISK_FULL),
        (KeyError("dice"), None),
    ],
)
def test_the_cause_that_an_error_names_is_in_the_trials_state(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, error: Exception, cause: Cause | None
) -> None:
    def train(task: TrialTask, trial: Trial) -> None:
        raise error

    monkeypatch.setattr(TrialTask, "_train", train)
    with pytest.raises(type(error)):
        run_all(sweep, world_size=1)
    states = [trial.state() for trial in sweep.trials]
    assert [(state.status, state.cause) for state in states] == [("failed", cause)] * 3
    assert diagnose(Evidence(states[0])).cause == (cause or Cause.CODE)


LOST, NAN = LostPeer("gone"), Failure("a loss of NaN", Cause.NAN)


@pytest.mark.parametrize(
    ("ends", "cause", "host"),
    [
        ([(0, LOST), (1, NAN)], Cause.NAN, "node1"),  # in whichever order they come to write
        ([(1, NAN), (0, LOST)], Cause.NAN, "node1"),
        ([(0, NAN), (1, NAN)], Cause.NAN, "node0"),
        ([(1, NAN), (0, KeyError("dice"))], None, "node0"),
        ([(0, LOST), (1, KeyError("dice"))], Cause.UNKNOWN, "node0"),  # its log says it
        ([(0, LOST), (1, LOST)], Cause.UNKNOWN, "node0"),
    ],
)
def test_another_rank_records_a_cause_that_rank_0_cannot_name(
    sweep: Sweep, ends: list[tuple[int, Exception]], cause: Cause | None, host: str
) -> None:
    trial = sweep.trials[0]
    trial.write_state(TrialState("failed", job_id="11_0", cause=Cause.DISK_FULL))  # of an earlier job
    for rank, error in ends:
        note_failure(trial, TrialState("running", host=f"node{rank}", job_id="12_0"), error, rank)
    state = trial.state()
    assert (state.status, state.job_id, state.cause, state.host) == ("failed", "12_0", cause, host)


def test_ranks_that_do_not_meet_end_what_their_job_had_begun_at_its_launch(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 may have begun the first trial, and waits in it for the others."""

    def set_up(environment: object) -> None:
        raise RanksNotMet("rank 0 is late")

    begun, waits = sweep.trials[:2]
    begun.write_state(TrialState("running", host="node0", job_id="12_0"))
    monkeypatch.setattr(interrupt, "install", lambda: None)
    monkeypatch.setattr(task, "set_up_ranks", set_up)
    environment = SimpleNamespace(global_rank=1, job_id="12_0", name=lambda: "slurm")
    monkeypatch.setattr(task.submitit, "JobEnvironment", lambda: environment)
    with pytest.raises(RanksNotMet):
        TrialTask(2, 1)([str(trial.folder) for trial in sweep.trials])
    assert (begun.state().status, begun.state().cause) == ("failed", Cause.LAUNCH)
    note_failure(begun, TrialState("running", host="node0", job_id="12_0"), LOST, rank=0)
    assert begun.state().cause is Cause.LAUNCH
    assert waits.state() == NOT_BEGUN
