"""Recipes: what is in them, and how flags depart from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.recipes import read_recipe, recipe_names
from petseg.run_folder.single_run import parse_command


def test_the_recipes_are_configs() -> None:
    assert recipe_names() == ["best", "fast", "lab"]
    for name in recipe_names():
        config = with_values(RunConfig(), read_recipe(name))
        assert config.data.image_size_px == 256
        assert config.train.mixed_precision == "bf16"
    assert read_recipe("best")["train.epochs"] > read_recipe("fast")["train.epochs"]


def test_a_flag_departs_from_the_recipe() -> None:
    command = parse_command(["--recipe", "fast", "--train.epochs", "7", "--out", "somewhere"], None)
    assert command.run == with_values(RunConfig(), read_recipe("fast") | {"train.epochs": 7})
    assert command.out == Path("somewhere")
    assert command.recipe == "fast"
    assert parse_command(["--train.epochs", "7"], None).run == with_values(RunConfig(), {"train.epochs": 7})


def test_a_file_of_ones_own_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[train]\nepochs = 3\n[model]\narch = "resnet34_unet"\n')
    assert parse_command(["--recipe", str(path)], None).run.train.epochs == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[train]\nepoch = 3", r"mine.toml: there is no config field 'train.epoch'; near it: train.epochs"),
        ("[train]\nepochs = 0", r"mine.toml: train.epochs = 0: must be at least 1"),
        ("[train\n", r"mine.toml: Expected"),
        ("train = 3", r"mine.toml: there is no config field 'train'"),
    ],
)
def test_faults_of_a_recipe_name_its_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_recipe(str(path))


def test_an_unknown_recipe_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--recipe 'fats': choose one of best, fast, lab, or a file that ends in \.toml"
    ):
        read_recipe("fats")
    with pytest.raises(ValueError, match=r"there is no such file in /"):
        read_recipe(str(tmp_path / "none.toml"))
