"""overrides.json: the fields that a machine forces on a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from petseg.config import RunConfig
from petseg.run_folder.layout import CONFIG_NAME, OVERRIDES_NAME, claim_folder, load_overrides, save_overrides


def test_saved_overrides_are_loaded(tmp_path: Path) -> None:
    assert load_overrides(tmp_path) == {}
    noted = {"train.accumulation_steps": 4, "train.grad_checkpointing": True}
    save_overrides(noted, tmp_path)
    assert load_overrides(tmp_path) == noted


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            '{"train.batch_size": 1, "data.shards": "x"}',
            r"overrides\.json sets data\.shards, and may change nothing but",
        ),
        ('{"trainer": 1}', r"sets trainer, and may change nothing but fields of train\.: delete it"),
        ("[]", r"holds a list, not an object\): delete it; a retry of the run notes again"),
        ("{", r"overrides\.json is damaged \(.*\): delete it"),
    ],
)
def test_a_file_that_may_not_stand_is_named(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / OVERRIDES_NAME).write_text(text)
    with pytest.raises(ValueError, match=match):
        load_overrides(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(__file__)])
def test_overrides_that_are_no_file_are_refused(tmp_path: Path, make) -> None:
    make(tmp_path / OVERRIDES_NAME)
    with pytest.raises(ValueError, match=OVERRIDES_NAME):
        load_overrides(tmp_path)


def test_a_config_that_is_a_dangling_link_is_not_replaced(tmp_path: Path) -> None:
    link = tmp_path / CONFIG_NAME
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=CONFIG_NAME):
        claim_folder(RunConfig(), "0" * 64, tmp_path)
    assert link.is_symlink()
