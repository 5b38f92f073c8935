"""The class table that is written from the masks alone."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.classes import distinct_colours
from shards.command import Failure
from shards.labels.rules import ClassRule, LabelRules, rules_of
from shards.packing import survey as survey_module
from shards.packing.options import PackConfig
from shards.packing.survey import Survey, render, survey_masks, write_table
from tests.scenes import Scenes, encode


def test_rare_values_of_masks_saved_with_losses_are_no_classes(scenes: Scenes, tmp_path: Path) -> None:
    """One pixel within a block of JPEG takes values around it, few enough that they could all be classes."""
    values = np.zeros((32, 48), np.uint8)
    values[8:24, 8:32] = 255
    for number in range(20):
        values[28, 40] = 255 if number == 0 else 0
        split = "val" if number == 1 else "train"
        scenes.add(str(number), split, mask=encode(Image.fromarray(values), "JPEG", quality=95))
    table, _ = write_table(scenes.config(tmp_path / "set", classes="auto"))
    text = table.read_text()
    assert text.count("[[class]]") == 2
    assert 'name = "background"' in text
    assert 'name = "foreground"' in text


def test_what_is_written_is_read_back() -> None:
    red, green, grey = (255, 0, 0), (0, 255, 0), (9, 9, 9)
    values = LabelRules(
        'street "7"',
        "",
        (ClassRule("road", (0, 7), (), grey), ClassRule("the rest", (), (), red, is_rest=True)),
        (255, 3),
    )
    colours = LabelRules(
        "street", "", (ClassRule("road", (), (green, grey), grey), ClassRule("car", (), (red,), red)), (), ((1, 2, 3),)
    )
    for rules in (values, colours):
        text = render(rules, ["seen in 3 pictures", ""])
        assert rules_of(tomllib.loads(text)) == rules
        assert "[[class]]  # seen in 3 pictures\n" in text


def saved(folder: Path, number: int, values: object, kind: str = "png", **options: Any) -> Path:
    path = folder / f"{number}.{kind}"
    Image.fromarray(np.asarray(values, np.uint8)).save(path, **options)
    return path


def test_what_is_in_some_masks(tmp_path: Path) -> None:
    grey = saved(tmp_path, 1, [[0, 0, 7], [0, 7, 9]])
    rgb = saved(tmp_path, 2, [[[1, 2, 3], [1, 2, 3], [0, 0, 7]]])
    assert survey_masks((grey, rgb)) == Survey(
        Counter({0: 3, 7: 3, 9: 1, 0x010203: 2}), Counter({0: 1, 7: 2, 9: 1, 0x010203: 1}), {}, 1, 2, 0
    )


def test_a_mask_with_losses_counts_by_its_most_frequent_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "MAX_DISTINCT", 2)
    few, many = saved(tmp_path, 1, [[5, 5, 5, 6]]), saved(tmp_path, 2, [[9, 5, 6, 6, 7, 7, 7]])
    found = survey_masks((few, many))
    assert (found.num_lossy, found.num_masks) == (1, 2)
    assert found.pixels == {5: 3, 6: 3, 7: 3}  # of equal ones the lower values
    assert found.masks == {5: 1, 6: 2, 7: 1}
    assert survey_masks((saved(tmp_path, 3, [range(100, 0, -1)]),)).pixels == {1: 1, 2: 1}
    assert survey_masks((saved(tmp_path, 4, np.zeros((8, 8)), "jpg"),)).num_lossy == 1


def test_the_palette_is_that_of_the_first_mask_that_has_one(tmp_path: Path) -> None:
    paths = [saved(tmp_path, 0, [[0, 1]])]
    for number, red in ((1, 10), (2, 20)):
        image = Image.fromarray(np.array([[0, 1]], np.uint8))
        image.putpalette([red, 2, 3, 4, 5, 6])
        image.save(tmp_path / f"p{number}.png")
        paths.append(tmp_path / f"p{number}.png")
    first, second = survey_masks(tuple(paths[:2])), survey_masks(tuple(paths[2:]))
    assert first.palette == {0: (10, 2, 3), 1: (4, 5, 6)}
    first.add(second)
    assert first == Survey(Counter({0: 3, 1: 3}), Counter({0: 3, 1: 3}), {0: (10, 2, 3), 1: (4, 5, 6)}, 0, 3, 0)
    (empty := Survey()).add(Survey(num_colour_masks=2, num_masks=5, num_lossy=3))
    assert (empty.num_colour_masks, empty.num_masks, empty.num_lossy) == (2, 5, 3)


def rules_of_masks(scenes: Scenes, *masks: object) -> tuple[LabelRules, list[str]]:
    for number, mask in enumerate(masks):
        scenes.add(str(number), mask=mask if isinstance(mask, bytes) else np.asarray(mask, np.uint8))
    return survey_module._pattern_rules(scenes.config(scenes.root / "set", classes="auto"))


def test_classes_and_comments_of_values(scenes: Scenes) -> None:
    rules, comments = rules_of_masks(scenes, [[0, 3, 3, 255]] * 1000, [[3, 3, 3, 3]] * 1000)
    assert (rules.name, rules.attribution) == ("scenes", "")
    assert [(one.name, one.values, one.colours) for one in rules.classes] == [
        ("background", (0,), ()),
        ("foreground", (3,), ()),
    ]
    assert (rules.ignore_values, rules.ignore_colours) == ((255,), ())
    assert comments == ["1,000 pixels (12.50%) in 1 masks", "6,000 pixels (75.00%) in 2 masks"]
    assert [one.display for one in rules.classes] == distinct_colours(2)


def test_colours_are_shown_as_they_are(scenes: Scenes) -> None:
    mask = np.array([[[255, 255, 255], [1, 2, 3], [128, 0, 64]]], np.uint8)
    rules, comments = rules_of_masks(scenes, mask)
    assert rules.classes == tuple(
        ClassRule(f"class_{number}", (), (colour,), colour)
        for number, colour in enumerate([(1, 2, 3), (128, 0, 64), (255, 255, 255)])
    )
    assert (rules.ignore_values, comments) == ((), ["1 pixels (33.33%) in 1 masks"] * 3)


@pytest.mark.parametrize(
    ("values", "names", "ignored"),
    [
        ([0, 255], ["background", "foreground"], ()),  # 255 is one of two
        ([0, 5, 255], ["background", "foreground"], (255,)),
        ([4, 5], ["class_0", "class_1"], ()),
        ([0, 1, 2], ["class_0", "class_1", "class_2"], ()),
        ([7], ["class_0"], ()),
    ],
)
def test_names_and_what_is_ignored(
    scenes: Scenes, values: list[int], names: list[str], ignored: tuple[int, ...]
) -> None:
    rules, _ = rules_of_masks(scenes, [values])
    assert ([one.name for one in rules.classes], rules.ignore_values) == (names, ignored)


def test_masks_of_two_forms_are_refused(scenes: Scenes) -> None:
    message = "^1 of 2 masks have colours, and the others values: bring them into one form first$"
    with pytest.raises(ValueError, match=message):
        rules_of_masks(scenes, [[0, 1]], np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))


def test_masks_that_are_not_there_are_named(scenes: Scenes) -> None:
    (scenes.root / "masks").mkdir()
    with pytest.raises(ValueError, match=r"^no file matches --masks '.*/masks/\{split\}/\{key\}\.png'$"):
        rules_of_masks(scenes)


def test_of_too_many_values_the_frequent_ones_are_classes(scenes: Scenes, caplog: pytest.LogCaptureFixture) -> None:
    """A value of exactly a thousandth of the pixels is one of them."""
    mask = np.full(256_000, 9, np.uint16)
    mask[:256] = 5  # a thousandth
    mask[256:511] = 6
    mask[511 : 511 + 252] = np.arange(300, 552)
    rules, _ = rules_of_masks(scenes, encode(Image.fromarray(mask.reshape(256, 1000)), "PNG"))
    assert [one.values for one in rules.classes] == [(5,), (9,)]
    (message,) = caplog.messages
    assert message == (
        "the masks have 255 different values, as after lossy saving: only those of 0.1 % of the pixels are in the "
        "table, and packing needs --lossy-masks nearest"
    )


def test_as_many_values_as_there_may_be_classes_are_all_classes(
    scenes: Scenes, caplog: pytest.LogCaptureFixture
) -> None:
    mask = np.zeros(256_000, np.uint16)
    mask[:254] = np.arange(254)
    rules, _ = rules_of_masks(scenes, encode(Image.fromarray(mask.reshape(256, 1000)), "PNG"))
    assert len(rules.classes) == 254
    assert caplog.messages == []


def test_values_of_which_none_is_frequent_are_no_classes(scenes: Scenes) -> None:
    masks = np.arange(1200, dtype=np.uint16).reshape(2, 20, 30)
    with pytest.raises(ValueError, match=r"^0 values are frequent in the masks: 1 to 254 classes are possible$"):
        rules_of_masks(scenes, *(encode(Image.fromarray(one), "PNG") for one in masks))


def test_one_file_per_class_names_the_classes(tmp_path: Path) -> None:
    for name in ("0_car", "1_car", "0_tree", "0_wheel"):
        saved(tmp_path, 0, [[0, 255]]).rename(tmp_path / f"{name}.png")
    config = PackConfig(
        images=f"{tmp_path}/images/{{key}}.jpg", masks=f"{tmp_path}/{{key}}_{{class}}.png", classes="auto"
    )
    rules, comments = survey_module._pattern_rules(config)
    assert [(one.name, one.values, one.colours, one.is_rest) for one in rules.classes] == [
        ("background", (), (), True),
        ("car", (), (), False),
        ("tree", (), (), False),
        ("wheel", (), (), False),
    ]
    assert comments == ["", "2 files", "1 files", "1 files"]
    assert [one.display for one in rules.classes] == distinct_colours(4)
    assert (rules.name, rules.attribution) == (tmp_path.name, "")
    (tmp_path / "0_tree.png").rename(tmp_path / "0_background.png")
    rules, comments = survey_module._pattern_rules(config)
    assert [(one.name, one.is_rest) for one in rules.classes] == [
        ("background", True), ("car", False), ("wheel", False)
    ]  # fmt: skip
    assert comments == ["1 files", "2 files", "1 files"]


@pytest.mark.parametrize(
    ("images", "name"),
    [
        ("camvid/images/{split}/{key}.jpg", "camvid"),
        ("/data/lab/set/images/{key}.jpg", "set"),
        ("../images/{key}.jpg", "pictures"),
        ("{split}/{key}.jpg", "pictures"),
        ("a/{split}/photos/{key}.jpg", "photos"),
        ("/{key}.jpg", "pictures"),
    ],
)
def test_a_set_is_named_by_its_folder(images: str, name: str) -> None:
    assert survey_module._name_of(images) == name


@pytest.mark.parametrize(
    ("images", "changes", "val_share"),
    [
        ("{key}.jpg", {}, 0.5),
        ("{key}.jpg", {"group_by": "x"}, 0.5),
        ("{split}/{key}.jpg", {}, 0.0),
        ("{key}.jpg", {"test_share": 0.3, "group_by": "x"}, 0.0),
        ("{key}.jpg", {"splits_from": (Path("lists"),), "group_by": "x"}, 0.0),
    ],
)
def test_the_sheet_needs_no_splits_yet(
    monkeypatch: pytest.MonkeyPatch, images: str, changes: dict[str, Any], val_share: float
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(survey_module.patterns, "read_pairs", lambda options, rules: asked.append(options))
    monkeypatch.setattr(survey_module.coco, "read_coco", lambda options, rules: asked.append(options))
    rules = LabelRules("", "", ())
    for source in ({"masks": "m", "classes": "auto"}, {"coco": "c.json"}):
        survey_module._listing(PackConfig(images=images, **source, **changes), rules)
    for options in asked:
        assert options.splits.val_share == val_share
        assert options.splits.test_share == changes.get("test_share", 0.0)
        assert options.splits.group_by == ("" if val_share else changes.get("group_by", ""))
    assert asked[0].takes_nearest  # a table can be written for masks that packing refuses


def test_the_sheet_shows_pairs_of_the_whole_set(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    class Sample:
        def __init__(self, number: int) -> None:
            self.picture = number

        def read_mask(self, picture: int) -> SimpleNamespace:
            if picture == 50:
                raise Failure("50.png is bad")
            return SimpleNamespace(pixels=-picture)

    monkeypatch.setattr(survey_module, "read_picture", lambda number: SimpleNamespace(pixels=number))
    shown = list(survey_module._readable([Sample(number) for number in range(100)]))  # type: ignore[misc]
    numbers = [0, 8, 16, 25, 33, 41, 58, 66, 75, 83, 91]
    assert shown == [(number, -number) for number in numbers]
    assert caplog.messages == ["not on the sheet: 50.png is bad"]
    assert [number for number, _ in survey_module._readable([Sample(7), Sample(8)])] == [7, 8]  # type: ignore[list-item]


def test_a_table_that_is_there_is_not_written_over(many_scenes: Scenes, tmp_path: Path) -> None:
    config = many_scenes.config(tmp_path / "set", classes="auto")
    assert write_table(config) == (tmp_path / "set" / "classes.toml", tmp_path / "set" / "classes.png")
    written = (tmp_path / "set" / "classes.toml").read_text()
    (tmp_path / "set" / "classes.png").unlink()
    with pytest.raises(
        ValueError, match=r"classes\.toml is there already: pack with --classes .*, or remove it first$"
    ):
        write_table(config)
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["classes.toml"]
    assert (tmp_path / "set" / "classes.toml").read_text() == written


def test_a_table_as_it_is_written() -> None:
    rules = LabelRules(
        'a "b" \\c', "", (ClassRule("x", (0, 7), (), (1, 2, 3)), ClassRule("y", (), (), (255, 0, 9), True)), (255, 3)
    )
    assert render(rules, ["seen", ""]) == survey_module.HEADER + (
        '\nname = "a \\"b\\" \\\\c"\nattribution = ""\nignore = [255, 3]\n'
        '\n[[class]]  # seen\nname = "x"\nvalues = [0, 7]\ndisplay = "#010203"\n'
        '\n[[class]]\nname = "y"\ndisplay = "#ff0009"\nrest = true\n'
    )
