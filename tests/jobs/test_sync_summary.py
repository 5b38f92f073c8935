"""What jobs/sync.py tells when it has sent what it could, and its exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from jobs.sync import tell
from jobs.wandb_sync.replay import Outcome, Replay
from jobs.wandb_sync.trials import NOTE_NAME, SyncPlan
from shards.command import FAILED, INTERRUPTED, OK


def replay_of(name: str, evaluation: bool = False) -> Replay:
    path = Path("wandb-sync-test.json" if evaluation else NOTE_NAME)
    return Replay(path, {"id": name, "job_type": "eval" if evaluation else "train"}, {}, "finished", {})


@pytest.mark.parametrize(
    ("outcomes", "code", "words"),
    [
        ([Outcome("a"), Outcome("b")], OK, "2 trials: 2 sent, 0 already there"),
        ([Outcome("a", was_there=True), Outcome("b")], OK, "2 trials: 1 sent, 1 already there"),
        ([Outcome("a"), Outcome("b", trouble="timeout")], INTERRUPTED, "2 trials: 1 sent, 0 already there, 1 not sent"),
        ([Outcome("a")], INTERRUPTED, "2 trials: 1 sent, 0 already there, 1 not sent"),  # the other was not tried
        ([Outcome("a"), Outcome("b", trouble="no", refused=True)], FAILED, "1 not sent"),
        ([Outcome("a", trouble="timeout"), Outcome("b", trouble="no", refused=True)], FAILED, "2 not sent"),
    ],
)
def test_a_sync_that_did_not_send_all_says_so_and_by_its_code_whether_to_try_again(
    outcomes: list[Outcome], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = SyncPlan((replay_of("a"), replay_of("b")), (), (), ())
    assert tell(outcomes, plan, "https://host", Console(width=200)) == code
    told = capsys.readouterr()
    assert words in told.out
    assert ("the same command sends what is left" in told.err) is (code == INTERRUPTED)


def test_each_different_trouble_is_told_once_with_some_of_its_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(number) for number in range(6)]
    outcomes = [Outcome(name, trouble="timeout" if name == "5" else "no", refused=name != "5") for name in names]
    plan = SyncPlan(tuple(replay_of(name) for name in names), (), (), ())
    assert tell(outcomes, plan, "https://me:word@host", Console(width=200)) == FAILED
    told = capsys.readouterr()
    assert told.err.splitlines() == ["not sent: 0, 1, 2 and 2 more: no", "not sent: 5: timeout"]
    assert "wandb: https://host" in told.out
    assert "word" not in told.out


def test_evaluations_and_what_was_sent_before_are_counted_apart(capsys: pytest.CaptureFixture[str]) -> None:
    plan = SyncPlan(
        (replay_of("a"), replay_of("a-test", True)),
        (),
        (replay_of("b"), replay_of("b-test", True)),
        ("https://host/p",),
    )
    outcomes = [Outcome("a", rows=3, project_url="https://host/p"), Outcome("a-test", rows=1)]
    assert tell(outcomes, plan, "https://host", Console(width=200)) == OK
    assert capsys.readouterr().out.splitlines() == [
        "2 trials: 1 sent, 1 already there; 2 evaluations: 1 sent, 1 already there; 4 new rows",
        "wandb: https://host/p",
    ]
