"""A run's name in wandb: handed in when it is trained, and kept in its folder for whatever is done with it later."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run_folder.layout import claim_folder, load_config
from petseg.tracking.naming import RUN_NAME, RunName, label_of, name_of_run, read_name, save_name, single_name
from petseg.training.loop import Terms, train

HASH = "0" * 64
NAME = RunName("lab-01", "lab", tags=("unet", "seed0"), label="unet", program="x.py", resend="`rm -rf /` sends it")


def test_a_run_is_trained_and_found_under_the_name_that_was_handed_in(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny(train__epochs=1, train__test=False)
    train(config, tmp_path, Terms(NAME))
    assert name_of_run(tmp_path, config) == replace(NAME, resend="")


def test_a_run_resumed_without_a_name_keeps_its_own(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = tiny(train__epochs=1, train__test=False)
    save_name(NAME, tmp_path)
    train(config, tmp_path)
    assert name_of_run(tmp_path, config) == replace(NAME, resend="")


def test_a_run_without_a_name_is_known_by_its_identity(tmp_path: Path) -> None:
    config = RunConfig()
    claim_folder(config, HASH, tmp_path)
    identifier = load_config(tmp_path)["trial_id"]
    assert name_of_run(tmp_path, config) == single_name(identifier, config)
    assert (name_of_run(tmp_path, config).id, name_of_run(tmp_path, config).group) == (identifier, "")


def test_the_advice_is_not_kept_in_the_folder(tmp_path: Path) -> None:
    save_name(NAME, tmp_path)
    kept = json.loads((tmp_path / RUN_NAME).read_text())
    assert "resend" not in kept
    (tmp_path / RUN_NAME).write_text(json.dumps(kept | {"resend": "`rm -rf /` sends it"}))
    assert read_name(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"id": 3}', '{"id": "x", "tags": "y"}', '{"id": "x", "tags": [3]}', '{"id": "x", "y": 1}']
)
def test_a_file_that_is_no_name_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN_NAME).write_text(text)
    assert read_name(tmp_path) is None


def test_a_full_disk_does_not_end_a_run_for_its_name(tmp_path: Path) -> None:
    save_name(NAME, tmp_path / "nowhere")
    assert read_name(tmp_path / "nowhere") is None


def test_the_remedy_names_the_file_and_the_command() -> None:
    assert RunName("x").remedy("metrics.jsonl") == "metrics.jsonl has everything"
    assert NAME.remedy("a.json") == "a.json has everything, `rm -rf /` sends it"


def test_a_label_has_the_model_and_the_varied_fields() -> None:
    config = with_values(RunConfig(), {"augment.policy": "elastic", "optim.lr": 0.0003, "data.shards": "/a/b/small/"})
    assert single_name("x", config).label == "unet elastic seed 0"
    varied = ["model.arch", "train.seed", "optim.lr", "data.shards", "no.longer.a.field"]
    assert label_of(config, varied) == "unet elastic lr 0.0003 shards small seed 0"
    secret = with_values(config, {"data.shards": "https://me:word@host"})
    assert label_of(secret, varied) == "unet elastic lr 0.0003 shards host seed 0"


@given(st.text(max_size=300))
def test_ids_are_valid_for_wandb_and_stable(text: str) -> None:
    found = RunName(text).wandb_id
    assert re.fullmatch(r"[A-Za-z0-9_.-]{0,128}", found)
    assert RunName(found).wandb_id == found
