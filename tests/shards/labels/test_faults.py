"""Ten faults are planted, and each is named with its count, an example and what to do."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.classes import ClassEntry, ClassTable
from shards.command import FAILED, WRONG_USE, run_command
from shards.labels.faults import KINDS, Fault, LabelFaults, Tally, class_faults, mask_faults, set_faults, table_faults
from shards.labels.observed import Observed
from shards.labels.rules import rules_of
from shards.manifest import Manifest, Source, load_manifest
from shards.near_duplicates.note import load_near_duplicates
from shards.pack import main, pack


def bytes_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def faults_of(scenes, tmp_path: Path) -> dict[str, Fault]:
    """The faults that packing names, whether it stops at them or not."""
    try:
        faults = pack(scenes.config(tmp_path / "set")).faults
    except LabelFaults as error:
        faults = error.faults
    assert all(fault.examples and fault.what and fault.advice for fault in faults)
    return {fault.kind: fault for fault in faults}


def test_values_in_no_class(many_scenes, tmp_path: Path) -> None:
    for number in range(7):
        mask = many_scenes.mask()
        mask[5, 5:8] = 77
        many_scenes.add(f"bad_{number}", mask=mask)
    fault = faults_of(many_scenes, tmp_path)["unknown_value"]
    assert fault.count == 7
    assert len(fault.examples) == 5
    assert "bad_0.png: 3 pixels of no class, 77" in "".join(sorted(fault.examples))
    assert "and 2 more" in str(fault)


def test_255_where_1_was_said(many_scenes, tmp_path: Path) -> None:
    many_scenes.table.write_text("[[class]]\nname='a'\nvalues=[0]\n[[class]]\nname='b'\nvalues=[1]\n")
    for path in many_scenes.root.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)).clip(0, 1) * 255).save(path)
    assert faults_of(many_scenes, tmp_path)["scaled_binary"].count == 30


def test_a_table_that_is_off_by_one(many_scenes, tmp_path: Path) -> None:
    text = "".join(f"[[class]]\nname='c{value}'\nvalues=[{value}]\n" for value in range(1, 12))
    many_scenes.table.write_text(text)
    assert faults_of(many_scenes, tmp_path)["off_by_one"].count == 30


def test_masks_saved_with_losses(many_scenes, tmp_path: Path) -> None:
    many_scenes.table.write_text("[[class]]\nname='a'\nvalues=[0]\n[[class]]\nname='b'\nvalues=[255]\n")
    for path in many_scenes.root.rglob("*.png"):
        binary = Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255)
        lossy = Image.open(io.BytesIO(bytes_of(binary, "JPEG", quality=60)))
        lossy.save(path)
    assert faults_of(many_scenes, tmp_path)["lossy"].count == 30
    outcome = pack(many_scenes.config(tmp_path / "set", lossy_masks="nearest"))
    assert outcome.manifest.packer["oddities"]["lossy"] == 30
    assert {fault.kind for fault in outcome.faults} == {"lossy"}


def test_masks_resized_by_interpolation(many_scenes, tmp_path: Path) -> None:
    for path in many_scenes.root.rglob("*.png"):
        small = Image.open(path).resize((30, 20), Image.Resampling.NEAREST)
        small.resize((48, 32), Image.Resampling.BILINEAR).save(path)
    assert faults_of(many_scenes, tmp_path)["interpolated"].count >= 25


def test_sizes_that_differ(many_scenes, tmp_path: Path) -> None:
    many_scenes.add("turned", mask=many_scenes.mask().T)
    fault = faults_of(many_scenes, tmp_path)["size_differs"]
    assert fault.count == 1
    assert fault.examples[0].endswith("turned.png is 32 x 48, its picture 48 x 32: one of them is turned")


def test_masks_of_one_value(many_scenes, tmp_path: Path) -> None:
    many_scenes.add("empty_1", mask=np.zeros((32, 48), np.uint8))
    many_scenes.add("empty_2", "val", mask=np.full((32, 48), 9, np.uint8))
    fault = faults_of(many_scenes, tmp_path)["one_value"]
    assert fault.count == 2
    assert any("all pixels are ignored" in example for example in fault.examples)


def test_picture_and_mask_swapped(scenes, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, split in enumerate(("train", "train", "val")):
        photo = Image.fromarray(rng.integers(0, 256, (64, 96, 3), np.uint8))
        picture, mask = scenes.add(str(number), split)
        shutil.copyfile(mask, picture)
        photo.save(mask)
        Image.open(picture).resize((96, 64), Image.Resampling.NEAREST).save(picture, "PNG")
    assert faults_of(scenes, tmp_path)["swapped"].count == 3


def test_near_duplicates_across_splits(many_scenes, tmp_path: Path) -> None:
    many_scenes.add("again", "val", seed=3)  # the picture of train_3
    fault = faults_of(many_scenes, tmp_path)["near_duplicate"]
    assert fault.count == 1
    assert "again" in fault.examples[0]


def test_classes_that_are_never_or_hardly_in_train(many_scenes, tmp_path: Path) -> None:
    with many_scenes.table.open("a") as file:
        file.write("[[class]]\nname='boat'\nvalues=[20]\n[[class]]\nname='bus'\nvalues=[21]\n")
        file.write("[[class]]\nname='bike'\nvalues=[22]\n")
    for split, value in (("test", 21), ("train", 22)):
        mask = many_scenes.mask()
        mask[20, 20] = value
        many_scenes.add(f"with_{value}", split, mask=mask)
    faults = faults_of(many_scenes, tmp_path)
    assert faults["absent_class"].examples == ("boat",)
    assert faults["only_in_test"].examples == ("bus, in test",)
    manifest = load_manifest(tmp_path / "set")
    known = set_faults(manifest, load_near_duplicates(tmp_path / "set", manifest.hash))
    assert {fault.kind for fault in known} == faults.keys()
    assert faults["rare_class"].examples[0].startswith("bike, in 1 pictures of train")


def test_a_table_of_another_version(many_scenes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(many_scenes.config(tmp_path / "set"))
    many_scenes.table.write_text(many_scenes.table.read_text().replace('"tree"', '"bush"'))
    words = ["--images", many_scenes.images, "--masks", many_scenes.masks, "--classes", str(many_scenes.table)]
    for more in ([], ["--check"]):
        assert (
            run_command(main, [*words, "--out", str(tmp_path / "set"), "--samples-per-shard", "8", *more]) == WRONG_USE
        )
        message = capsys.readouterr().err
        assert "other_table (1)" in message
        assert "1 is bush here, and tree in the set" in message


def test_colours_under_a_table_of_values(many_scenes, tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).choice(np.array([[255, 0, 0], [0, 0, 255]], np.uint8), (32, 48))
    many_scenes.add("colours", mask=bytes_of(Image.fromarray(rgb)))
    assert faults_of(many_scenes, tmp_path)["colours_or_values"].count == 1


def test_several_faults_and_a_broken_file_in_one_message(many_scenes, tmp_path: Path, capsys) -> None:
    many_scenes.add("turned", mask=many_scenes.mask().T)
    many_scenes.add("odd", mask=np.full((32, 48), 77, np.uint8))
    many_scenes.add("broken", mask=b"")
    config = many_scenes.config(tmp_path / "set")
    words = ["--images", config.images, "--masks", config.masks, "--classes", config.classes, "--out", str(config.out)]
    assert run_command(main, words) == FAILED
    message = capsys.readouterr().err
    assert "the labels have 2 kinds of fault" in message
    for part in ("unknown_value (1)", "odd.png", "size_differs (1)", "turned.png", "broken.png: not a readable"):
        assert part in message
    assert not config.out.exists()


def test_every_kind_says_what_to_do() -> None:
    assert all(kind.what and kind.advice for kind in KINDS.values())


def test_tallies_add_up() -> None:
    one, other = Tally(), Tally()
    one.add(Observed("a", "train", (3, 0, 1)))
    other.add(Observed("b", "train", (0, 2, 0), faults=(("one_value", "b"),)))
    other.add(Observed("c", "val", (1, 1, 0), {"7": 2}))
    one.merge(other)
    assert one.content() == {
        "pixels": {"train": [3, 2, 1], "val": [1, 1, 0]},
        "pictures": {"train": [1, 1], "val": [1, 1]},
    }
    assert one.unknown == {"7": 2}
    assert [fault.kind for fault in mask_faults(one)] == ["one_value"]


def test_unknown_values_that_no_shift_explains() -> None:
    tally = Tally()
    tally.add(Observed("a", "train", (1, 1, 1, 0), {"9": 3}, (("unknown_value", "a"),)))
    rules = rules_of({"class": [{"name": str(value), "values": [value]} for value in (1, 2, 3)]})
    assert [fault.kind for fault in mask_faults(tally, rules)] == ["unknown_value"]


def test_tables_that_differ() -> None:
    table = ClassTable((ClassEntry("a", 0, (0, 0, 0)), ClassEntry("b", 1, (0, 0, 0))))
    assert table_faults(table, table) == []
    assert table_faults(table, ClassTable(table.classes[:1]))[0].examples == ("1 is b here, and nothing in the set",)


def test_the_share_of_a_rare_class_is_that_of_all_pixels_of_train() -> None:
    table = ClassTable(
        (ClassEntry("road", 0, (0, 0, 0)), ClassEntry("car", 1, (1, 1, 1)), ClassEntry("bus", 2, (2, 2, 2)))
    )
    pixels = {"train": [99_000, 995, 5]}
    (fault,) = class_faults(table, {"pictures": {"train": [100, 100, 100]}, "pixels": pixels})
    assert (fault.kind, fault.examples) == ("rare_class", ("bus, in 100 pictures of train and 0.005% of its pixels",))


def test_a_set_without_train_has_no_rare_classes() -> None:
    table = ClassTable((ClassEntry("a", 0, (0, 0, 0)),))
    assert class_faults(table, {"pixels": {"test": [1, 0]}, "pictures": {"test": [1]}}) == []


@pytest.mark.parametrize(
    "labels",
    [None, [], {"pixels": {}}, {"pixels": 1, "pictures": 1}, {"pixels": {"train": [1]}, "pictures": {"train": [1]}},
     {"pixels": {"train": [1, "2"]}, "pictures": {"train": [0]}},
     {"pixels": {"train": [1, 2]}, "pictures": {"val": [0]}}],
)  # fmt: skip
def test_counts_of_a_stranger_are_not_believed(labels: object) -> None:
    table = ClassTable((ClassEntry("a", 0, (0, 0, 0)),))
    assert set_faults(Manifest(Source("", ""), {"labels": labels}, {}, (), 2, "", table), None) == []
    good = {"pixels": {"train": [0, 2]}, "pictures": {"train": [0]}}
    faults = set_faults(Manifest(Source("", ""), {"labels": good}, {}, (), 2, "", table), None)
    assert [fault.kind for fault in faults] == ["absent_class"]
