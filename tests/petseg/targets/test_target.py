"""What labels become, by data.target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from petseg.config import DataConfig, RunConfig
from petseg.config.values import identity
from petseg.data.inputs import IGNORE_INDEX, to_classes
from petseg.data.store import LocalStore, open_store
from petseg.targets import TARGET_NAME
from petseg.targets.class_weights import class_weights
from petseg.targets.pets import BORDERS, rules_of
from petseg.targets.target import (
    Target,
    load_target,
    merged,
    num_classes_of,
    packed_target,
    resolve_target,
    save_target,
)
from shards.classes import ClassEntry, ClassTable
from shards.command import Failure
from shards.manifest import Manifest, Source

Tiny = Callable[..., RunConfig]
TRIMAP = {"pet": 1, "background": 2, "border": 3}
NAMES = ("background", "road", "pavement", "car")
STREET = Manifest(
    source=Source("street", "", {}),
    packer={"labels": {"pixels": {"train": [400, 200, 100, 0, 50]}, "pictures": {"train": [4, 4, 4, 0]}}},
    splits={},
    shards=(),
    classes=ClassTable(tuple(ClassEntry(name, i, (i, i, i)) for i, name in enumerate(NAMES))),
)


def mapped(table: np.ndarray, *labels: int, row: int | None = None) -> list[int]:
    rows = None if row is None else torch.tensor([row])
    return to_classes(torch.tensor([[labels]], dtype=torch.uint8), torch.from_numpy(table), rows).flatten().tolist()


def test_the_border_rules_of_a_trimap() -> None:
    names, rules = rules_of("pet", TRIMAP, ())
    assert names == ("background", "pet")
    assert list(rules) == [f"border_{border}" for border in BORDERS]
    assert mapped(rules["border_fg"], 1, 2, 3, 255) == [1, 0, 1, IGNORE_INDEX]
    assert mapped(rules["border_bg"], 1, 2, 3, 255) == [1, 0, 0, IGNORE_INDEX]
    assert mapped(rules["border_ignore"], 1, 2, 3, 255) == [1, 0, IGNORE_INDEX, IGNORE_INDEX]


def test_a_trimap_has_three_classes_and_a_species_one_for_each_kind_of_sample() -> None:
    names, rules = rules_of("trimap", TRIMAP, ())
    assert (names, list(rules)) == (("background", "pet", "border"), [""])
    assert mapped(rules[""], 1, 2, 3, 9) == [1, 0, 2, IGNORE_INDEX]
    names, rules = rules_of("species", TRIMAP, ("cat", "dog"))
    assert names == ("background", "cat", "dog")
    assert mapped(rules["border_fg"], 1, 2, 3, row=0) == [1, 0, 1]
    assert mapped(rules["border_bg"], 1, 2, 3, row=1) == [2, 0, 0]


def test_breeds_are_counted_without_a_look_at_the_samples(pet_shards: Path) -> None:
    data = DataConfig(target="breed")
    assert num_classes_of(data, open_store(str(pet_shards)).manifest) == num_classes_of(data, None) == 38


@pytest.mark.parametrize(
    ("name", "classes"), [("auto", 2), ("pet", 2), ("trimap", 3), ("as_packed", 3), ("species", 3)]
)
def test_the_targets_of_a_set_of_pets(pet_shards: Path, name: str, classes: int) -> None:
    store = open_store(str(pet_shards))
    data = DataConfig(shards=str(pet_shards), target=name)
    target = resolve_target(data, store)
    assert len(target) == num_classes_of(data, store.manifest) == classes
    assert target.counted == tuple(range(1, classes))
    assert target.is_binary == (classes == 2)
    assert target.rows_of(["Abyssinian_1", "pug_2"]).tolist() == ([0, 1] if name == "species" else [0, 0])


def test_the_breeds_are_those_of_the_keys(pet_shards: Path) -> None:
    target = resolve_target(DataConfig(target="breed"), open_store(str(pet_shards)))
    assert target.names[:3] == ("background", "Abyssinian", "Bengal")
    assert target.table.shape == (len(target) - 1, 256)
    assert target.rows_of(["Bengal_7", "Abyssinian_1"]).tolist() == [1, 0]


def test_a_target_that_the_set_does_not_have(pet_shards: Path) -> None:
    with pytest.raises(ValueError, match=r"data.target = 'cats': choose one of pet, trimap, species, breed, as_packed"):
        resolve_target(DataConfig(target="cats"), open_store(str(pet_shards)))
    with pytest.raises(ValueError, match=r"data.border = 'bg': this shard set has a class table"):
        packed_target(DataConfig(border="bg"), STREET)


def test_classes_as_they_were_packed() -> None:
    target = packed_target(DataConfig(), STREET)
    assert target.names == NAMES
    assert target.counted == (1, 2, 3)
    assert mapped(target.table, 0, 3, 4, 255) == [0, 3, IGNORE_INDEX, IGNORE_INDEX]


def merge(tmp_path: Path, content: str) -> Target:
    path = tmp_path / "coarse.toml"
    path.write_text(content)
    return merged(str(path), packed_target(DataConfig(), STREET))


def test_a_file_merges_and_drops_classes(tmp_path: Path) -> None:
    target = merge(tmp_path, 'ignore = ["car"]\n[classes]\nrest = ["background"]\nground = ["road", "pavement"]\n')
    assert (target.name, target.names, target.counted) == ("coarse.toml", ("rest", "ground"), (0, 1))
    assert not target.is_binary  # both classes are looked for
    assert mapped(target.table, 0, 1, 2, 3, 255) == [0, 1, 1, IGNORE_INDEX, IGNORE_INDEX]
    assert target.classes[1].colour == (1, 1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[classes]\na = ["road", "car"]\nb = ["background"]\n', "does not say what becomes of pavement"),
        ('ignore = ["sky"]\n[classes]\na = ["road"]\n', "'sky' is no class of the shard set"),
        ('ignore = ["road"]\n[classes]\na = ["road"]\n', "names road 2 times"),
        ("[classes]\na = 3\n", "class a is 3, not a list"),
        ('classes = ["road"]\n', r"expected \[classes\]"),
        ("[classes\n", "cannot be read"),
        ('[classes]\nall = ["background", "road", "pavement", "car"]\n', "two are needed"),
    ],
)
def test_a_file_that_does_not_fit_says_why(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge(tmp_path, content)


def test_the_identity_has_the_files_content(tmp_path: Path) -> None:
    path = tmp_path / "coarse.toml"
    path.write_text("[classes]\n")
    config = RunConfig(data=DataConfig(target=str(path)))
    before = identity(config, "m")["data"]["target"]
    path.write_text("[classes]\n# other\n")
    assert before.startswith("sha256:")
    assert identity(config, "m")["data"]["target"] != before
    assert "target" not in identity(RunConfig(), "m")["data"]
    with pytest.raises(ValueError, match=r"data.target = 'gone.toml': No such file"):
        identity(RunConfig(data=DataConfig(target="gone.toml")), "m")


def test_a_run_keeps_its_target(pet_shards: Path, tmp_path: Path) -> None:
    store = open_store(str(pet_shards))
    target = resolve_target(DataConfig(target="species", border="ignore"), store)
    assert load_target(tmp_path) is None
    save_target(target, tmp_path)
    kept = resolve_target(DataConfig(), store, tmp_path)
    assert (kept.names, kept.rule, kept.kinds) == (target.names, "border_ignore", ("cat", "dog"))
    assert all(np.array_equal(kept.rules[name], table) for name, table in target.rules.items())


@pytest.mark.parametrize("damage", ["{", "[]", '{"format_version": 1}', "table", "class", "next"])
def test_a_damaged_target_is_named(pet_shards: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / TARGET_NAME
    save_target(resolve_target(DataConfig(target="trimap"), open_store(str(pet_shards))), tmp_path)
    text = path.read_text()
    first = {"table": "[[", "class": "[[7, ", "next": "[[3, "}.get(damage)  # there are the classes 0, 1 and 2
    path.write_text(damage if first is None else text.replace("[[255, ", first))
    with pytest.raises(Failure, match=r"target.json is damaged"):
        load_target(tmp_path)


def test_weights_of_classes() -> None:
    target = packed_target(DataConfig(), STREET)
    assert class_weights("none", target, STREET) is None
    given = class_weights("1,2,0.5,0", target, STREET)
    assert given is not None
    assert given.tolist() == [1, 2, 0.5, 0]
    by_frequency = class_weights("frequency", target, STREET)
    assert by_frequency is not None
    assert by_frequency.tolist() == [0.5, 1.0, 2.0, 1.0]  # the median of 400, 200 and 100
    for wrong in ("1,2", "1,2,x,3", "0,0,0,0", "1,2,-1,3", "1,2,nan,3"):
        with pytest.raises(ValueError, match=r"4 numbers of 0 or more, separated by commas: of background, road"):
            class_weights(wrong, target, STREET)


def test_a_set_that_counted_no_pixels_has_no_frequencies(pet_shards: Path) -> None:
    store = LocalStore(str(pet_shards))
    with pytest.raises(ValueError, match="give a number for each of background, pet, such as 1,1"):
        class_weights("frequency", resolve_target(DataConfig(), store), store.manifest)


@pytest.mark.parametrize("name", ["auto", "as_packed"])
def test_a_set_with_a_class_table_has_the_classes_that_it_was_packed_with(name: str) -> None:
    store: Any = SimpleNamespace(manifest=STREET, location="/data/street")
    target = resolve_target(DataConfig(target=name), store)
    assert (target.names, target.counted, target.labels) == (NAMES, (1, 2, 3), STREET.mask_values)
    with pytest.raises(ValueError, match="/data/street has a class table: leave it out, choose as_packed, or name"):
        resolve_target(DataConfig(target="pet"), store)
