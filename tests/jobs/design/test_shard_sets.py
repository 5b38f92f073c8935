"""The shard sets of a sweep: what is noted of them, which cells train on which, and which are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.design import shard_sets as module
from jobs.design.expansion import Cell
from jobs.design.shard_sets import (
    ShardSet,
    ShardSets,
    read_shard_sets,
    require_known_sets,
    typed_locations,
)
from jobs.design.space import Distribution
from jobs.design.spec import Spec
from petseg.config import RunConfig
from petseg.config.values import trial_id, with_values
from shards.classes import ClassTable
from shards.manifest import Manifest


def cell(shards: str, **axes: Any) -> Cell:
    values = {name.replace("__", "."): value for name, value in axes.items()}
    return Cell({"data.shards": shards, **values}, with_values(RunConfig(), {"data.shards": shards}))


@pytest.fixture
def two(manifest: Manifest) -> ShardSets:
    return ShardSets({"a": manifest, "b": replace(manifest, hash="b" * 64)})


def test_each_cell_has_the_manifest_that_its_config_names(two: ShardSets, manifest: Manifest) -> None:
    assert two.first == ("a", manifest)
    second = cell("b").config
    assert two.of(second).hash == "b" * 64
    assert two.trial_id(second) == trial_id(second, "b" * 64)
    assert [(note.location, note.hash) for note in two.notes] == [("a", manifest.hash), ("b", "b" * 64)]


def test_cells_are_trials_by_their_id_each_once(two: ShardSets) -> None:
    first, again, second = cell("a"), cell("a"), cell("b")
    assert two.by_id([first, second, again]) == {two.trial_id(first.config): first, two.trial_id(second.config): second}
    with pytest.raises(ValueError, match="give the same trial") as refused:
        two.by_id([cell("a", model__weights="x.pt", train__seed=1), cell("a", model__weights="y.pt", train__seed=1)])
    identifier = two.trial_id(first.config)
    assert str(refused.value) == (
        f"model.weights = 'x.pt' and 'y.pt' give the same trial ({identifier}), whose numbers would stand for both: "
        "leave one of them out"
    )


def test_what_is_noted_of_a_set_tells_it_without_the_set(manifest: Manifest) -> None:
    note = ShardSet.of(manifest, "https://me:word@host/x?token=1")
    assert note.location == "https://host/x"
    assert (note.hash, note.source, note.is_synthetic) == (manifest.hash, manifest.source.name, True)
    assert note.num_samples == {name: split.num_samples for name, split in manifest.splits.items()}
    assert (note.attribution, note.near_duplicates) == (manifest.source.attribution, None)
    assert (note.num_classes, "num_classes" in note.content()) == (0, False)  # as earlier versions wrote it
    assert ShardSet(**note.content()) == note
    table: Any = ClassTable(("five", "classes", "that", "are", "known"))  # type: ignore[arg-type]
    other = ShardSet.of(replace(manifest, classes=table, source=replace(manifest.source, name="photos")), "x")
    assert (other.num_classes, other.content()["num_classes"], other.is_synthetic) == (5, 5, False)


@pytest.mark.parametrize(("location", "looks"), [("here", True), ("https://host/x", False)])
def test_near_duplicates_are_looked_up_in_folders_alone(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, location: str, looks: bool
) -> None:
    asked: list[Any] = []

    def load(folder: Path, manifest_hash: str) -> Any:
        asked.append((folder, manifest_hash))
        return type("Found", (), {"counts": {"train val": 2}})

    monkeypatch.setattr(module, "load_near_duplicates", load)
    assert ShardSet.of(manifest, location).near_duplicates == ({"train val": 2} if looks else None)
    assert asked == [(module.folder_of(location), manifest.hash)] * looks

    def fail(folder: Path, manifest_hash: str) -> None:
        raise ValueError("damaged")

    monkeypatch.setattr(module, "load_near_duplicates", fail)
    assert ShardSet.of(manifest, location).near_duplicates is None


def read_from(monkeypatch: pytest.MonkeyPatch, manifests: dict[str, Manifest]) -> list[Any]:
    """Manifests are read from here; returns what is read."""
    asked: list[Any] = []

    def read(location: str, cache_dir: str, cache_gb: float) -> Manifest:
        asked.append((location, cache_dir, cache_gb))
        return manifests[location]

    monkeypatch.setattr(module, "read_manifest", read)
    return asked


def test_each_set_is_read_once_in_the_order_of_the_cells(two: ShardSets, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = read_from(monkeypatch, dict(two.manifests))
    data = RunConfig().data
    assert list(read_shard_sets([cell("b"), cell("a"), cell("b")]).manifests) == ["b", "a"]
    assert asked == [(name, data.cache_dir, data.cache_gb) for name in "ba"]


def test_one_set_under_two_names_is_refused(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    read_from(monkeypatch, {"https://me:word@host/a": manifest, "b": manifest})
    with pytest.raises(ValueError, match="hold the same shard set") as refused:
        read_shard_sets([cell("https://me:word@host/a"), cell("b")])
    told = f"data.shards: https://host/a and b hold the same shard set ({manifest.hash[:10]}), so their cells"
    assert str(refused.value).startswith(told)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_set_without_a_split_to_train_or_to_validate_on_is_refused(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    less = replace(manifest, splits={name: one for name, one in manifest.splits.items() if name != split})
    read_from(monkeypatch, {"https://me:word@host/a": less})
    with pytest.raises(ValueError, match=rf"^https://host/a has no samples in its split '{split}'"):
        read_shard_sets([cell("https://me:word@host/a")])
    without_test = replace(manifest, splits={name: manifest.splits[name] for name in ("train", "val")})
    read_from(monkeypatch, {"a": without_test})
    read_shard_sets([cell("a")])


@pytest.mark.parametrize(
    ("spec", "words", "typed"),
    [
        (Spec("x", {}, {"data.shards": "a"}), ["train.seed=1"], set()),
        (Spec("x", {}, {"data.shards": "a"}), ["data.shards=a"], {"a"}),
        (Spec("x", {"data.shards": ["a", "b"]}), ["train.seed=1", "data.shards=a,b"], {"a", "b"}),
        (Spec("x", {}, method="random", space={"data.shards": Distribution("categorical", ("c",))}),
         ["data.shards=c"], {"c"}),
        (Spec("x", {}, {"data.shards": "a"}), ["data.shards_of=1"], set()),
    ],
)  # fmt: skip
def test_sets_that_the_user_types_are_told_from_those_of_the_file(
    spec: Spec, words: Sequence[str], typed: set[str]
) -> None:
    assert typed_locations(spec, words) - {"None"} == typed


def test_the_user_is_asked_about_each_set_of_the_file_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(module, "require_known", lambda *given: asked.append(given))
    require_known_sets([cell("b"), cell("a"), cell("b"), cell("c")], {"a"}, Path("x.yaml"))
    advice = "name them by --set data.shards=..., or "
    assert asked == [("b", "x.yaml", advice), ("c", "x.yaml", advice)]
