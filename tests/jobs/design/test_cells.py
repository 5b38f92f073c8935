"""A sweep file and the flags that change it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from jobs.design.cells import read_spec, require_weights
from jobs.design.expansion import expand
from jobs.design.spec import DEFAULT_SWEEP, Spec
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


FILE = "parameters: {train.seed: {values: [0]}}"


@pytest.mark.parametrize(
    ("text", "axes", "settings", "named"),
    [
        (FILE, [], ["model.weights=gone.pth"], "model.weights = 'gone.pth'"),
        (FILE, ["model.init=here.pt,gone.safetensors"], [], "model.init = 'gone.safetensors'"),
        (FILE, [], ["distill.teacher=gone.pt"], "distill.teacher = 'gone.pt'"),
        (
            "{method: random, run_cap: 2, parameters: {model.weights: {values: [none, gone.pt]}}}",
            [], [], "model.weights = 'gone.pt'",
        ),
        (FILE, [], ["model.weights=folder.pt"], "model.weights = 'folder.pt'"),
        (FILE, ["model.weights=none,imagenet,here.pt"], ["distill.teacher=here.pt"], ""),
    ],
)  # fmt: skip
def test_weights_that_are_not_there_are_named_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, axes: list[str], settings: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.pt").touch()
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ValueError, match="there is no such file in") if named else nullcontext() as refused:
        read_spec(tmp_path / "s.yaml", axes, settings)
    told = f"{named}: there is no such file in {tmp_path}: write its whole path, or make it by `"
    assert refused is None or str(refused.value).startswith(told)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("model.weights", "python -m petseg.models.weights ENCODER --out 'my w.pt'"),
        ("model.init", "python -m petseg.best RUN --out 'my w.pt'"),
        ("distill.teacher", "python -m petseg.best RUN --out 'my w.pt'"),
    ],
)
def test_the_command_that_makes_weights_is_that_of_their_kind(name: str, command: str) -> None:
    with pytest.raises(ValueError, match="no such file") as refused:
        require_weights(Spec("x", {}, {name: "my w.pt"}))
    assert str(refused.value).endswith(f"or make it by `{command}`")
