"""Replay runs to wandb, several at a time and each within a time limit, by clients that can be abandoned."""

from __future__ import annotations

import logging
import math
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.wandb_sync.call import is_refusal, reason
from petseg.tracking.process import Answer, RunSettings, WandbProcess
from petseg.tracking.tracker import EXIT_CODES, End
from shards.terminal import Terminal, duration

GIVE_UP_AFTER = 3  # transient failures in a row
LOG_EVERY_S = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replay:
    """A run that is to be sent."""

    note_path: Path  # where its note is kept when it is sent
    about: Mapping[str, Any]  # fields of RunSettings
    summary: Mapping[str, Any]
    ended: End
    note: Mapping[str, Any]
    artifacts: tuple[Mapping[str, Any], ...] = ()

    @property
    def id(self) -> str:
        return str(self.about["id"])

    @property
    def is_evaluation(self) -> bool:
        return bool(self.about["job_type"] == "eval")

    @property
    def end(self) -> dict[str, Any]:
        """The message that ends a run after its rows."""
        summary = {**self.summary, "ended": self.ended}
        return {"summary": summary, "exit_code": EXIT_CODES[self.ended], "artifacts": list(self.artifacts)}


@dataclass(frozen=True)
class Limits:
    """Limits of the load on wandb."""

    parallel: int
    runs_per_s: float
    timeout_s: float  # for one run

    def __post_init__(self) -> None:
        if self.parallel < 1:
            raise ValueError(f"--parallel {self.parallel}: must be at least 1")
        for name, value in (("--runs-per-s", self.runs_per_s), ("--timeout-s", self.timeout_s)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} {value:g}: must be more than 0")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run."""

    id: str
    rows: int = 0  # new ones
    was_there: bool = False  # wandb had the run before
    url: str = ""  # of the run
    project_url: str = ""
    trouble: str = ""
    refused: bool = False  # permanently: another try would meet the same

    @property
    def ok(self) -> bool:
        return not self.trouble

    @property
    def is_new(self) -> bool:
        """True if wandb got something new of the run."""
        return self.ok and (self.rows > 0 or not self.was_there)


class RateLimit:
    """Limits callers to a number per second."""

    def __init__(self, per_s: float) -> None:
        self._every_s, self._next, self._lock = 1 / per_s, 0.0, threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._every_s
        time.sleep(turn - now)


def replay_all(replays: Sequence[Replay], limits: Limits, sent: Callable[[Replay, Outcome], None]) -> list[Outcome]:
    """Send runs and call `sent` for each that arrived; stop after GIVE_UP_AFTER transient failures in a row."""
    left: queue.SimpleQueue[Replay] = queue.SimpleQueue()
    for replay in replays:
        left.put(replay)
    done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    stop, rate = threading.Event(), RateLimit(limits.runs_per_s)

    def work(worker: Worker) -> None:
        try:
            while not stop.is_set():
                try:
                    replay = left.get_nowait()
                except queue.Empty:
                    return
                rate.wait()
                done.put(_guarded(worker, replay, sent))
        finally:
            worker.close()

    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="petseg-sync-", ignore_cleanup_errors=True) as wandb_dir:
        workers = [Worker(wandb_dir, limits.timeout_s) for _ in range(min(limits.parallel, len(replays)))]
        threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        try:
            with progress_of(len(replays)) as advance:
                while any(thread.is_alive() for thread in threads) or not done.empty():
                    try:
                        outcomes.append(done.get(timeout=0.1))
                    except queue.Empty:
                        continue
                    advance(len(outcomes))
                    if len(outcomes) >= GIVE_UP_AFTER and not any(o.ok or o.refused for o in outcomes[-GIVE_UP_AFTER:]):
                        stop.set()
        except BaseException:  # Ctrl-C: cut off runs continue from there next time
            stop.set()
            for worker in workers:
                worker.kill()
            raise
        finally:
            for thread in threads:
                thread.join()
    return outcomes


def _guarded(worker: Worker, replay: Replay, sent: Callable[[Replay, Outcome], None]) -> Outcome:
    """The outcome of a run. Errors of its folder are an outcome too, so that other runs continue."""
    try:
        outcome = worker.replay(replay)
        if outcome.ok:
            sent(replay, outcome)
    except Exception as error:
        return Outcome(replay.id, trouble=f"{type(error).__name__}: {error}", refused=True)
    return outcome


class Worker:
    """Sends one run after the other with one client, and starts a new client after a failure."""

    def __init__(self, wandb_dir: str, timeout_s: float) -> None:
        self._wandb_dir, self._timeout_s = wandb_dir, timeout_s
        self._process: WandbProcess | None = None

    def replay(self, replay: Replay) -> Outcome:
        deadline = time.monotonic() + self._timeout_s
        self._process = self._process or WandbProcess()
        begin = RunSettings(
            **replay.about,
            mode="online",
            wandb_dir=self._wandb_dir,
            init_timeout_s=0.4 * self._timeout_s,
            finish_timeout_s=0.4 * self._timeout_s,
            confirm_s=min(10.0, 0.1 * self._timeout_s),
        )
        self._process.send(begin=asdict(begin))
        answer = self._process.wait_for("begun", deadline - time.monotonic())
        begun = answer or {}
        if "begun" in begun:
            self._process.send(end=replay.end)
            answer = self._process.wait_for("ended", deadline - time.monotonic())
        if answer and "ended" in answer:
            return Outcome(replay.id, answer["ended"], begun["resumed"], begun["url"], begun["project_url"])
        self.close()
        return _failed(replay, answer or {"error": "TimeoutError", "text": f"not sent within {self._timeout_s:g} s"})

    def kill(self) -> None:
        """End the client from another thread; the current run fails."""
        if process := self._process:
            process.kill()

    def close(self) -> None:
        if self._process:
            self._process.close()
        self._process = None


def _failed(replay: Replay, answer: Answer) -> Outcome:
    text = reason(answer)
    return Outcome(replay.id, trouble=f"{answer['error']}: {text}", refused=is_refusal(answer["error"], text))


@contextmanager
def progress_of(total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left on a terminal, a line every ten seconds elsewhere."""
    live, start = sys.stderr.isatty(), time.monotonic()
    last = start
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("runs  left"), TimeRemainingColumn())
    with Progress(*columns, console=Terminal(stderr=True), disable=not live) as bar:
        task = bar.add_task("sync", total=total)

        def advance(done: int) -> None:
            nonlocal last
            bar.update(task, completed=done)
            now = time.monotonic()
            if not live and now - last >= LOG_EVERY_S:
                last = now
                logger.info("%d/%d runs, %s left", done, total, duration((now - start) / done * (total - done)))

        yield advance
