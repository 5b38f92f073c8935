"""How a worker of a job works off its order, and with which code it ends."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import pytest

from jobs.node import worker
from jobs.node.workers import NODE_FAULT, REQUEUE, Order
from petseg.footprint.gpus import NodeFault
from shards.command import FAILED, INTERRUPTED, OK, Interrupted

ORDER = Order(3, 2, 4, 9, ("a", "b"), ("s3://x",))


class Left(Exception):
    """The process is gone."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a worker does in turn."""
    done: list[Any] = []

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(worker.interrupt, "install", lambda: done.append("install"))
    monkeypatch.setattr(worker, "read_order", lambda: done.append("read") or ORDER)
    monkeypatch.setattr(worker.submitit, "JobEnvironment", lambda: "the job")
    monkeypatch.setattr(worker, "set_up_logging", lambda slot: done.append(("logging", slot)))
    monkeypatch.setattr(worker, "take", lambda order: list(order.folders))
    monkeypatch.setattr(worker, "leave_at_once", leave)
    return done


def works_as(monkeypatch: pytest.MonkeyPatch, steps: list[Any], end: Exception | list[Exception]) -> None:
    def run_all(task: Any, folders: Iterable[str], environment: str, slot: int) -> list[Exception]:
        steps.append((vars(task), list(folders), environment, slot))
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(worker.TrialTask, "run_all", run_all)


def test_a_worker_trains_what_it_takes_and_hears_signals_from_the_first(
    monkeypatch: pytest.MonkeyPatch, steps: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    works_as(monkeypatch, steps, [])
    with caplog.at_level(logging.INFO):
        assert worker.main() == OK
    task = {"world_size": 1, "threads": 3, "at_once": 4, "named": ("s3://x",)}
    assert steps == ["install", "read", ("logging", 2), (task, ["a", "b"], "the job", 2)]
    assert caplog.messages == ["Starting with the job as worker 2 of 4"]  # by which its log is divided


@pytest.mark.parametrize(("end", "code"), [([KeyError("dice")], FAILED), (NodeFault("no GPU"), NODE_FAULT)])
def test_the_code_of_a_worker_says_what_failed(
    monkeypatch: pytest.MonkeyPatch, steps: list[Any], end: Exception | list[Exception], code: int
) -> None:
    works_as(monkeypatch, steps, end)
    assert worker.main() == code


@pytest.mark.parametrize(("requeue", "code"), [(True, REQUEUE), (False, INTERRUPTED)])
def test_a_worker_that_has_saved_leaves_at_once(
    monkeypatch: pytest.MonkeyPatch, steps: list[Any], requeue: bool, code: int
) -> None:
    works_as(monkeypatch, steps, Interrupted("saved", requeue))
    with pytest.raises(Left) as left:
        worker.main()
    assert left.value.args == (code,)


def test_who_leaves_at_once_has_said_all(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(worker.os, "_exit", lambda code: done.append(code))
    monkeypatch.setattr(worker.sys.stdout, "flush", lambda: done.append("stdout"))
    monkeypatch.setattr(worker.sys.stderr, "flush", lambda: done.append("stderr"))
    worker.leave_at_once(75)
    assert done == ["stdout", "stderr", 75]
