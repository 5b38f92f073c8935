"""Which runs are sent, which of them are noted, and when the sending ends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.wandb_sync import replay
from jobs.wandb_sync.replay import Limits, Outcome, Replay, Worker, replay_all
from tests.jobs.wandb_sync.test_workers import replay_of

Answers = Callable[[str], Outcome]
LIMITS = Limits(2, 1e6, 40.0)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answers], list[str]]:
    """Workers answer as a function of the run's id says; returns the ids that they were given."""

    def answer(by: Answers) -> list[str]:
        asked: list[str] = []

        class Answering(Worker):
            def replay(self, replay: Replay) -> Outcome:
                asked.append(replay.id)
                return by(replay.id)

        monkeypatch.setattr(replay, "Worker", Answering)
        return asked

    return answer


def test_runs_that_arrived_are_noted_and_others_are_not(answering: Callable[[Answers], list[str]]) -> None:
    answering(lambda name: Outcome(name, trouble="no" if name == "b" else "", refused=name == "b"))
    noted: list[tuple[str, str]] = []
    outcomes = replay_all(
        [replay_of(name) for name in "abc"], LIMITS, lambda run, outcome: noted.append((run.id, outcome.id))
    )
    assert sorted(noted) == [("a", "a"), ("c", "c")]
    assert sorted(one.id for one in outcomes) == ["a", "b", "c"]
    assert replay_all([], LIMITS, lambda *_: None) == []


def test_each_run_waits_for_its_turn(
    answering: Callable[[Answers], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rate for all workers together."""
    made: list[float] = []
    waited: list[str] = []

    class Rate:
        def __init__(self, per_s: float) -> None:
            made.append(per_s)

        def wait(self) -> None:
            waited.append("")

    answering(Outcome)
    monkeypatch.setattr(replay, "RateLimit", Rate)
    replay_all([replay_of(name) for name in "abc"], Limits(2, 7.0, 40.0), lambda *_: None)
    assert (made, len(waited)) == ([7.0], 3)


def test_a_run_that_cannot_be_read_or_noted_is_a_trouble_of_its_own(answering: Callable[[Answers], list[str]]) -> None:
    def answer(name: str) -> Outcome:
        if name == "a":
            raise KeyError("host")
        return Outcome(name)

    def note(run: Replay, outcome: Outcome) -> None:
        if run.id == "b":
            raise OSError(28, "No space left on device")

    answering(answer)
    outcomes = {one.id: one for one in replay_all([replay_of(name) for name in "abc"], LIMITS, note)}
    assert outcomes == {
        "a": Outcome("a", trouble="KeyError: 'host'", refused=True),
        "b": Outcome("b", trouble="OSError: [Errno 28] No space left on device", refused=True),
        "c": Outcome("c"),
    }


class Counted(queue.SimpleQueue):  # type: ignore[type-arg]
    """Whoever puts an outcome waits until it is counted, which is when the next one is asked for."""

    def __init__(self) -> None:
        self.counted, self.is_open = threading.Semaphore(0), False

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        super().put(item)
        assert not isinstance(item, Outcome) or self.counted.acquire(timeout=30)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if self.is_open:
            self.counted.release()
        self.is_open = False
        item = super().get(timeout=timeout)
        self.is_open = True
        return item


@pytest.mark.parametrize(
    ("kinds", "given"),
    [
        ("tttooo", 3),
        ("ottttt", 4),
        ("ttottt", 6),
        ("ttrtto", 6),  # a refusal is an answer: wandb is there
        ("rrrroo", 6),
    ],
)
def test_a_server_that_fails_three_times_in_a_row_is_asked_no_more(
    answering: Callable[[Answers], list[str]], monkeypatch: pytest.MonkeyPatch, kinds: str, given: int
) -> None:
    monkeypatch.setattr(replay, "queue", SimpleNamespace(SimpleQueue=Counted, Empty=queue.Empty))

    def answer(name: str) -> Outcome:
        kind = kinds[int(name)]
        return Outcome(name, trouble="" if kind == "o" else "no", refused=kind == "r")

    asked = answering(answer)
    outcomes = replay_all([replay_of(str(number)) for number in range(6)], Limits(1, 1e6, 40.0), lambda *_: None)
    assert asked == [one.id for one in outcomes] == [str(number) for number in range(given)]


def test_no_more_workers_than_runs_and_each_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Noted] = []

    class Noted(Worker):
        closed = 0

        def __init__(self, wandb_dir: str, timeout_s: float) -> None:
            made.append(self)
            self.given = wandb_dir, timeout_s
            assert Path(wandb_dir).is_dir()

        def replay(self, replay: Replay) -> Outcome:
            return Outcome(replay.id)

        def close(self) -> None:
            self.closed += 1

    monkeypatch.setattr(replay, "Worker", Noted)
    for runs, workers in ((2, 2), (4, 3)):
        made.clear()
        replay_all([replay_of(str(number)) for number in range(runs)], Limits(3, 1e6, 40.0), lambda *_: None)
        assert [one.closed for one in made] == [1] * workers
        ((folder, timeout_s),) = {one.given for one in made}
        assert timeout_s == 40.0
        assert not Path(folder).exists()


def test_ctrl_c_ends_the_clients(answering: Callable[[Answers], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """They may hang: whoever waits for one would wait in vain."""
    killed = threading.Event()

    def answer(name: str) -> Outcome:
        if name == "0":
            return Outcome(name)
        assert killed.wait(30)
        return Outcome(name, trouble="its client has ended")

    asked = answering(answer)
    monkeypatch.setattr(replay.Worker, "kill", lambda worker: killed.set())
    monkeypatch.setattr(replay, "progress_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replay_all([replay_of(str(number)) for number in range(9)], Limits(2, 1e6, 40.0), lambda *_: None)
    assert killed.is_set()
    assert len(asked) < 9


@contextmanager
def interrupted(total: int) -> Iterator[Callable[[int], None]]:
    def advance(done: int) -> None:
        raise KeyboardInterrupt

    yield advance
