"""The target that a run keeps in its folder, and the words and classes that follow from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from petseg.config import DataConfig
from petseg.targets import TARGET_NAME
from petseg.targets.pets import IMPLIED_WORDS, KIND_WORDS
from petseg.targets.target import (
    Target,
    implied_target,
    load_target,
    merged,
    num_classes_of,
    packed_target,
    resolve_target,
    save_target,
)
from petseg.targets.words import Words
from shards.cause import Cause
from shards.classes import IGNORE_VALUE, ClassEntry, ClassTable
from shards.command import Failure
from shards.manifest import THREE_VALUES, Manifest, Source

CLASSES = (
    ClassEntry("background", 0, (0, 0, 0)),
    ClassEntry("road", 1, (1, 2, 3)),
    ClassEntry("car", 2, (200, 100, 50)),
)
STREET = Manifest(source=Source("street", "", {}), packer={}, splits={}, shards=(), classes=ClassTable(CLASSES))
THREE = Manifest(source=Source("three", "", dict(THREE_VALUES)), packer={}, splits={}, shards=())


def store_of(manifest: Manifest, keys: tuple[str, ...] = ()) -> Any:
    samples = [SimpleNamespace(key=key) for key in keys]
    shards = (SimpleNamespace(name="train-000000.tar"),)
    listed = SimpleNamespace(**{**vars(manifest), "shards": shards}, mask_values=manifest.mask_values)
    return SimpleNamespace(manifest=listed, location="data/set", index=lambda shard: samples)


def by_kind() -> Target:
    """Two kinds, two rules and labels of its own: nothing is as in another target."""
    tables = np.full((2, 2, 256), IGNORE_VALUE, np.uint8)
    tables[0, :, 7], tables[1, :, 7], tables[:, 0, 5], tables[:, 1, 5] = 0, 0, 1, 2
    rules = {"edge_in": tables[0], "edge_out": tables[1]}
    return Target("finer", CLASSES, rules, "edge_out", ("one", "other"), "finer", {"thing": 5, "rest": 7})


def saved(target: Target, folder: Path) -> Target:
    save_target(target, folder)
    kept = load_target(folder)
    assert kept is not None
    return kept


def test_every_field_of_a_target_comes_back(tmp_path: Path) -> None:
    target = by_kind()
    kept = saved(target, tmp_path)
    tables = {name: table.tolist() for name, table in target.rules.items()}
    assert {name: table.tolist() for name, table in kept.rules.items()} == tables
    assert all(table.dtype == np.uint8 for table in kept.rules.values())
    assert replace(kept, rules=target.rules) == target
    assert np.array_equal(kept.table, target.rules["edge_out"])
    assert json.loads((tmp_path / TARGET_NAME).read_text())["format_version"] == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content["rules"]["edge_in"].pop(),
        lambda content: content["rules"]["edge_in"][1].pop(),
        lambda content: content["rules"]["edge_in"][0].__setitem__(9, 3),
        lambda content: content["rules"]["edge_in"][0].__setitem__(9, 254),
        lambda content: content["rules"]["edge_in"][0].__setitem__(9, 256),
        lambda content: content.update(rule="edge_between"),
        lambda content: content.update(kinds=["one"]),
        lambda content: content.update(labels={"thing": "many"}),
        lambda content: content.update(classes=content["classes"][:1]),
        lambda content: content.pop("by"),
    ],
)
def test_a_kept_target_that_contradicts_itself_is_damaged(tmp_path: Path, damage: Any) -> None:
    save_target(by_kind(), tmp_path)
    content = json.loads((tmp_path / TARGET_NAME).read_text())
    damage(content)
    (tmp_path / TARGET_NAME).write_text(json.dumps(content))
    with pytest.raises(Failure, match=rf"^{tmp_path}/target\.json is damaged \(") as error:
        load_target(tmp_path)
    assert error.value.cause is Cause.DATA


def test_a_link_is_no_kept_target(tmp_path: Path) -> None:
    save_target(by_kind(), tmp_path)
    (tmp_path / TARGET_NAME).rename(tmp_path / "elsewhere")
    (tmp_path / TARGET_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Failure, match="damaged"):
        load_target(tmp_path)


def test_a_run_keeps_what_it_learns_and_refuses_a_set_of_other_classes(tmp_path: Path) -> None:
    save_target(replace(packed_target(DataConfig(), STREET), name="as it was"), tmp_path)
    assert resolve_target(DataConfig(target="gone.toml"), store_of(STREET), tmp_path).name == "as it was"
    other = ClassTable((*CLASSES[:2], replace(CLASSES[2], name="bus")))
    with pytest.raises(ValueError, match="was trained on") as error:
        resolve_target(DataConfig(), store_of(replace(STREET, classes=other)), tmp_path)
    assert str(error.value) == (
        f"{tmp_path} was trained on masks of 0 background, 1 road, 2 car, 255 ignored, and those of data/set have "
        "0 background, 1 road, 2 bus, 255 ignored: choose a shard set with the same classes"
    )
    (tmp_path / TARGET_NAME).unlink()
    assert resolve_target(DataConfig(), store_of(STREET), tmp_path).name == "as_packed"


@pytest.mark.parametrize(
    ("names", "counted", "is_binary"),
    [
        (("background", "road"), (1,), True),
        (("road", "background"), (0,), False),
        (("road", "car"), (0, 1), False),
        (("background", "road", "car"), (1, 2), False),
        (("road", "background", "car"), (0, 2), False),
    ],
)
def test_all_classes_but_the_background_count(
    names: tuple[str, ...], counted: tuple[int, ...], is_binary: bool
) -> None:
    classes = tuple(ClassEntry(name, value, (0, 0, 0)) for value, name in enumerate(names))
    target = Target("any", classes, {"": np.zeros((1, 256), np.uint8)}, "")
    assert (target.counted, target.is_binary, len(target), target.names) == (counted, is_binary, len(names), names)


@pytest.mark.parametrize(("names", "listed"), [((), "none"), (("road",), "road"), (("background",), "background")])
def test_a_target_of_one_class_is_refused(names: tuple[str, ...], listed: str) -> None:
    classes = tuple(ClassEntry(name, value, (0, 0, 0)) for value, name in enumerate(names))
    with pytest.raises(ValueError, match=rf"^data\.target = 'any' has the classes {listed}: two are needed, one not "):
        Target("any", classes, {}, "")


def test_the_words_of_a_target_are_those_of_its_set() -> None:
    implied, three = implied_target(), packed_target(DataConfig(), THREE)
    assert (implied.is_implied, implied.has_table, implied.words) == (True, False, IMPLIED_WORDS)
    assert (three.is_implied, three.has_table, three.words) == (False, False, KIND_WORDS)
    street = packed_target(DataConfig(), STREET)
    assert (street.is_implied, street.has_table, street.words) == (False, True, Words())
    assert [one.floor_name for one in (implied, three, street)] == ["all_pet_dice", "one_class_dice", "one_class_dice"]


@pytest.mark.parametrize("chosen", ["fg", "bg", "ignore"])
def test_the_implied_target_is_trained_by_the_chosen_rule(chosen: str) -> None:
    data = DataConfig(border=chosen)  # type: ignore[arg-type]
    for target in (implied_target(chosen=chosen), resolve_target(data, store_of(THREE))):
        assert target.rule == f"border_{chosen}"
        assert list(target.rules) == ["border_fg", "border_bg", "border_ignore"]
        assert target.labels == THREE_VALUES
    with pytest.raises(ValueError, match=r"^data\.border is 'none'$"):
        implied_target(chosen="none")


def test_labels_are_those_of_the_set_and_not_the_usual_ones() -> None:
    source = Source("other", "", {"pet": 9, "background": 4, "border": 6})
    target = resolve_target(DataConfig(target="trimap"), store_of(replace(THREE, source=source)))
    assert target.table[0, [4, 9, 6, 1]].tolist() == [0, 1, 2, IGNORE_VALUE]
    assert implied_target(source.values, "bg").table[0, [4, 9, 6, 255]].tolist() == [0, 1, 0, IGNORE_VALUE]


def test_kinds_need_keys_that_name_them() -> None:
    keys = ("Bengal_1", "pug_1", "pug_2")
    target = resolve_target(DataConfig(target="breed", border="bg"), store_of(THREE, keys))
    assert (target.name, target.by, target.kinds, target.rule) == ("breed", "breed", ("Bengal", "pug"), "border_bg")
    assert target.rows_of(keys).tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="Sphynx") as error:
        target.rows_of([*keys, "Sphynx_1"])
    assert str(error.value) == (
        "Sphynx_1 is of the breed Sphynx, which is none of the 2 that this run learns: choose a shard set without it"
    )
    foreign = store_of(replace(THREE, packer={"foreign": True}), keys)
    for store in (foreign, store_of(THREE, ("pug_1", "pug_2"))):
        with pytest.raises(ValueError, match=r"^data\.target = 'breed' needs the keys of .*: data/set has others"):
            resolve_target(DataConfig(target="breed"), store)


@pytest.mark.parametrize(
    ("target", "manifest", "number"),
    [
        ("auto", None, 2),
        ("auto", THREE, 2),
        ("auto", STREET, 3),
        ("pet", None, 2),
        ("trimap", None, 3),
        ("as_packed", None, 3),
        ("as_packed", STREET, 3),
        ("species", THREE, 3),
        ("coarse.toml", None, 3),
        ("coarse.toml", STREET, 2),
    ],
)
def test_classes_are_counted_without_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, manifest: Manifest | None, number: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("coarse.toml").write_text('[classes]\nrest = ["background"]\nstreet = ["road", "car"]\n')
    assert num_classes_of(DataConfig(target=target), manifest) == number


def test_merged_classes_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "coarse.toml"
    path.write_text('[classes]\nmoving = ["car"]\nbackground = ["road", "background"]\n')
    target = merged(str(path), packed_target(DataConfig(), STREET))
    assert (target.name, target.names, target.counted, target.is_binary) == (
        "coarse.toml", ("moving", "background"), (0,), False,
    )  # fmt: skip
    assert target.table[0, [0, 1, 2, 3, 255]].tolist() == [1, 1, 0, IGNORE_VALUE, IGNORE_VALUE]
    assert [one.colour for one in target.classes] == [(200, 100, 50), (1, 2, 3)]  # of the first that is named
    assert target.labels == STREET.mask_values
    three = merged(str(path), replace(packed_target(DataConfig(), STREET), labels=THREE_VALUES))
    assert three.labels == THREE_VALUES


UNSAID, PUT_THEM = "does not say what becomes of", "put them in a class, or in `ignore`"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[classes]\na = ["road", "car"]\n', f" {UNSAID} background: {PUT_THEM}"),
        ('[classes]\na = ["road"]\n', f" {UNSAID} background, car: {PUT_THEM}"),
        ('[classes]\na = ["sky"]\n', ": 'sky' is no class of the shard set (background, road, car)"),
        ('[classes]\na = ["car"]\nb = ["car", "car"]\n', " names car 3 times"),
        ("[classes]\na = []\n", ": class a is [], not a list of classes of the shard set"),
        ("[classes]\na = [1]\n", ": class a is [1], not a list of classes of the shard set"),
        ("[classes]\n", ': expected [classes], each as `name = ["A", "B"]`, and `ignore`, a list of names'),
        ('ignored = []\n[classes]\na = ["car"]\n', ": expected [classes], each as"),
        ('ignore = "car"\n[classes]\na = ["road"]\n', ": expected [classes], each as"),
    ],
)
def test_a_file_that_does_not_fit_is_told_in_full(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "coarse.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"coarse\.toml") as error:
        merged(str(path), packed_target(DataConfig(), STREET))
    assert str(error.value).startswith(f"{path}{said}")
