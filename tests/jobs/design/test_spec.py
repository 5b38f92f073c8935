import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.design.expansion import expand
from jobs.design.spec import DEFAULT_SWEEP, Spec, load_spec, parse_axes, parse_settings, parse_spec, require_name
from petseg.config.values import trial_id
from petseg.training.pruning import Hyperband

REPOSITORY = Path(__file__).parents[3]


def test_the_default_sweep_is_the_labs_six_cells_on_three_seeds() -> None:
    cells = expand(load_spec(REPOSITORY / "jobs" / "sweeps" / "lab.yaml"))
    assert len(cells) == 18
    assert {(c.config.model.arch, c.config.augment.policy) for c in cells} == {
        (arch, policy) for arch in ("unet", "resnet34_unet") for policy in ("none", "elastic", "elastic_crop")
    }
    assert {c.config.train.seed for c in cells} == {0, 1, 2}
    assert len({trial_id(c.config, "m") for c in cells}) == 18
    assert all(c.config.augment.p == 0.2 for c in cells)


def test_a_fixed_value_may_need_one_of_the_axes() -> None:
    """An encoder goes with other architectures than the default one."""
    parameters = {"model.arch": {"values": ["fpn", "linknet"]}, "model.encoder": {"value": "resnet18"}}
    cells = expand(parse_spec({"parameters": parameters}, "x"))
    assert [(c.config.model.arch, c.config.model.encoder) for c in cells] == [
        ("fpn", "resnet18"),
        ("linknet", "resnet18"),
    ]


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
        ({"parameters": {}}, "^a sweep file needs `parameters:` with at least one field$"),
        (
            {"method": "ga", "parameters": {"a": {"value": 1}}},
            "method 'ga' is not built in: choose one of grid, random",
        ),
        ({"method": "bayes", "parameters": {"a": {"value": 1}}}, "method bayes needs run_cap, the number of trials"),
        ({"run_cap": 0, "parameters": {"a": {"value": 1}}}, "run_cap = 0: must be a whole number of at least 1"),
        ({"run_cap": True, "parameters": {"a": {"value": 1}}}, "run_cap = True: must be a whole number"),
        ({"seed": -1, "parameters": {"a": {"value": 1}}}, "seed = -1: must be a whole number of at least 0"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 3}, "parameters": {"a": {"value": 1}}}, "method grid"),
        ({"parameters": {"a": {"parameters": {}}}}, "parameter a: `parameters:` needs at least one field"),
        ({"parameters": {"a": {"values": [1], "default": 3}}}, "a: 'default' does not go with categorical"),
        ({"paramaters": {}, "parameters": {"a": {"value": 1}}}, "'paramaters' is not understood"),
        (
            {"parameters": {"train.seed": {"min": 0, "max": 9}}},
            "train.seed: a grid takes `value` or `values`; int_uniform",
        ),
        ({"parameters": {"train.seed": {"values": []}}}, "parameter train.seed: values = "),
        ({"parameters": {"train.seed": 3}}, "parameter train.seed"),
        ({"metric": {"name": "val/loss", "goal": "minimize"}, "parameters": {"a": {"value": 1}}}, "are ranked by"),
        ({"metric": {"name": "val/dice", "goal": "minimize"}, "parameters": {"a": {"value": 1}}}, "are ranked by"),
    ],
)
def test_what_is_not_understood_is_named(content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_spec(content, "x")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "median"}, "type 'median': there is hyperband only"),
        ({"type": "hyperband"}, "give min_iter, or else max_iter together with s"),
        ({"type": "hyperband", "min_iter": 1, "max_iter": 9, "s": 2}, "give min_iter, or else"),
        ({"type": "hyperband", "max_iter": 9}, "give min_iter, or else"),
        ({"type": "hyperband", "max_iter": 2, "s": 1}, "leaves no rung at eta = 3"),
        ({"type": "hyperband", "min_iter": 1, "eta": 1}, "eta = 1: must be a number of at least 1.1"),
        ({"type": "hyperband", "min_iter": 0.5}, "min_iter = 0.5: must be a whole number"),
        ({"type": "hyperband", "min_iter": True}, "min_iter = True: must be a whole number"),
        ({"type": "hyperband", "min_iter": 1, "strict": "no"}, "strict = 'no': must be true or false"),
        ({"type": "hyperband", "patience": 1}, "'patience' is not understood: use type, min_iter"),
        ("hyperband", "write `early_terminate: {type: hyperband, min_iter: 3}`"),
    ],
)
def test_an_early_stop_that_is_not_understood_is_named(entry: object, message: str) -> None:
    content = {"method": "random", "run_cap": 2, "parameters": {"a": {"value": 1}}, "early_terminate": entry}
    with pytest.raises(ValueError, match=f"early_terminate.*{message}"):
        parse_spec(content, "x")


def test_a_grid_ends_at_run_cap() -> None:
    content = {"run_cap": 3, "parameters": {"train.seed": {"values": [0, 1, 2, 3, 4]}}}
    assert [cell.config.train.seed for cell in expand(parse_spec(content, "x"))] == [0, 1, 2]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "jobs" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweep_files_expand(path: Path) -> None:
    assert expand(load_spec(path))


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


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("seed: 1\nparameters:\n  train.epochs: {value: 3}\nseed: 2\n", "'seed' stands on line 1 and again on line 4"),
        (
            "parameters:\n  optim.lr: {value: 0.1}\n  train.seed: {values: [0, 1]}\n  'optim.lr': {value: 0.2}\n",
            "'optim.lr' stands on line 2 and again on line 4",
        ),
        ("parameters: {train.seed: {value: 1, value: 2}}", "'value' stands on line 1 and again on line 1"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, refusal: str) -> None:
    """yaml.safe_load takes the later one, and the user would never learn of the other."""
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"s.yaml is not YAML: the key {refusal}: keep one of them$"):
        load_spec(path)


