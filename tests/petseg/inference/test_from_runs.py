"""What a weights file takes over from its run besides the weights."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from petseg.inference.from_runs import _attribution, _evaluations, _mean, interval, numbers_of
from petseg.run_folder.layout import evaluation_name
from shards.manifest import MANIFEST_NAME, load_manifest


def test_the_interval_of_a_mean_by_hand() -> None:
    values = [0.5, 0.7, 0.9, 0.9]
    half = 1.96 * statistics.stdev(values) / 2
    assert interval(values) == pytest.approx([0.75 - half, 0.75 + half])
    assert interval([0.5]) is None
    assert interval([]) is None


def test_the_numbers_of_an_evaluation_are_kept_without_the_pictures() -> None:
    content: dict[str, Any] = {
        "protocol": "as measured", "tta": "none", "metrics": {"val/dice": 0.5, "val/temperature": math.inf},
        "dice": {"a": 0.5, "b": 0.7}, "worst": [],
    }  # fmt: skip
    found = numbers_of(content)
    assert found["dice_interval_95"] == pytest.approx(interval([0.5, 0.7]))
    assert {name: value for name, value in found.items() if name != "dice_interval_95"} == {
        "protocol": "as measured", "tta": "none", "metrics": {"val/dice": 0.5},
    }  # fmt: skip
    assert numbers_of({}) == {"metrics": {}, "dice_interval_95": None}


def test_only_evaluations_of_the_same_checkpoint_count(tmp_path: Path) -> None:
    """The one of train is of another checkpoint, and that of test is damaged."""
    for split, checkpoint in (("val", "step-2"), ("train", "step-1")):
        content = {"checkpoint": checkpoint, "metrics": {f"{split}/dice": 0.5}}
        (tmp_path / evaluation_name(split)).write_text(json.dumps(content))
    (tmp_path / evaluation_name("test")).write_text("{")
    found = _evaluations(tmp_path, "step-2")
    assert list(found) == ["val"]
    assert found["val"]["metrics"] == {"val/dice": 0.5}


def test_the_attribution_is_that_of_the_runs_manifest(pet_shards: Path, tmp_path: Path) -> None:
    assert _attribution(tmp_path) == ""
    shutil.copy(pet_shards / MANIFEST_NAME, tmp_path)
    assert _attribution(tmp_path) == load_manifest(pet_shards).source.attribution != ""
    (tmp_path / MANIFEST_NAME).write_text("{")
    assert _attribution(tmp_path) == ""


def test_means_keep_types_and_the_first_runs_counters() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0]), "h": torch.tensor([1.0]).half(), "n": torch.tensor(3)},
        {"w": torch.tensor([3.0, 6.0]), "h": torch.tensor([2.0]).half(), "n": torch.tensor(9)},
    ]
    found = _mean(states)
    assert found["w"].tolist() == [2.0, 4.0]
    assert found["h"].dtype == torch.float16
    assert found["h"].tolist() == [1.5]
    assert found["n"].tolist() == 3
