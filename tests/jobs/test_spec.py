from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.spec import Spec, expand, load_spec, parse_axes, parse_settings, parse_spec
from petseg.config import trial_id

REPOSITORY = Path(__file__).parents[2]


def test_the_default_sweep_is_the_labs_six_cells_on_three_seeds() -> None:
    cells = expand(load_spec(REPOSITORY / "jobs" / "sweeps" / "lab.yaml"))
    assert len(cells) == 18
    assert {(c.config.model.arch, c.config.augment.policy) for c in cells} == {
        (arch, policy) for arch in ("unet", "resnet34_unet") for policy in ("none", "elastic", "elastic_crop")
    }
    assert {c.config.train.seed for c in cells} == {0, 1, 2}
    assert len({trial_id(c.config, "m") for c in cells}) == 18
    assert all(c.config.augment.p == 0.2 for c in cells)


def test_nested_and_dotted_names_are_the_same() -> None:
    dotted = parse_spec({"parameters": {"model.arch": {"values": ["unet"]}, "optim.lr": {"value": "1e-4"}}}, "x")
    nested = parse_spec(
        {
            "parameters": {
                "model": {"parameters": {"arch": {"values": ["unet"]}}},
                "optim": {"parameters": {"lr": {"value": "1e-4"}}},
            }
        },
        "x",
    )
    assert expand(dotted) == expand(nested)
    assert expand(dotted)[0].config.optim.lr == 1e-4


def test_project_and_entity_reach_wandb() -> None:
    spec = parse_spec({"project": "pets", "entity": "lab", "parameters": {"model.arch": {"value": "unet"}}}, "x")
    (cell,) = expand(spec)
    assert (cell.config.tracking.project, cell.config.tracking.entity) == ("pets", "lab")


@given(st.lists(st.integers(0, 99), unique=True, min_size=1), st.lists(st.integers(1, 99), unique=True, min_size=1))
def test_the_grid_is_the_product_of_the_axes(seeds: list[int], epochs: list[int]) -> None:
    cells = expand(Spec("x", {"train.seed": seeds, "train.epochs": epochs}))
    assert [(c.config.train.seed, c.config.train.epochs) for c in cells] == [(s, e) for s in seeds for e in epochs]
    assert [c.axes for c in cells] == [{"train.seed": s, "train.epochs": e} for s in seeds for e in epochs]


def test_flags_replace_what_the_file_says() -> None:
    spec = Spec("x", {"train.seed": [0, 1], "model.arch": ["unet"]}, {"train.epochs": 9})
    changed = spec.changed(parse_axes(["train.epochs=1,2"]), parse_settings(["train.seed=5"], "--set"))
    assert changed.axes == {"model.arch": ["unet"], "train.epochs": [1, 2]}
    assert changed.fixed == {"train.seed": 5}
    again = Spec("x", {"model.arch": ["unet"], "train.seed": [0]}).changed(parse_axes(["model.arch=resnet34_unet"]), {})
    assert list(again.axes) == ["model.arch", "train.seed"]  # a replaced axis keeps its place


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"method": "grid"}, "needs `parameters:`"),
        ([], "needs `parameters:`"),
        ({"method": "bayes", "parameters": {"a": {"value": 1}}}, "method 'bayes' is not built in: choose one of grid"),
        ({"paramaters": {}, "parameters": {"a": {"value": 1}}}, "'paramaters' is not understood"),
        ({"parameters": {"train.seed": {"min": 0, "max": 9}}}, "parameter train.seed: give `value: X`"),
        ({"parameters": {"train.seed": {"values": []}}}, "parameter train.seed"),
        ({"parameters": {"train.seed": 3}}, "parameter train.seed"),
        ({"metric": {"name": "val/loss", "goal": "minimize"}, "parameters": {"a": {"value": 1}}}, "are ranked by"),
    ],
)
def test_what_is_not_understood_is_named(content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_spec(content, "x")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    with pytest.raises(ValueError, match="no sweep file"):
        load_spec(path)
    path.write_text("parameters: [")
    with pytest.raises(ValueError, match=r"s.yaml is not YAML"):
        load_spec(path)
    path.write_text("method: grid")
    with pytest.raises(ValueError, match=r"s.yaml: a sweep file needs"):
        load_spec(path)


@pytest.mark.parametrize("flag", ["train.seed", "=3", "train.seed="])
def test_a_malformed_flag_shows_the_form(flag: str) -> None:
    with pytest.raises(ValueError, match="write --axis NAME=VALUE,VALUE"):
        parse_axes([flag.removesuffix("=3")] if flag == "=3" else [flag])
