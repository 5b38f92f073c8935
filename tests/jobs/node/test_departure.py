"""What becomes of a job whose work is saved, by why it was told to end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.node import departure
from jobs.node.departure import LOCAL_REQUEUE, comes_again, exit_job, note_cause
from jobs.runs.trial import Trial
from jobs.runs.trial_state import TrialState
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
