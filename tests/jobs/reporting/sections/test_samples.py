"""The val pictures of a shard set that the user names: which set is opened, and why one is not."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.reporting.sections import pictures
from jobs.reporting.sections.drawing import SIZE_PX
from jobs.reporting.sections.pictures import data_uri, lay_out
from jobs.reporting.sections.samples import Sample, ValSplit, load_facts, load_samples
from jobs.reporting.statistics.records import Group, Record
from jobs.runs.trial import Trial
from jobs.state.trial_status import TrialStatus
from petseg.data.store import LocalStore
from petseg.run_folder.layout import Result
from petseg.targets.target import implied_target
from shards.classes import IGNORE_VALUE
from shards.index import load_index
from shards.manifest import load_manifest

LARGE = "trial 0123456789 has pictures of"
RESULT = Result("x", {"val/dice": 0.5}, 1, 1, 1, 1, "node1", "cpu", 1.0, 1.0, 0.0, 1.0)


def record(config: Any, folder: Path = Path("none"), result: Result | None = RESULT) -> Record:
    return Record(TrialStatus(Trial("0123456789", {}, folder), "done"), {}, config, result, [])


def data(**values: Any) -> dict[str, Any]:
    return {"data": {"image_size_px": 64, "border": "fg"} | values}


@pytest.fixture
def keys(pet_shards: Path) -> list[str]:
    """The keys of the val split, in its order."""
    shards = load_manifest(pet_shards).of_split("val")
    return [sample.key for shard in shards for sample in load_index(pet_shards, shard.name)]


@pytest.fixture
def where(pet_shards: Path) -> ValSplit:
    return ValSplit(record(data()), load_manifest(pet_shards).hash, str(pet_shards))


def test_pictures_come_by_their_places_with_their_true_classes(
    where: ValSplit, keys: list[str], pet_shards: Path
) -> None:
    found, trouble = load_samples(where, {2: keys[2], 0: keys[0]})
    assert (list(found), trouble) == ([2, 0], "")
    store = LocalStore(str(pet_shards))
    try:
        (shard,) = store.manifest.of_split("val")
        whole = (pet_shards / shard.name).read_bytes()
        for position, sample in found.items():
            members = store.index(shard.name)[position]
            shown, labels = (
                np.asarray(Image.open(io.BytesIO(whole[one.offset : one.offset + one.num_bytes])))
                for one in (members.jpg, members.png)
            )
            assert (sample.image == shown).all()
            assert (sample.classes == implied_target(store.manifest.source.values, "fg").table[0][labels]).all()
    finally:
        store.close()


def test_the_rule_for_disputed_pixels_is_that_of_the_run(where: ValSplit, keys: list[str]) -> None:
    (counted, ignored) = (
        load_samples(replace(where, record=record(data(border=rule))), {0: keys[0]})[0][0] for rule in ("fg", "ignore")
    )
    assert counted.counted.all()
    assert not ignored.counted.all()
    assert (counted.truth[~ignored.counted]).all()
    assert (counted.truth == ignored.truth)[ignored.counted].all()


def test_a_sample_knows_which_pixels_count_and_which_are_of_the_second_class() -> None:
    one = Sample(np.zeros((1, 3, 3), np.uint8), np.array([[0, 1, IGNORE_VALUE]], np.uint8))
    assert (one.truth.tolist(), one.counted.tolist()) == ([[False, True, False]], [[True, True, False]])


def test_another_order_of_the_split_is_noticed(where: ValSplit, keys: list[str]) -> None:
    for wanted, key, place in (({0: keys[1]}, keys[1], 0), ({0: keys[0], len(keys): "x"}, "x", len(keys))):
        assert load_samples(where, wanted) == ({}, f"its val split has another order: {key} is not at place {place}")


@pytest.mark.parametrize(
    "config",
    [
        None, {}, {"data": None}, {"data": {}}, data(image_size_px="wide"), data(image_size_px=[64]),
        data(border="none such"), data(border=None),
    ],
)  # fmt: skip
def test_a_config_that_does_not_say_how_pictures_were_seen(where: ValSplit, keys: list[str], config: Any) -> None:
    told = load_samples(replace(where, record=record(config)), {0: keys[0]})
    assert told == ({}, "trial 0123456789 has no readable config.json")


@pytest.mark.parametrize(
    ("changes", "trouble"),
    [
        ({"record": record(data(image_size_px=4128))}, f"{LARGE} 4128 x 4128 px, which are not drawn"),
        ({"record": record(data(image_size_px=0))}, f"{LARGE} 0 x 0 px, which are not drawn"),
        ({"record": record(data(image_size_px="64x8192"))}, f"{LARGE} 64 x 8192 px, which are not drawn"),
        ({"shards": ""}, "a report opens no shards by itself: name their folder by --shards"),
        (
            {"shards": "https://me:hidden@host/set"},
            "the shards lie at https://host/set, from where a report fetches nothing",
        ),
        ({"manifest_hash": "0" * 64}, "{} holds another shard set than the sweep's"),
    ],
)  # fmt: skip
def test_a_set_that_is_not_opened(where: ValSplit, changes: dict[str, Any], trouble: str) -> None:
    assert load_samples(replace(where, **changes), {}) == ({}, trouble.format(where.shards))
    assert load_facts(replace(where, **changes), []) == ([], trouble.format(where.shards))


def test_a_mask_of_a_target_for_other_labels_is_not_drawn(
    where: ValSplit, keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(implied_target(), labels={"a": 7})
    monkeypatch.setattr("jobs.reporting.sections.samples.load_target", lambda folder: other)
    told = load_samples(replace(where, record=record(data(), tmp_path)), {0: keys[0]})
    assert told == ({}, f"{tmp_path / 'target.json'} was made for other labels than those of the shard set")


def overlay(folder: Path, name: str, size: tuple[int, int] = (8, 8)) -> Path:
    (folder / "overlays").mkdir(exist_ok=True, parents=True)
    Image.new("RGB", size, "teal").save(path := folder / "overlays" / f"{name}.png")
    return path


def test_a_sheet_has_a_column_for_each_picture_of_any_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell without pictures has no row, and one that lacks a picture, or has a damaged one, a gap."""
    groups = []
    for name, names in (("a", ("k1", "k2")), ("none", ()), ("b", ("k2", "k3")), ("c", ("k1",))):
        for key in names:
            overlay(tmp_path / name, key)
        groups.append(Group({"arch": name}, (record(data(), tmp_path / name),)))
    (tmp_path / "b" / "overlays" / "k3.png").write_bytes(b"no picture")
    overlay(tmp_path / "a", ".hidden")
    sheet = lay_out([*groups, Group({"arch": "waits"}, (record(None, result=None),))])
    assert (sheet.keys, sheet.left_out) == (("k1", "k2", "k3"), 0)
    assert [(row.group.label, [bool(one) for one in row.pictures]) for row in sheet.rows] == [
        ("a", [True, True, False]), ("b", [False, True, False]), ("c", [True, False, False]),
    ]  # fmt: skip
    monkeypatch.setattr(pictures, "MAX_ROWS", 2)
    monkeypatch.setattr(pictures, "MAX_COLUMNS", 1)
    cut = lay_out(groups)
    assert (cut.keys, [row.group.label for row in cut.rows], cut.left_out) == (("k1",), ["a", "b"], 1 + 2)


def test_a_picture_is_shown_small_and_a_huge_one_or_a_link_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = overlay(tmp_path, "wide", (4 * SIZE_PX, 2 * SIZE_PX))
    shown: list[tuple[int, ...]] = []
    monkeypatch.setattr(pictures, "webp_uri", lambda pixels: shown.append(pixels.shape) or "uri")
    assert data_uri(path) == "uri"
    assert shown == [(SIZE_PX // 2, SIZE_PX, 3)]
    monkeypatch.setattr(pictures, "MAX_PIXELS", 8 * SIZE_PX**2)
    assert data_uri(path) == "uri"
    monkeypatch.setattr(pictures, "MAX_PIXELS", 8 * SIZE_PX**2 - 1)
    with pytest.raises(OSError, match=r"^.*wide\.png has 768 x 384 pixels$"):
        data_uri(path)
    (tmp_path / "link.png").symlink_to(path)
    with pytest.raises(OSError, match=r"is a symbolic link"):
        data_uri(tmp_path / "link.png")
