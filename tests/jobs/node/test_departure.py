"""What becomes of a job whose work is saved, by why it was told to end."""

from __future__ import annotations

import logging
import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.node import departure
from jobs.node.departure import (
    LOCAL_REQUEUE,
    MOVES,
    PATIENCE_S,
    comes_again,
    end_trials,
    exit_for_another_node,
    exit_job,
    note_cause,
)
from jobs.node.faults import Fault, note_fault, read_faults
from jobs.runs.trial import Trial
from jobs.runs.trial_state import TrialState
from petseg.footprint.gpus import NodeFault
from shards.cause import Cause
from shards.command import INTERRUPTED
from slurm.ending import Ending


@pytest.mark.parametrize(
    ("why", "after_term", "ahead_of_time_limit"),
    [
        (Ending.PREEMPTED, True, True),
        (Ending.TIMED_OUT, False, True),
        (Ending.DECIDED, False, False),  # scancel
        (Ending.RUNNING, False, True),
        (Ending.UNKNOWN, False, True),
    ],
)
def test_which_jobs_are_requeued(
    why: Ending, after_term: bool, ahead_of_time_limit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departure.ending, "node_shuts_down", lambda: False)
    assert comes_again(why, requeue=False) is after_term
    assert comes_again(why, requeue=True) is ahead_of_time_limit


def test_a_node_that_shuts_down_gives_its_jobs_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departure.ending, "node_shuts_down", lambda: True)
    assert comes_again(Ending.RUNNING, requeue=False)
    assert not comes_again(Ending.DECIDED, requeue=False)


@pytest.mark.parametrize(
    ("why", "requeue", "cause"),
    [
        (Ending.PREEMPTED, True, "preempted"),
        (Ending.TIMED_OUT, False, "timeout"),
        (Ending.RUNNING, True, "timeout"),
        (Ending.RUNNING, False, None),
        (Ending.DECIDED, True, None),
    ],
)
def test_only_trials_that_this_job_interrupted_get_a_cause(
    tmp_path: Path, why: Ending, requeue: bool, cause: str | None
) -> None:
    trials = [Trial(name, {}, tmp_path / name) for name in ("stopped", "done", "other", "waits")]
    trials[0].write_state(TrialState("interrupted", job_id="12_0", error="saved"))
    trials[1].write_state(TrialState("done", job_id="12_0"))
    trials[2].write_state(TrialState("interrupted", job_id="11_0"))
    note_cause([str(trial.folder) for trial in trials], "12_0", why, requeue)
    assert [trial.state().cause for trial in trials] == [cause, None, None, None]
    assert trials[0].state().error == "saved"
    assert not trials[3].folder.exists()


