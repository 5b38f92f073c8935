"""Cells that become trials: beside which they may lie, on which set they are measured, and what is written of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.design.cells import Cells
from jobs.design.expansion import expand
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Spec
from jobs.runs.sweep_file import load_sweep, save_sweep
from jobs.runs.trial import Sweep
from jobs.runs.trials import Trials, plan_sweep, plan_trials, write_trials
from petseg.run_folder.layout import Pruned, load_config, save_pruned
from petseg.training.pruning import Hyperband
from shards.manifest import Manifest

A, B = "a" * 64, "b" * 64


@pytest.fixture
def sets(manifest: Manifest) -> ShardSets:
    """Two sets, in folders that nobody reads."""
    return ShardSets({"set/a": replace(manifest, hash=A), "set/b": replace(manifest, hash=B)})


Plan = Callable[..., Sweep]


@pytest.fixture
def plan(sets: ShardSets, tmp_path: Path) -> Plan:
    """Plans a sweep of these axes on top of what the folder holds, and saves it unless it is refused."""

    def planned(axes: dict[str, list[Any]], locations: str = "a", **more: Any) -> Sweep:
        fixed = {} if "data.shards" in axes else {"data.shards": f"set/{locations}"}
        spec = Spec("lab", axes, fixed, **more)
        known = ShardSets({f"set/{one}": sets.manifests[f"set/{one}"] for one in locations})
        sweep = plan_sweep(spec, expand(spec), known, tmp_path / "lab")
        save_sweep(sweep)
        return load_sweep(tmp_path / "lab")

    return planned


def places(sweep: Sweep) -> list[tuple[Any, ...]]:
    return [(*trial.axes.values(), sweep.hash_of(trial)[0]) for trial in sweep.trials]


def test_a_sweep_grows_by_cells_and_keeps_the_trials_that_it_has(plan: Plan) -> None:
    first = plan({"train.seed": [0, 1]})
    assert first.axes == {"train.seed": [0, 1]}
    assert {trial.manifest_hash for trial in first.trials} == {""}
    grown = plan({"train.seed": [2, 1], "train.epochs": [3]})
    assert grown.trials[:2] == first.trials
    assert [trial.axes for trial in grown.trials[2:]] == [{"train.seed": seed, "train.epochs": 3} for seed in (2, 1)]
    assert grown.axes == {"train.seed": [0, 1, 2], "train.epochs": [3]}
    assert plan({"train.seed": [0, 1]}).trials == grown.trials


def test_a_second_set_becomes_an_axis_of_all_trials(plan: Plan) -> None:
    """The first set stays the sweep's own, also where the command names only the second."""
    plan({"train.seed": [0]})
    both = plan({"train.seed": [0], "data.shards": ["set/b"]}, "b")
    assert (both.manifest_hash, both.shards, both.hashes) == (A, "set/a", (A, B))
    assert places(both) == [(0, "set/a", "a"), (0, "set/b", "b")]
    assert [trial.manifest_hash for trial in both.trials] == ["", B]
    assert both.axes == {"train.seed": [0], "data.shards": ["set/a", "set/b"]}
    assert [one.location for one in both.shard_sets] == ["set/a", "set/b"]


def test_another_set_under_the_same_name_is_refused_with_that_of_the_folder(plan: Plan, tmp_path: Path) -> None:
    plan({"train.seed": [0]})
    with pytest.raises(ValueError, match="is a sweep on another shard set") as refused:
        plan({"train.seed": [0]}, "b")
    told = f"{tmp_path / 'lab'} is a sweep on another shard set (set/a, {A[:10]}): give this one another --name"
    assert str(refused.value) == told


def test_a_set_that_was_replaced_in_its_place_is_refused_on_an_axis_too(
    plan: Plan, sets: ShardSets, tmp_path: Path
) -> None:
    plan({"train.seed": [0], "data.shards": ["set/a", "set/b"]}, "ab")
    other = ShardSets({"set/b": replace(sets.manifests["set/b"], hash="c" * 64)})
    spec = Spec("lab", {"train.seed": [0], "data.shards": ["set/b"]})
    with pytest.raises(ValueError, match=rf"another shard set \(set/b, {B[:10]}\)"):
        plan_sweep(spec, expand(spec), other, tmp_path / "lab")


def test_a_search_lies_beside_no_grid(plan: Plan, tmp_path: Path) -> None:
    plan({"train.seed": [0]})
    with pytest.raises(ValueError, match="is no grid's neighbour") as refused:
        plan({}, method="random", run_cap=1)
    assert str(refused.value).startswith(f"{tmp_path / 'lab'} holds a sweep by method grid, and a search is no grid's")


def test_what_a_sweep_stops_early_and_how_it_chooses_is_that_of_the_command(plan: Plan) -> None:
    rule = Hyperband(4)
    first = plan({"train.seed": [0]}, early_stopping=rule)
    assert (first.early_stopping, first.method, first.name) == (rule, "grid", "lab")
    assert plan({"train.seed": [0]}).early_stopping is None


@pytest.fixture
def trials(sets: ShardSets, tmp_path: Path) -> Trials:
    spec = Spec("lab", {"train.seed": [0, 1, 2]}, {"data.shards": "set/a"})
    only = ShardSets({"set/a": sets.manifests["set/a"]})
    return plan_trials(Cells(spec, tuple(expand(spec)), only), tmp_path / "lab")


def test_some_trials_of_a_sweep_are_chosen_in_its_order(trials: Trials, sets: ShardSets, tmp_path: Path) -> None:
    first, second, third = trials.sweep.trials
    assert list(trials) == [first, second, third]
    assert list(trials.only([third, first])) == [first, third]
    cells = tuple(trials.cells.values())
    spec = Spec("lab", {"train.seed": [0, 1, 2]}, {"data.shards": "set/a"})
    meant = plan_trials(Cells(spec, cells, trials.sets), tmp_path / "lab", cells[1:2])
    assert (list(meant), meant.sweep.trials) == ([second], trials.sweep.trials)


def test_only_the_chosen_trials_get_a_folder_and_name_their_set_by_its_whole_path(
    trials: Trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, second, _ = trials.sweep.trials
    write_trials(trials.only([second]))
    assert [path.name for path in (tmp_path / "lab" / "trials").iterdir()] == [second.id]
    content = load_config(second.folder)
    assert content["config"]["data"]["shards"] == str(tmp_path / "set" / "a")
    assert content["identity"]["manifest_hash"] == A
    assert len(load_sweep(tmp_path / "lab").trials) == 3


@pytest.mark.parametrize("rule", [None, Hyperband(4)])
def test_what_was_stopped_early_goes_on_once_no_rule_stops_it(trials: Trials, rule: Hyperband | None) -> None:
    trial = trials.sweep.trials[0]
    trial.folder.mkdir(parents=True)
    save_pruned(Pruned(trial.id, 4, 10, 3, 0.7, 0.6, 0.65, 16, "node9", 60.0), trial.folder)
    write_trials(replace(trials, sweep=replace(trials.sweep, early_stopping=rule)))
    assert trial.has_ended is (rule is not None)


def test_the_folder_of_another_run_is_not_overwritten(trials: Trials) -> None:
    write_trials(trials)
    path = trials.sweep.trials[0].folder / "config.json"
    content = json.loads(path.read_text())
    content["identity"]["manifest_hash"] = B
    path.write_text(json.dumps(content | {"trial_id": "f" * 10}))
    before = path.read_text()
    with pytest.raises(ValueError, match=str(path.parent)):
        write_trials(trials)
    assert path.read_text() == before
