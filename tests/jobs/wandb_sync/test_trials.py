"""How trials and single runs have ended, in the words of wandb."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.runs.trial import Trial
from jobs.state.trial_status import TrialStatus
from jobs.wandb_sync import trials
from jobs.wandb_sync.replay import Replay
from jobs.wandb_sync.trials import Target, _end_alone, end_of
from petseg.config import RunConfig
from petseg.tracking.naming import RunName
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


@pytest.mark.parametrize(
    ("files", "ended"),
    [((), "interrupted"), (("pruned.json",), "pruned"), (("result.json",), "finished"),
     (("pruned.json", "result.json"), "finished")],
)  # fmt: skip
def test_the_end_of_a_run_without_a_sweep_is_told_by_its_files(
    tmp_path: Path, files: tuple[str, ...], ended: End
) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert _end_alone(tmp_path) == ended


def test_an_evaluation_is_known_by_all_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured again with other flags it is sent again; the order of its keys does not matter."""
    monkeypatch.setattr(trials, "describe_evaluation", lambda *_: {"id": "r-val", "config": {"host": "h"}})
    monkeypatch.setattr(trials, "evaluation_summary", lambda content: {"dice": content["dice"]})
    target = Target("https://wandb.example", project="pets")

    def replay_of(**content: object) -> Replay:
        return trials.build_evaluation(tmp_path, RunName("r"), RunConfig(), content, target)

    first, again, other = (
        replay_of(split="val", dice=0.5), replay_of(dice=0.5, split="val"), replay_of(split="val", dice=0.6)
    )  # fmt: skip
    assert (first.note_path, first.summary, first.note["id"]) == (
        tmp_path / "wandb-sync-val.json",
        {"dice": 0.5},
        "r-val",
    )
    assert first.note == again.note
    assert first.note["content"] != other.note["content"]
    assert replay_of(split="test", dice=0.5).note_path == tmp_path / "wandb-sync-test.json"
