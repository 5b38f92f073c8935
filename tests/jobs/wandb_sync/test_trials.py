"""How the state of a trial reads in wandb."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.runs.trial import Trial
from jobs.state.trial_status import TrialStatus
from jobs.wandb_sync.trials import end_of
from petseg.tracking.tracker import EXIT_CODES, End


@pytest.mark.parametrize(
    ("status", "ended", "code"),
    [
        ("done", "finished", 0),
        ("pruned", "pruned", 0),
        ("failed", "failed", 1),
        ("interrupted", "interrupted", 75),
        ("planned", "failed", 1),
    ],
)
def test_states_become_ends_and_exit_codes(tmp_path: Path, status: str, ended: End, code: int) -> None:
    assert end_of(TrialStatus(Trial("x", {}, tmp_path), status)) == ended
    assert EXIT_CODES[ended] == code
