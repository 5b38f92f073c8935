"""Which files are pairs: the layouts of known data sets, and what leads astray."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.labels.rules import load_rules, rules_of
from shards.sources.patterns import Pair, PairOptions, SplitOptions, choose_splits, pairs_again, read_pairs

RULES = rules_of({"class": [{"name": "a", "values": [0]}, {"name": "b", "values": [1]}]})


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def pairs_of(root: Path, images: str, masks: str, rules=RULES, **splits: object) -> dict[str, Pair]:
    """The pairs by name."""
    options = PairOptions(f"{root}/{images}", f"{root}/{masks}", SplitOptions(**splits))
    return {pair.name: pair for pair in read_pairs(options, rules).samples}


@pytest.mark.parametrize(
    ("files", "images", "masks", "splits"),
    [
        (  # CamVid
            ["images/train/0001TP_1.jpg", "masks/train/0001TP_1.png", "images/val/E5_2.jpg", "masks/val/E5_2.png"],
            "images/{split}/{key}.jpg", "masks/{split}/{key}.png",
            {"0001TP_1": "train", "E5_2": "val"},
        ),
        (  # Cityscapes: a folder per city, and suffixes
            [
                "leftImg8bit/train/ulm/ulm_0_leftImg8bit.png", "gtFine/train/ulm/ulm_0_gtFine_labelIds.png",
                "gtFine/train/ulm/ulm_0_gtFine_color.png", "leftImg8bit/val/bonn/bonn_1_leftImg8bit.png",
                "gtFine/val/bonn/bonn_1_gtFine_labelIds.png",
            ],
            "leftImg8bit/{split}/{key}_leftImg8bit.png", "gtFine/{split}/{key}_gtFine_labelIds.png",
            {"ulm/ulm_0": "train", "bonn/bonn_1": "val"},
        ),
        (  # ADE20K
            [
                "images/training/ADE_train_1.jpg", "annotations/training/ADE_train_1.png",
                "images/validation/ADE_val_1.jpg", "annotations/validation/ADE_val_1.png",
            ],
            "images/{split}/{key}.jpg", "annotations/{split}/{key}.png",
            {"ADE_train_1": "train", "ADE_val_1": "val"},
        ),
        (  # ISIC: the split within a folder's name
            [
                "ISIC_Training_Data/I_1.jpg", "ISIC_Training_GroundTruth/I_1_segmentation.png",
                "ISIC_Test_Data/I_2.jpg", "ISIC_Test_GroundTruth/I_2_segmentation.png",
            ],
            "ISIC_{split}_Data/{key}.jpg", "ISIC_{split}_GroundTruth/{key}_segmentation.png",
            {"I_1": "train", "I_2": "test"},
        ),
        (  # nnU-Net, with splits that count their pictures alike
            ["imagesTr/c_1_0000.png", "labelsTr/c_1.png", "imagesTs/c_1_0000.png", "labelsTs/c_1.png"],
            "images{split}/{key}_0000.png", "labels{split}/{key}.png",
            {"Tr/c_1": "train", "Ts/c_1": "test"},
        ),
        (  # masks beside their pictures, keys with dots, spaces and umlauts, any suffix
            ["train/a.b 1.jpg", "train/a.b 1_mask.png", "val/ü.png", "val/ü_mask.png"],
            "{split}/{key}.*", "{split}/{key}_mask.png",
            {"a.b 1": "train", "ü": "val"},
        ),
        (  # the key twice
            ["train/s1/s1.png", "train/s1/s1_m.png", "val/s2/s2.png", "val/s2/s2_m.png"],
            "{split}/{key}/{key}.png", "{split}/{key}/{key}_m.png",
            {"s1": "train", "s2": "val"},
        ),
    ],
    ids=["camvid", "cityscapes", "ade20k", "isic", "nnunet", "beside", "twice"],
)  # fmt: skip
def test_layouts(tmp_path: Path, files: list[str], images: str, masks: str, splits: dict[str, str]) -> None:
    touch(tmp_path, *files)
    assert {name: pair.split for name, pair in pairs_of(tmp_path, images, masks).items()} == splits


def test_shares_and_groups(tmp_path: Path) -> None:
    names = [f"p{patient}_s{number}" for patient in range(10) for number in range(4)]
    touch(tmp_path, *(f"images/{name}.jpg" for name in names), *(f"masks/{name}.jpg" for name in names))
    splits = {"val_share": 0.2, "test_share": 0.1, "group_by": r"p\d+"}
    pairs = pairs_of(tmp_path, "images/{key}.jpg", "masks/{key}.jpg", **splits)
    of_patient = {pair.group: {p.split for p in pairs.values() if p.group == pair.group} for pair in pairs.values()}
    assert sorted(len(found) for found in of_patient.values()) == [1] * 10
    assert [sum(pair.split == split for pair in pairs.values()) for split in ("train", "val", "test")] == [28, 8, 4]
    with pytest.raises(ValueError, match=r"all pictures would be in train.*--val-share"):
        pairs_of(tmp_path, "images/{key}.jpg", "masks/{key}.jpg")


def test_lists(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{folder}/{key}" for folder in ("images", "masks") for key in ("a.png", "b.png", "c.png")))
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "val.txt").write_text("b\n")
    lists = (tmp_path / "train.txt", tmp_path / "val.txt")
    options = PairOptions(f"{tmp_path}/images/{{key}}.png", f"{tmp_path}/masks/{{key}}.png", SplitOptions(lists))
    listing = read_pairs(options, RULES)
    assert {pair.key: pair.split for pair in listing.samples} == {"a": "train", "b": "val"}
    assert listing.oddities == {"unlisted_picture": ("c",)}
    (tmp_path / "val.txt").write_text("b\nx\n")
    with pytest.raises(ValueError, match="1 names in the lists have no picture with a mask: x"):
        read_pairs(options, RULES)


def test_what_is_unpaired_is_left_out_and_named(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/a.jpg", "images/val/b.jpg", "images/val/c.jpg")
    touch(tmp_path, "masks/train/a.png", "masks/val/b.png", "masks/val/d.png")
    options = PairOptions(f"{tmp_path}/images/{{split}}/{{key}}.jpg", f"{tmp_path}/masks/{{split}}/{{key}}.png")
    assert read_pairs(options, RULES).oddities == {
        "picture_without_mask": (f"{tmp_path}/images/val/c.jpg",),
        "mask_without_picture": (f"{tmp_path}/masks/val/d.png",),
    }


def test_masks_beside_their_pictures_are_no_pictures(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.png", "train/a_mask.png", "val/b.png", "val/b_mask.png", "val/c.png")
    options = PairOptions(f"{tmp_path}/{{split}}/{{key}}.png", f"{tmp_path}/{{split}}/{{key}}_mask.png")
    assert read_pairs(options, RULES).oddities == {"picture_without_mask": (f"{tmp_path}/val/c.png",)}


def test_a_group_in_two_folders_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/v1_a.jpg", "images/val/v1_b.jpg", "masks/train/v1_a.png", "masks/val/v1_b.png")
    with pytest.raises(ValueError, match="group 'v1' is divided"):
        pairs_of(tmp_path, "images/{split}/{key}.jpg", "masks/{split}/{key}.png", group_by="v[0-9]")


def test_two_pictures_of_one_key(tmp_path: Path) -> None:
    touch(
        tmp_path, "images/train/a.jpg", "images/train/a.png", "images/val/b.jpg", "masks/train/a.png", "masks/val/b.png"
    )
    with pytest.raises(ValueError, match=r"two pictures have the key 'a': .*a\.jpg and .*a\.png"):
        pairs_of(tmp_path, "images/{split}/{key}.*", "masks/{split}/{key}.png")


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ("images/{key}/../../secret.jpg", "masks/{key}.png", r"no \.\. may follow a placeholder"),
        ("images/*/../{key}.jpg", "masks/{key}.png", r"no \.\. may follow"),
        ("images/{class}/{key}.jpg", "masks/{key}.png", r"--images takes \{key\} and \{split\}"),
        ("images/a.jpg", "masks/{key}.png", r"--images .* needs \{key\}"),
        ("images/{name}.jpg", "masks/{key}.png", r"\{name\} is none of \{key\}, \{split\}, \{class\}"),
        ("images/{key}.jpg", "masks/{split}/{key}.png", r"--masks takes \{split\} only where --images has it"),
        ("nowhere/{key}.jpg", "masks/{key}.png", "nowhere is not a folder"),
        ("images/{key}.bmp", "masks/{key}.png", r"no picture and mask match .*0 pictures, 1 masks.*such as 'a'"),
        ("images/{split}/{key}.jpg", "masks/{key}.png", r"\{split\} is 'holiday' for 'a'"),
    ],
)
def test_wrong_patterns(tmp_path: Path, images: str, masks: str, message: str) -> None:
    touch(tmp_path, "images/holiday/a.jpg", "masks/a.png")
    with pytest.raises(ValueError, match=message):
        pairs_of(tmp_path, images, masks)


def test_links_out_of_the_folder_are_refused_and_folders_that_are_links_left_alone(tmp_path: Path) -> None:
    touch(tmp_path, "secret/s.jpg", "set/images/train/a.jpg", "set/images/val/b.jpg")
    touch(tmp_path, "set/masks/train/a.png", "set/masks/val/b.png", "set/masks/val/c.png")
    images, masks = "set/images/{split}/{key}.jpg", "set/masks/{split}/{key}.png"
    (tmp_path / "set/images/val/inside.jpg").symlink_to(tmp_path / "set/images/val/b.jpg")
    (tmp_path / "set/images/loop").symlink_to(tmp_path / "set/images")
    (tmp_path / "set/images/val/folder.jpg").symlink_to(tmp_path / "secret")
    assert set(pairs_of(tmp_path, images, masks)) == {"a", "b"}
    (tmp_path / "set/images/val/c.jpg").symlink_to(tmp_path / "secret/s.jpg")
    with pytest.raises(ValueError, match=r"c\.jpg is a link out of .*set/images, to .*secret/s\.jpg"):
        pairs_of(tmp_path, images, masks)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/a.jpg", "masks/train/a.png", "images/val/b.jpg", "masks/val/b.png")
    for name in (b"images/val/\xff.jpg", b"masks/val/\xff.png"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).touch()
    with pytest.raises(ValueError, match="is not UTF-8: rename the file"):
        pairs_of(tmp_path, "images/{split}/{key}.jpg", "masks/{split}/{key}.png")


def test_one_file_per_class(tmp_path: Path) -> None:
    rules = rules_of({"class": [{"name": "skin", "rest": True}, {"name": "mole"}, {"name": "hair"}]})
    for split, key in (("train", "a"), ("val", "b")):
        touch(tmp_path, f"images/{split}/{key}.jpg")
        for number, name in enumerate(("mole", "hair")):
            path = tmp_path / "masks" / name / split / f"{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            layer = np.zeros((4, 6), np.uint8)
            layer[number : number + 2, 1:3] = 255
            Image.fromarray(layer).save(path)
    pairs = pairs_of(tmp_path, "images/{split}/{key}.jpg", "masks/{class}/{split}/{key}.png", rules)
    mask = pairs["a"].read_mask(np.zeros((4, 6, 3), np.uint8))
    assert mask.pixels.tolist() == [[0, 1, 1, 0, 0, 0], [0, 2, 2, 0, 0, 0], [0, 2, 2, 0, 0, 0], [0] * 6]
    assert mask.oddities == ("overlap",)
    assert mask.observed.pixels == (18, 2, 4, 0)
    assert (mask.observed.name, mask.observed.split) == (str(pairs["a"].masks[0][1]), "train")
    with pytest.raises(ValueError, match=r"'hair' is none of the classes skin, mole"):
        pairs_of(
            tmp_path, "images/{split}/{key}.jpg", "masks/{class}/{split}/{key}.png",
            rules_of({"class": [{"name": "skin", "rest": True}, {"name": "mole"}]}),
        )  # fmt: skip


def test_the_manifest_gets_no_path_of_this_machine(many_scenes) -> None:
    options = PairOptions(many_scenes.images, many_scenes.masks)
    settings = read_pairs(options, load_rules(many_scenes.table)).settings
    assert settings["pairs"]["images"] == "images/{split}/{key}.jpg"
    assert settings["pairs"]["masks"] == "masks/{split}/{key}.png"
    assert str(many_scenes.root) not in str(settings)


def test_splits_are_told_in_one_way(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("a\nb\n")
    options = SplitOptions(lists=(path,))
    with pytest.raises(ValueError, match=r"--images has \{split\}, and --splits-from lists the splits too"):
        choose_splits(["a", "b"], ["train", "val"], True, options)


def test_a_pattern_may_begin_outside_of_the_folder_it_is_typed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "images/train/a.jpg", "images/val/b.jpg", "masks/a.png", "masks/b.png", "work/here")
    monkeypatch.chdir(tmp_path / "work")
    options = PairOptions("../images/{split}/{key}.jpg", "../masks/{key}.png")
    assert [pair.files()[0] for pair in read_pairs(options, RULES).samples] == [
        Path("../images/train/a.jpg"), Path("../images/val/b.jpg"),
    ]  # fmt: skip


def test_two_masks_of_one_key_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/a.jpg", "images/val/b.jpg", "masks/a.png", "masks/a.tif", "masks/b.png")
    with pytest.raises(ValueError, match=r"^two masks have the key 'a': .*/masks/a\.png and .*/masks/a\.tif$"):
        pairs_of(tmp_path, "images/{split}/{key}.jpg", "masks/{key}.*")


def test_one_key_in_two_splits_puts_the_split_before_all_names(tmp_path: Path) -> None:
    touch(tmp_path, "images/Tr/a.jpg", "images/Tr/b.jpg", "images/val/a.jpg", "masks/a.png", "masks/b.png")
    pairs = pairs_of(tmp_path, "images/{split}/{key}.jpg", "masks/{key}.png")
    assert {name: (pair.key, pair.split) for name, pair in pairs.items()} == {
        "Tr/a": ("Tr-x2fa", "train"), "Tr/b": ("Tr-x2fb", "train"), "val/a": ("val-x2fa", "val"),
    }  # fmt: skip


@pytest.mark.parametrize("nearest", [True, False])
def test_pairs_are_found_again_by_what_the_manifest_says(tmp_path: Path, nearest: bool) -> None:
    """With all that tells a sample's bytes: split, group, files, classes and the treatment of other values."""
    for number in range(6):
        touch(tmp_path, f"images/v{number // 2}_{number}.jpg", f"masks/v{number // 2}_{number}.png")
    splits = SplitOptions(val_share=0.3, group_by="^v[0-9]", seed=5)
    options = PairOptions(f"{tmp_path}/images/{{key}}.jpg", f"{tmp_path}/masks/{{key}}.png", splits, nearest)
    listing = read_pairs(options, RULES)
    assert listing.rules == RULES
    assert (listing.source.name, listing.source.attribution, listing.source.values) == ("pictures", "", {})
    assert listing.settings == {
        "pairs": {
            "images": "images/{key}.jpg", "masks": "masks/{key}.png", **splits.content(tmp_path),
            "takes_nearest": nearest,
        },
        "classes": RULES.content(),
    }  # fmt: skip
    first = listing.samples[0]
    assert first.files() == (tmp_path / "images" / "v0_0.jpg", tmp_path / "masks" / "v0_0.png")
    assert first.row() == ["v0_0", first.split, "v0_0", "v0"]
    assert first.facts() == {"name": "v0_0", "group": "v0"}
    assert {pair.takes_nearest for pair in listing.samples} == {nearest}
    again = pairs_again({**listing.settings, "seed": 5}, tmp_path)
    assert again == listing
    other = pairs_again({**listing.settings, "seed": 6}, tmp_path)
    assert [pair.split for pair in other.samples] != [pair.split for pair in listing.samples]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["images/b.jpg"], r"\(1 pictures, 0 masks\); pictures have keys such as 'b'$"),
        (["images/b.jpg", "masks/c.png"],
         r"\(1 pictures, 1 masks\); pictures have keys such as 'b' and masks have keys such as 'c'$"),
        ([], r"\(0 pictures, 0 masks\); folders that are links are left alone$"),
    ],
)  # fmt: skip
def test_where_nothing_is_paired_keys_of_both_sides_are_told(tmp_path: Path, files: list[str], said: str) -> None:
    touch(tmp_path, "images/x", "masks/x", *files)
    with pytest.raises(ValueError, match=said):
        pairs_of(tmp_path, "images/{key}.jpg", "masks/{key}.png")
