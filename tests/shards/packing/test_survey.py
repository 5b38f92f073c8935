"""The class table that is written from the masks alone."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

from shards.labels.rules import ClassRule, LabelRules, rules_of
from shards.packing.survey import render, write_table
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
