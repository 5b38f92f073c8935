"""A sweep file and the flags that change it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.design.cells import read_spec
from jobs.design.expansion import expand
from jobs.design.spec import DEFAULT_SWEEP
from petseg.recipes import read_recipe


def test_a_recipe_replaces_what_the_file_fixes_and_leaves_the_axes() -> None:
    spec = read_spec(DEFAULT_SWEEP, ["train.seed=7"], ["train.epochs=5"], "fast")
    recipe = read_recipe("fast")
    cells = expand(spec)
    assert len(cells) == 6
    assert {cell.config.model.arch for cell in cells} == {"unet", "resnet34_unet"}
    assert {cell.config.augment.policy for cell in cells} == {"none", "elastic", "elastic_crop"}
    for cell in cells:
        assert cell.config.train.seed == 7
        assert cell.config.train.epochs == 5
        assert cell.config.optim.name == recipe["optim.name"] == "adamw"
        assert cell.config.train.start_size_px == recipe["train.start_size_px"]


def test_an_unknown_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--recipe 'quick': choose one of best, fast, lab"):
        read_spec(DEFAULT_SWEEP, [], [], "quick")
