"""What is said to a client that sends a run, and what comes of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from jobs.wandb_sync import replay
from jobs.wandb_sync.replay import Outcome, Replay, Worker
from petseg.tracking.tracker import End

BEGUN = {"begun": True, "resumed": True, "url": "https://host/run", "project_url": "https://host/p"}


def replay_of(name: str = "r", job_type: str = "train", ended: End = "finished", **more: Any) -> Replay:
    about = {"folder": "f", "id": name, "group": "lab", "job_type": job_type, "tags": ["a"], "config": {"x": 1}}
    about |= {"project": "p", "entity": "e"}
    return Replay(Path("note"), about, {"val/dice": 0.9}, ended, {}, **more)


@pytest.mark.parametrize(("ended", "code"), [("finished", 0), ("pruned", 0), ("failed", 1), ("interrupted", 75)])
def test_the_end_of_a_run_is_its_summary_its_exit_code_and_its_files(ended: End, code: int) -> None:
    artifacts = ({"name": "weights"},)
    assert replay_of(ended=ended, artifacts=artifacts).end == {
        "summary": {"val/dice": 0.9, "ended": ended}, "exit_code": code, "artifacts": [{"name": "weights"}],
    }  # fmt: skip


def test_a_trial_is_told_from_its_evaluation() -> None:
    trial, evaluation = replay_of("a"), replay_of("b", "eval")
    assert [(one.id, one.is_evaluation) for one in (trial, evaluation)] == [("a", False), ("b", True)]


class Client:
    """Gives the answers that a test has written down, None where none comes in time."""

    made: ClassVar[list[Client]] = []
    script: ClassVar[dict[str, list[dict[str, Any] | None]]] = {}

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.waits: list[float] = []
        self.is_closed = self.is_killed = False
        Client.made.append(self)

    def send(self, **command: Any) -> None:
        self.told.append(command)

    def wait_for(self, word: str, timeout_s: float) -> dict[str, Any] | None:
        self.waits.append(timeout_s)
        return Client.script[word].pop(0)

    def close(self) -> None:
        self.is_closed = True

    def kill(self) -> None:
        self.is_killed = True


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    monkeypatch.setattr(Client, "made", [])
    monkeypatch.setattr(Client, "script", {"begun": [], "ended": []})
    monkeypatch.setattr(replay, "WandbProcess", Client)
    return Client


def test_a_client_begins_a_run_online_and_ends_it(client: type[Client]) -> None:
    """wandb has a tenth of the time to show what it was sent, ten seconds at most; the next run has the same client."""
    client.script |= {"begun": [BEGUN] * 2, "ended": [{"ended": 3}, {"ended": 0}]}
    worker, run = Worker("/tmp/w", 40.0), replay_of()
    assert worker.replay(run) == Outcome("r", 3, True, "https://host/run", "https://host/p")
    assert worker.replay(replay_of("s")).rows == 0
    (one,) = client.made
    begin, end = one.told[0]["begin"], one.told[1]["end"]
    assert {name: begin[name] for name in run.about} == run.about
    assert {name: begin[name] for name in ("mode", "wandb_dir", "watched_pid")} == {
        "mode": "online", "wandb_dir": "/tmp/w", "watched_pid": 0,
    }  # fmt: skip
    assert (begin["init_timeout_s"], begin["finish_timeout_s"], begin["confirm_s"]) == (16.0, 16.0, 4.0)
    assert end == run.end
    assert all(30 < wait <= 40 for wait in one.waits)
    assert not one.is_closed
    worker.close()
    assert one.is_closed


def test_wandb_is_not_waited_for_longer_than_ten_seconds_to_show_a_run(client: type[Client]) -> None:
    client.script |= {"begun": [BEGUN], "ended": [{"ended": 0}]}
    Worker("/tmp/w", 1000.0).replay(replay_of())
    assert client.made[0].told[0]["begin"]["confirm_s"] == 10.0


@pytest.mark.parametrize(
    ("begun", "ended", "trouble", "refused"),
    [
        (None, [], "TimeoutError: not sent within 40 s", False),
        (BEGUN, [None], "TimeoutError: not sent within 40 s", False),
        ({"error": "CommError", "text": "HTTP 403\nno"}, [], "CommError: HTTP 403 no", True),
        (BEGUN, [{"error": "CommError", "text": "HTTP 500"}], "CommError: HTTP 500", False),
    ],
)
def test_after_a_failure_the_next_run_has_a_new_client(
    client: type[Client], begun: dict[str, Any] | None, ended: list[Any], trouble: str, refused: bool
) -> None:
    client.script |= {"begun": [begun, BEGUN], "ended": [*ended, {"ended": 1}]}
    worker = Worker("/tmp/w", 40.0)
    assert worker.replay(replay_of()) == Outcome("r", trouble=trouble, refused=refused)
    assert worker.replay(replay_of("s")).rows == 1
    assert [one.is_closed for one in client.made] == [True, False]


def test_a_client_that_works_can_be_killed_from_elsewhere(client: type[Client]) -> None:
    worker = Worker("/tmp/w", 40.0)
    worker.kill()  # there is none
    client.script |= {"begun": [BEGUN], "ended": [{"ended": 0}]}
    worker.replay(replay_of())
    worker.kill()
    assert client.made[0].is_killed