def test_a_key_may_replace_one_that_is_merged_in(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "parameters:\n  train: {parameters: {epochs: {value: 3}, seed: {value: 1}}}\n"
        "  optim: {parameters: {lr: &lr {<<: {value: 0.1}, value: 0.2}, grad_clip: {<<: *lr, value: 0.5}}}\n"
    )
    assert load_spec(path).fixed == {"train.epochs": 3, "train.seed": 1, "optim.lr": 0.2, "optim.grad_clip": 0.5}


def test_a_flag_that_repeats_a_key_names_it() -> None:
    with pytest.raises(ValueError, match=r"--set train.seed=\{a: 1, a: 2\}: .* the key 'a' stands on line 1 and again"):
        parse_settings(["train.seed={a: 1, a: 2}"], "--set")


@pytest.mark.parametrize("flag", ["train.seed", "=3", "train.seed="])
def test_a_malformed_flag_shows_the_form(flag: str) -> None:
    with pytest.raises(ValueError, match="write --axis NAME=VALUE,VALUE"):
        parse_axes([flag.removesuffix("=3")] if flag == "=3" else [flag])


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("train.seed", [0, 1, 0], "train.seed has the value 0 twice, and"),
        ("optim.lr", ["1e-3", 0.001], "optim.lr has the value 0.001 twice, as 1e-3 and as 0.001"),
        ("train.epochs", [3, 3.0], "train.epochs has the value 3 twice, as 3 and as 3.0"),
        ("train.mixed_precision", [False, "no"], "train.mixed_precision has the value no twice, as False and as no"),
        ("model.arch", ["unet", "unet"], "model.arch has the value unet twice, and"),
    ],
)
@pytest.mark.parametrize("method", [{"method": "grid"}, {"method": "random", "run_cap": 3}])
def test_a_value_that_stands_twice_on_an_axis_is_refused(
    name: str, values: list[Any], said: str, method: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}.* both would be one trial: leave one out$"):
        parse_spec({"parameters": {name: {"values": values}}, **method}, "x")
    flag = f"{name}={','.join(str(value) for value in values)}"
    with pytest.raises(ValueError, match="twice"):
        parse_spec({"parameters": {"train.batch_size": {"value": 8}}, **method}, "x").changed(parse_axes([flag]), {})


@pytest.mark.parametrize("name", ["a", "_x", "lab 2", "v1.2+x-y", "ö", "0" * 100])
def test_a_name_is_that_of_a_folder(name: str) -> None:
    assert require_name(name, "--name") == name
    assert parse_spec({"name": name, "parameters": {"train.seed": {"value": 1}}}, "x").name == name


def test_a_whole_file_is_read_into_a_spec() -> None:
    content = {
        "name": 7, "description": "d", "program": "p", "method": "random", "run_cap": 5, "seed": 3, "project": "p",
        "metric": {"name": "val/dice", "goal": "maximize"}, "early_terminate": {"type": "hyperband", "min_iter": 3},
        "parameters": {
            "train.seed": {"min": 0, "max": 9}, "train.epochs": {"distribution": "constant", "value": 4},
            "optim": {"parameters": {"lr": {"value": 0.5}, "name": {"values": ["adam"]}}},
        },
    }  # fmt: skip
    spec = parse_spec(content, "file")
    assert (spec.name, spec.method, spec.run_cap, spec.seed) == ("7", "random", 5, 3)
    assert (spec.axes, spec.names) == ({}, ("train.seed", "optim.name"))
    assert spec.fixed == {"tracking.project": "p", "train.epochs": 4, "optim.lr": 0.5}
    assert spec.early_stopping == Hyperband(3)
    plain = parse_spec({"parameters": {"train.seed": {"values": [1]}}}, "file")
    assert plain == Spec("file", {"train.seed": [1]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "../x"}, "name '../x' cannot name a sweep"),
        ({"method": "random"}, "method random needs run_cap, the number of trials"),
        ({"run_cap": 0}, "run_cap = 0: must be a whole number of at least 1"),
        ({"seed": 1.0}, "seed = 1.0: must be a whole number of at least 0"),
        ({"parameters": {"a": {"value": 1, "values": [1]}}}, "parameter a: 'value' does not go with categorical"),
        ({"parameters": {"a": {"value": 1, "note": 2}}}, "parameter a: give `value: X`"),
        ({"parameters": {"a": {"distribution": "constant", "value": 1, "x": 2}}},
         "parameter a: distribution 'constant' is not known"),
        ({"parameters": {"a": {"parameters": {"b": 1}}}}, "parameter a.b: give `value: X`"),
        ({1: 2}, "'1' is not understood: use name, description"),
    ],
)  # fmt: skip
def test_what_a_file_may_not_say(content: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        parse_spec({"parameters": {"train.seed": {"value": 1}}} | content, "x")
    assert str(refused.value).startswith(message)


def test_files_that_are_none_are_named_with_those_that_are_ready(tmp_path: Path) -> None:
    ready = f"{DEFAULT_SWEEP.parent} has "
    for path, told in (
        (tmp_path / "none.yaml", f"no sweep file {tmp_path / 'none.yaml'}: {ready}"),
        (tmp_path, f"{tmp_path} is a folder, not a sweep file: {ready}"),
    ):
        with pytest.raises(ValueError, match="sweep file") as refused:
            load_spec(path)
        assert str(refused.value).startswith(told)
        assert "lab.yaml" in str(refused.value)
