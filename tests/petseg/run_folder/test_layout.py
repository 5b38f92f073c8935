"""Whose run a folder holds, the rows of its epochs, and the fields that a machine forces on it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from petseg.config import RunConfig
from petseg.config.values import config_to_dict, with_values
from petseg.run_folder.layout import (
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    METRICS_NAME,
    OVERRIDES_NAME,
    append_metrics,
    claim_folder,
    load_config,
    load_overrides,
    read_metrics,
    save_overrides,
)


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


def test_a_folder_holds_one_run_and_knows_it_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    claim_folder(RunConfig(), "0" * 64, folder)
    assert load_config(folder, identified=True)["config"] == config_to_dict(RunConfig())
    claim_folder(RunConfig(), "0" * 64, folder)
    with pytest.raises(ValueError, match=r"holds another run \(manifest_hash '0+' -> '1+'\): choose another folder"):
        claim_folder(RunConfig(), "1" * 64, folder)
    other = with_values(RunConfig(), {"optim.lr": 0.5, "train.seed": 7})
    with pytest.raises(ValueError, match=r"holds another run \(optim.lr .* -> 0.5, train.seed 0 -> 7\)"):
        claim_folder(other, "0" * 64, folder)
    free = with_values(RunConfig(), {"data.threads": 7})  # changes no number: the same run, as it goes on
    claim_folder(free, "0" * 64, folder)
    assert load_config(folder)["config"]["data"]["threads"] == 7


def test_checkpoints_without_their_config_are_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINTS_NAME).mkdir()
    with pytest.raises(ValueError, match=r"has checkpoints but no config\.json: choose another folder"):
        claim_folder(RunConfig(), "0" * 64, tmp_path)


def test_a_run_whose_weights_file_is_gone_is_known_by_all_else(tmp_path: Path) -> None:
    """Its checkpoints have the weights already."""
    weights, folder = tmp_path / "w.safetensors", tmp_path / "run"
    weights.write_bytes(b"weights")
    config = with_values(RunConfig(), {"model.init": str(weights)})
    claim_folder(config, "0" * 64, folder)
    before = (folder / CONFIG_NAME).read_text()
    weights.unlink()
    claim_folder(config, "0" * 64, folder)
    assert (folder / CONFIG_NAME).read_text() == before
    elsewhere = with_values(config, {"model.init": str(tmp_path / "another" / "w.safetensors")})  # gone as well
    seven = with_values(config, {"train.seed": 7})
    for other, manifest_hash in ((config, "1" * 64), (seven, "0" * 64), (elsewhere, "0" * 64)):
        with pytest.raises(ValueError, match=r"model\.init = .*w\.safetensors'"):
            claim_folder(other, manifest_hash, folder)
    weights.write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"holds another run \(model\.init 'sha256:"):
        claim_folder(config, "0" * 64, folder)


def test_a_config_needs_its_identity_where_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_text(json.dumps({"config": {"train": {}}}))
    assert load_config(tmp_path) == {"trial_id": "", "identity": {"manifest_hash": ""}, "config": {"train": {}}}
    with pytest.raises(ValueError, match=r"config\.json is damaged \(its trial_id is None\)"):
        load_config(tmp_path, identified=True)


def test_a_folder_above_runs_names_three_of_them(tmp_path: Path) -> None:
    for name in ("d", "a/x", "c", "b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / CONFIG_NAME).write_text("{}")
    named = ", ".join(str(tmp_path / name) for name in ("a/x", "b", "c"))
    with pytest.raises(ValueError, match=rf"it has no config\.json; name one of the runs in it, such as {named}$"):
        load_config(tmp_path)


def test_only_rows_of_numbers_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = [{"epoch": 1, "val/dice": 0.5}, {"epoch": 2, "val/dice": float("nan")}, {"epoch": 3, "step": 2**63 - 1}]
    bad = [
        '{"epoch": 1.0}',
        '{"epoch": true}',
        '{"step": 1}',
        "[1]",
        '{"epoch": 4, "a": "b"}',
        '{"epoch": 5, "step": 9223372036854775808}',
    ]
    for row in good[:2]:
        append_metrics(row, tmp_path)
    with (tmp_path / METRICS_NAME).open("a") as file:
        file.write("".join(f"{line}\n" for line in bad))
    append_metrics(good[2], tmp_path)
    found = read_metrics(tmp_path)
    assert [row["epoch"] for row in found] == [1, 2, 3]
    assert f"{len(bad)} of {len(bad) + 3} lines are no rows of numbers" in caplog.text
    assert read_metrics(tmp_path / "nowhere") == []


def test_half_a_last_line_is_left_out_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    append_metrics({"epoch": 1}, tmp_path)
    with (tmp_path / METRICS_NAME).open("a") as file:
        file.write('{"epoch": 2, "val')
    assert read_metrics(tmp_path) == [{"epoch": 1}]
    assert not caplog.text
