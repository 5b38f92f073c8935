"""What a run makes of its wandb client's answers, and notes of them for others to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petseg.config import TrackingConfig
from petseg.tracking import tracker
from petseg.tracking.naming import RunName
from petseg.tracking.note import TRACKING_NAME, State, TrackingNote, read_note, save_note
from petseg.tracking.process import Answer
from petseg.tracking.tracker import Wandb
from shards.command import INTERRUPTED
from tests.petseg.tracking.test_client import settings_of

BEGUN = {"begun": 0, "url": "https://host/run", "project_url": "https://host/pets", "resumed": False}


class StandIn:
    """A client that notes what it is sent, and answers an end as it is told."""

    def __init__(self, on_answer: Callable[[Answer], None]) -> None:
        self.answer = on_answer
        self.events: list[Any] = []
        self.last: Answer | None = {"ended": 2}

    def send(self, **command: Any) -> None:
        self.events.append(command)

    def wait_for(self, word: str, timeout_s: float) -> Answer | None:
        self.events.append((word, timeout_s))
        if self.last:
            self.answer(self.last)
        return self.last

    def close(self) -> None:
        self.events.append("close")


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    made: list[StandIn] = []

    def make(on_answer: Callable[[Answer], None]) -> StandIn:
        made.append(StandIn(on_answer))
        return made[-1]

    monkeypatch.setattr(tracker, "WandbProcess", make)
    return made


def wandb_of(folder: Path, mode: str = "online") -> Wandb:
    return Wandb(settings_of(folder, mode=mode), 5.0, "metrics.jsonl has everything", folder)


def test_the_state_in_wandb_is_noted_from_the_start_to_the_end(tmp_path: Path, clients: list[StandIn]) -> None:
    view = wandb_of(tmp_path)
    (one,) = clients
    assert read_note(tmp_path) == TrackingNote("starting")
    one.answer(BEGUN)
    where = {"url": "https://host/run", "project_url": "https://host/pets"}
    assert read_note(tmp_path) == TrackingNote("sending", **where)
    view.read_rows()
    view.finish({"best_epoch": 2}, "interrupted", [{"name": "a"}])
    assert read_note(tmp_path) == TrackingNote("sent", **where)
    (begin, rows, end, *rest) = one.events
    assert list(begin) == ["begin"]
    assert begin["begin"]["id"] == "run1"
    assert rows == {"rows": {}}
    summary = {"best_epoch": 2, "ended": "interrupted"}
    assert end == {"end": {"summary": summary, "exit_code": INTERRUPTED, "artifacts": [{"name": "a"}]}}
    assert rest == [("ended", 5.0), "close"]


def test_the_first_error_is_noted_and_told_with_what_to_do(
    tmp_path: Path, clients: list[StandIn], caplog: pytest.LogCaptureFixture
) -> None:
    """Without the run's id, so that all runs give one reason; the addresses stay."""
    wandb_of(tmp_path)
    clients[0].answer(BEGUN)
    clients[0].answer({"error": "CommError", "text": "run run1\n  is  refused"})
    for later in ({"error": "Other", "text": "x"}, {"ended": 1}, BEGUN):
        clients[0].answer(later)
    reason = "CommError: the run is refused"
    lost = TrackingNote("lost", reason, url="https://host/run", project_url="https://host/pets")
    assert read_note(tmp_path) == lost
    said = f"wandb is off for this run ({reason}); metrics.jsonl has everything"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [said]


@pytest.mark.parametrize(
    ("mode", "begun", "reason"),
    [
        ("online", False, "wandb has not taken the run until 5 s after its end"),
        ("online", True, "not all is sent after 5 s"),
        ("offline", False, "not all is sent after 5 s"),
    ],
)
def test_a_client_that_does_not_end_in_time_is_not_waited_for(
    tmp_path: Path, clients: list[StandIn], mode: str, begun: bool, reason: str
) -> None:
    view = wandb_of(tmp_path, mode)
    clients[0].last = None
    if begun:
        clients[0].answer(BEGUN)
    view.finish({}, "finished")
    note = read_note(tmp_path)
    assert note is not None
    assert (note.state, note.reason) == ("lost", f"TimeoutError: {reason}")
    assert clients[0].events[-1] == "close"


def test_an_offline_run_stays_so_whatever_is_answered_and_a_view_without_a_folder_notes_nothing(
    tmp_path: Path, clients: list[StandIn]
) -> None:
    wandb_of(tmp_path, "offline").finish({}, "finished")
    assert read_note(tmp_path) == TrackingNote("offline")
    (tmp_path / TRACKING_NAME).unlink()
    Wandb(settings_of(tmp_path, mode="online"), 5.0, "", folder=None).finish({}, "finished")
    assert read_note(tmp_path) is None


@pytest.mark.parametrize("state", ["starting", "sending", "sent", "lost", "offline"])
def test_a_note_is_read_as_it_was_written(tmp_path: Path, state: State) -> None:
    note = TrackingNote(state, "why", "https://host/run", "https://host/pets")
    save_note(note, tmp_path)
    assert read_note(tmp_path) == note
    save_note(note, tmp_path / "gone")  # no reason to end a run
    assert read_note(tmp_path / "gone") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": "fine"}', '{"state": "sent", "url": 3}', '{"state": []}'])
def test_a_file_that_is_no_note_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / TRACKING_NAME).write_text(text)
    assert read_note(tmp_path) is None


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_artifacts_that_cannot_be_found_are_told_and_the_run_ends_without_them(
    tmp_path: Path, clients: list[StandIn], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: Any
) -> None:
    def damaged(*_: object) -> None:
        raise kind("no manifest")

    monkeypatch.setattr(tracker, "find_artifacts", damaged)
    config = TrackingConfig("offline", artifacts="small")
    tracker.Tracker(tmp_path, config, RunName("x"), {}, resumed_epoch=0).finish({}, "finished")
    (end,) = (event["end"] for event in clients[0].events if "end" in event)
    assert end["artifacts"] == []
    said = f"wandb gets no artifacts of {tmp_path}: no manifest"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [said]