def test_a_node_that_shuts_down_is_why_its_job_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm may refuse to start it again, and nobody has cancelled it."""
    trial = Trial("stopped", {}, tmp_path / "stopped")
    trial.write_state(TrialState("interrupted", job_id="12_0", error="saved"))
    monkeypatch.setattr(departure.ending, "node_shuts_down", lambda: True)
    note_cause([str(trial.folder)], "12_0", Ending.RUNNING, requeue=False)
    assert trial.state().cause == "node_failure"


@pytest.mark.parametrize(("requeue", "code"), [(True, LOCAL_REQUEUE), (False, INTERRUPTED)])
def test_a_local_job_leaves_no_rendezvous_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requeue: bool, code: int
) -> None:
    """Its controller starts it again under the same id, and a rank would read the port of the earlier start."""
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    (tmp_path / "12_rendezvous_0.json").touch()
    environment: Any = SimpleNamespace(job_id="12", global_rank=0, name=lambda: "local")
    with pytest.raises(SystemExit) as ended:
        exit_job(environment, requeue)
    assert ended.value.code == code
    assert list(tmp_path.iterdir()) == []


@dataclass
class Slurm:
    """What a job that leaves asks of Slurm, and how long it then waits for its end."""

    why: Ending = Ending.PREEMPTED
    refusal: str = ""
    asked: list[str] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        monkeypatch.setenv("SUBMITIT_FOLDER", str(folder))
        monkeypatch.setenv("SLURMD_NODENAME", "node1")
        monkeypatch.setattr(departure.ending, "await_ending", lambda job_id, patience_s: self.note("why", self.why))
        monkeypatch.setattr(departure.ending, "requeue", lambda job_id: self.note(f"requeue {job_id}", self.refusal))
        elsewhere = lambda job_id, node: self.note(f"requeue {job_id} without {node}", self.refusal)  # noqa: E731
        monkeypatch.setattr(departure.ending, "requeue_elsewhere", elsewhere)
        monkeypatch.setattr(departure.ending, "node_shuts_down", lambda: False)
        monkeypatch.setattr(departure.signal, "signal", lambda number, handler: self.note("deaf"))
        monkeypatch.setattr(departure.time, "sleep", lambda seconds: self.note("wait"))

    def note(self, what: str, answer: Any = None) -> Any:
        self.asked.append(what)
        return answer


def on_slurm(rank: int = 0) -> Any:
    return SimpleNamespace(job_id="12_0", global_rank=rank, name=lambda: "slurm")


@pytest.mark.parametrize(
    ("rank", "why", "refusal", "asked"),
    [
        (0, Ending.PREEMPTED, "", ["why", "requeue 12_0", "deaf", "wait"]),
        (0, Ending.PREEMPTED, "no", ["why", "requeue 12_0"]),  # refused: nothing is waited for
        (0, Ending.DECIDED, "", ["why"]),  # cancelled: it must not come back
        (1, Ending.PREEMPTED, "", ["deaf", "wait"]),  # rank 0 alone decides, and must be the first to leave
    ],
)
def test_rank_0_alone_requeues_a_job_and_all_wait_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, why: Ending, refusal: str, asked: list[str]
) -> None:
    slurm = Slurm(why, refusal)
    slurm.install(monkeypatch, tmp_path)
    with pytest.raises(SystemExit) as ended:
        exit_job(on_slurm(rank), requeue=False)
    assert ended.value.code == INTERRUPTED
    assert slurm.asked == asked


def begun(sweep: Path) -> Trial:
    trial = Trial("begun", {}, sweep / "trials" / "begun")
    trial.write_state(TrialState("running", job_id="12_0"))
    return trial


def leave(trial: Trial, start: int, node: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the job ends by itself, to be started again on another node."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(start))
    monkeypatch.setenv("SLURMD_NODENAME", node)
    try:
        exit_for_another_node(on_slurm(), NodeFault(f"{node} has no GPU"), [str(trial.folder)])
    except SystemExit as ended:
        return ended.code == INTERRUPTED
    return False


def test_a_job_tries_so_many_nodes_and_then_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm, trial = Slurm(), begun(tmp_path)
    slurm.install(monkeypatch, tmp_path)
    for start in range(MOVES - 1):
        assert leave(trial, start, f"node{start}", monkeypatch)
        assert (trial.state().status, trial.state().cause) == ("interrupted", Cause.NODE_FAILURE)
    assert slurm.asked.count("wait") == MOVES - 1
    assert not leave(trial, MOVES - 1, "last", monkeypatch)
    assert (trial.state().status, trial.state().error) == ("failed", "last has no GPU")
    assert [one for one in slurm.asked if "requeue" in one] == [
        f"requeue 12_0 without node{start}" for start in range(MOVES - 1)
    ]
    assert [(fault.start, fault.node) for fault in read_faults(tmp_path)] == [(0, "node0"), (1, "node1"), (2, "last")]


def test_a_job_that_leaves_says_why_and_waits_until_slurm_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trial, waited, deaf = begun(tmp_path), list[Any](), list[Any]()
    trial.write_state(TrialState("interrupted", job_id="12_0"))
    slurm = Slurm(Ending.PREEMPTED)
    slurm.install(monkeypatch, tmp_path)
    monkeypatch.setattr(departure.ending, "await_ending", lambda *given: waited.append(given) or Ending.PREEMPTED)
    monkeypatch.setattr(departure.time, "sleep", waited.append)
    monkeypatch.setattr(departure.signal, "signal", lambda *given: deaf.append(given))
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit):
        exit_job(on_slurm(), requeue=False, folders=[str(trial.folder)])
    assert waited == [("12_0", PATIENCE_S), 2 * PATIENCE_S]
    assert deaf == [(signal.SIGTERM, signal.SIG_DFL)]
    assert trial.state().cause is Cause.PREEMPTED
    assert caplog.messages == ["saved, and the job is back in the queue (preempted)"]


@pytest.mark.parametrize(
    ("why", "told"),
    [
        (Ending.DECIDED, "saved, and the job is not started again (decided)"),
        (Ending.PREEMPTED, "Slurm does not requeue the job (held): run the sweep again to go on"),
    ],
)
def test_a_job_that_does_not_come_again_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: Ending, told: str
) -> None:
    Slurm(why, "held").install(monkeypatch, tmp_path)
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit):
        exit_job(on_slurm(), requeue=False)
    assert caplog.messages == [told]


@pytest.mark.parametrize(
    ("why", "requeue", "shuts_down", "cause"),
    [
        (Ending.PREEMPTED, False, True, Cause.PREEMPTED),
        (Ending.TIMED_OUT, True, True, Cause.TIMEOUT),
        (Ending.UNKNOWN, True, False, Cause.TIMEOUT),
        (Ending.RUNNING, True, True, Cause.TIMEOUT),
        (Ending.UNKNOWN, False, True, None),
        (Ending.DECIDED, False, True, None),
        (Ending.DECIDED, True, True, None),
        (Ending.RUNNING, False, False, None),
    ],
)
def test_the_cause_of_an_interruption_is_what_ended_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: Ending, requeue: bool, shuts_down: bool, cause: Cause | None
) -> None:
    trial = begun(tmp_path)
    trial.write_state(TrialState("interrupted", job_id="12_0", error="saved"))
    monkeypatch.setattr(departure.ending, "node_shuts_down", lambda: shuts_down)
    note_cause([str(trial.folder)], "12_0", why, requeue)
    assert trial.state().cause is cause


def test_a_job_that_leaves_for_another_node_says_so_and_is_deaf_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slurm, trial, given = Slurm(), begun(tmp_path), list[Any]()
    slurm.install(monkeypatch, tmp_path)
    monkeypatch.setattr(departure.signal, "signal", lambda *words: given.append(words))
    monkeypatch.setattr(departure.time, "sleep", given.append)
    assert leave(trial, 0, "node7", monkeypatch)
    assert given == [(signal.SIGTERM, signal.SIG_DFL), PATIENCE_S]
    assert caplog.messages == ["node7 has no GPU; the job is back in the queue, without node7"]
    (fault,) = read_faults(tmp_path)
    assert fault == Fault("12_0", 0, "node7", "node7 has no GPU")


def test_a_job_that_has_tried_enough_nodes_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Faults of another job of the sweep do not count."""
    trial = begun(tmp_path)
    Slurm().install(monkeypatch, tmp_path)
    note_fault(tmp_path, Fault("11_0", 0, "other", "no GPU"))
    for start, node in enumerate(("node3", "node1")):
        note_fault(tmp_path, Fault("12_0", start, node, "no GPU"))
    assert not leave(trial, 2, "node2", monkeypatch)
    assert caplog.messages == ["the job is not started again on another node: it has tried node1, node2, node3"]
    assert trial.state().cause is Cause.NODE_FAILURE


