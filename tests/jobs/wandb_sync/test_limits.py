"""How much is sent at once, and when a run that was sent is new to wandb."""

from __future__ import annotations

import pytest

from jobs.wandb_sync.replay import Limits, Outcome


@pytest.mark.parametrize(
    ("parallel", "runs_per_s", "timeout_s", "words"),
    [
        (1, 0.01, 0.01, ""),
        (0, 1.0, 1.0, "--parallel 0: must be at least 1"),
        (1, 0.0, 1.0, "--runs-per-s 0: must be more than 0"),
        (1, float("inf"), 1.0, "--runs-per-s inf: must be more than 0"),
        (1, float("nan"), 1.0, "--runs-per-s nan: must be more than 0"),
        (1, 1.0, -2.0, "--timeout-s -2: must be more than 0"),
        (1, 1.0, float("inf"), "--timeout-s inf: must be more than 0"),
    ],
)
def test_limits_out_of_range_are_refused(parallel: int, runs_per_s: float, timeout_s: float, words: str) -> None:
    if not words:
        assert Limits(parallel, runs_per_s, timeout_s).parallel == parallel
        return
    with pytest.raises(ValueError, match=f"^{words}$"):
        Limits(parallel, runs_per_s, timeout_s)


@pytest.mark.parametrize(
    ("outcome", "ok", "is_new"),
    [
        (Outcome("a"), True, True),
        (Outcome("a", rows=1, was_there=True), True, True),
        (Outcome("a", was_there=True), True, False),
        (Outcome("a", rows=2, trouble="timeout"), False, False),
    ],
)
def test_a_run_is_new_if_wandb_got_something_of_it(outcome: Outcome, ok: bool, is_new: bool) -> None:
    assert (outcome.ok, outcome.is_new) == (ok, is_new)
