"""Signals set a flag that training reads, and end nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from petseg.training import interrupt


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1)}
    monkeypatch.setattr(interrupt, "_received", [])
    interrupt.install()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_without_a_signal_nothing_is_asked_for() -> None:
    assert (interrupt.requested(), interrupt.requeue_requested(), interrupt.received()) == (False, False, ())


@pytest.mark.parametrize(("number", "requeue"), [(signal.SIGTERM, False), (signal.SIGUSR2, True)])
def test_each_signal_asks_to_stop_and_that_of_the_time_limit_for_a_requeue(
    number: signal.Signals, requeue: bool
) -> None:
    signal.raise_signal(number)
    assert (interrupt.requested(), interrupt.requeue_requested()) == (True, requeue)


def test_signals_are_kept_in_their_order() -> None:
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR2):
        signal.raise_signal(number)
    assert interrupt.received() == (signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR2)
    assert interrupt.requeue_requested()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