def test_a_node_that_a_job_met_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = begun(tmp_path)
    Slurm().install(monkeypatch, tmp_path)
    assert all(leave(trial, start, "node1", monkeypatch) for start in range(MOVES + 1))


def test_trials_fail_where_slurm_gives_no_other_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm, trial = Slurm(refusal="no"), begun(tmp_path)
    slurm.install(monkeypatch, tmp_path)
    assert not leave(trial, 0, "node1", monkeypatch)
    assert (trial.state().status, trial.state().cause) == ("failed", Cause.NODE_FAILURE)
    assert "wait" not in slurm.asked


def test_without_slurm_there_is_no_other_node(tmp_path: Path) -> None:
    trial = begun(tmp_path)
    local: Any = SimpleNamespace(job_id="12_0", global_rank=0, name=lambda: "local")
    exit_for_another_node(local, NodeFault("no GPU"), [str(trial.folder)])
    assert (trial.state().status, trial.state().error) == ("failed", "no GPU")
    assert read_faults(tmp_path) == []


def test_a_job_ends_only_the_trials_that_it_began_and_has_not_finished(tmp_path: Path) -> None:
    given = {"runs": ("running", "12_0"), "stopped": ("interrupted", "12_0"), "done": ("done", "12_0"),
             "other": ("running", "11_0"), "waits": None}  # fmt: skip
    trials = [Trial(name, {}, tmp_path / name) for name in given]
    for trial, state in zip(trials, given.values(), strict=True):
        if state:
            trial.write_state(TrialState(state[0], job_id=state[1]))
    end_trials([str(trial.folder) for trial in trials], "12_0", "failed", NodeFault("no GPU"))
    assert [trial.state().status for trial in trials] == ["failed", "failed", "done", "running", ""]
