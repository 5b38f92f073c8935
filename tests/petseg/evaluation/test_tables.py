"""The numbers of an evaluation by name, in words and in its first table: which rule, which size, which class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from petseg.evaluation.protocol import Measured, Protocol, by_class, by_rule
from petseg.evaluation.report import Evaluated, calibration_line, protocol_in_words, scores_table
from petseg.metrics.calibration import BinaryCalibration
from petseg.metrics.pixels import PerImage, Scores
from petseg.run.parts import Parts
from petseg.targets.target import Target
from shards.classes import ClassEntry

PICTURES = 2


def target_of(*names: str, rules: tuple[str, ...] = ("",), rule: str = "") -> Target:
    classes = tuple(ClassEntry(name, value, (value, 0, 0)) for value, name in enumerate(names))
    return Target("named", classes, {name: np.zeros((1, 256), np.uint8) for name in rules}, rule, labels={"any": 0})


def scores(*right: int) -> Scores:
    """Of each class so many of 10 pixels are found; boundary IoU and HD95 are made of the number too."""
    counts = np.array([[[n, 0, 10 - n] for n in right]] * PICTURES, np.int64)
    outlines = np.array([[n / 20 for n in right]] * PICTURES)
    return Scores(counts, outlines, 2 * outlines)


def measured_of(target: Target, network: dict[str, Scores], native: dict[str, Scores]) -> Measured:
    calibration = BinaryCalibration(torch.device("cpu"))
    calibration.add(torch.tensor([[[[0.0, 0.0]], [[2.0, -1.0]]]]), torch.tensor([[[1, 1]]]))
    own = network[target.rule]
    per_image = PerImage(counts=own.counts, loss=np.array([0.25, 0.75]), pixels=40)
    return Measured(target, per_image, network, native, calibration)


LANES = target_of("background", "road", rules=("edge_in", "edge_out"), rule="edge_out")
STREET = target_of("background", "road", "car")
BY_RULE = measured_of(
    LANES, {"edge_in": scores(5), "edge_out": scores(6)}, {"edge_in": scores(7), "edge_out": scores(8)}
)
BY_CLASS = measured_of(STREET, {"": scores(5, 0)}, {"": scores(6, 0)})


def parts_of(target: Target) -> Parts:
    data = SimpleNamespace(image_size_px="64x96")
    split = [None] * PICTURES
    return cast(Parts, SimpleNamespace(target=target, config=SimpleNamespace(data=data), splits={"test": split}))


def done_of(measured: Measured, **protocol: Any) -> Evaluated:
    return Evaluated("test", "best", "step-4", Protocol(**protocol), "", measured, None)


def rows(table: Any) -> list[tuple[str, ...]]:
    return list(zip(*(list(column.cells) for column in table.columns), strict=True))


def test_the_own_rule_is_bold_among_the_rules_of_either_size() -> None:
    table = scores_table(parts_of(LANES), done_of(BY_RULE), {"protocol": "in words"})
    assert table.title == "test: in words"
    assert [column.header for column in table.columns] == [
        "size", "", "Dice", "Dice, set", "IoU", "IoU, set", "boundary IoU", "HD95 px",
    ]  # fmt: skip
    assert rows(table) == [
        ("64x96 px", "in", "0.6667", "0.6667", "0.5000", "0.5000", "0.2500", "0.50"),
        ("64x96 px", "out", "0.7500", "0.7500", "0.6000", "0.6000", "0.3000", "0.60"),
        ("native", "in", "0.8235", "0.8235", "0.7000", "0.7000", "0.3500", "0.70"),
        ("native", "out", "0.8889", "0.8889", "0.8000", "0.8000", "0.4000", "0.80"),
    ]
    assert [row.style for row in table.rows] == ["", "bold", "", "bold"]
    assert [column.justify for column in table.columns] == ["left", "left", *["right"] * 6]
    assert table.caption == "Dice of calling every pixel road: 0.4000"  # 2 x 10 / (10 + 40)


def test_one_rule_has_no_column() -> None:
    table = scores_table(parts_of(STREET), done_of(BY_CLASS), {"protocol": ""})
    assert [row[:2] for row in rows(table)] == [("64x96 px", "0.3333"), ("native", "0.3750")]
    assert [row.style for row in table.rows] == ["", ""]
    assert [column.justify for column in table.columns] == ["left", *["right"] * 6]
    assert str(table.caption).startswith("Dice of calling every pixel the same class, the best for that: ")


@pytest.mark.parametrize(
    ("target", "protocol", "words"),
    [
        (LANES, {}, "edge=out, 64x96 px, 2 pictures"),
        (STREET, {"tta": "flips"}, "mean of 2 classes, 64x96 px, 2 pictures, TTA flips"),
        (STREET, {"keep_largest": True}, "mean of 2 classes, 64x96 px, 2 pictures, largest part of each mask"),
        (target_of("background", "road"), {}, "64x96 px, 2 pictures"),
    ],
)
def test_a_protocol_in_words(target: Target, protocol: dict[str, Any], words: str) -> None:
    assert protocol_in_words(parts_of(target), done_of(BY_RULE, **protocol)) == words


def test_numbers_without_a_prefix_are_those_of_the_own_rule() -> None:
    found = BY_RULE.metrics("test", temperature=None)
    means = ("dice", "iou", "dice_dataset", "iou_dataset", "boundary_iou", "hd95_px")
    prefixes = ("", "edge_in/", "edge_out/", "native/", "native/edge_in/", "native/edge_out/")
    expected = {f"test/{prefix}{name}" for prefix in prefixes for name in means}
    assert set(found) == expected | {"test/loss", "test/one_class_dice", "test/ece"}
    dice = {prefix: found[f"test/{prefix}dice"] for prefix in prefixes}
    shares = [0.75, 2 / 3, 0.75, 16 / 18, 14 / 17, 16 / 18]
    assert dice == pytest.approx(dict(zip(prefixes, shares, strict=True)))
    assert found["test/native/hd95_px"] == pytest.approx(0.8)
    assert found["test/loss"] == 0.5
    assert found["test/one_class_dice"] == pytest.approx(0.4)


def test_a_temperature_adds_the_error_of_divided_logits() -> None:
    plain, found = (BY_RULE.metrics("val", temperature) for temperature in (None, 2.0))
    assert found.keys() - plain.keys() == {"val/temperature", "val/ece_scaled"}
    assert found["val/temperature"] == 2.0
    # called with 0.88 and 0.73, one of two rightly; divided by 2, with 0.73 and 0.62
    confidence = 1 / (1 + np.exp([-2.0, -1.0, -1.0, -0.5]))
    as_is, divided = (abs(1 - a) / 2 + abs(0 - b) / 2 for a, b in (confidence[:2], confidence[2:]))
    assert found["val/ece"] == pytest.approx(as_is)
    assert found["val/ece_scaled"] == pytest.approx(divided, abs=1e-3)


def test_each_class_that_is_anywhere_has_numbers_of_its_own_at_either_size() -> None:
    found = BY_CLASS.metrics("test", None)
    assert found["test/class/road/dice"] == pytest.approx(2 / 3)
    assert found["test/native/class/road/dice"] == pytest.approx(0.75)
    assert found["test/class/car/dice"] == 0  # in the truth, and never called
    assert not [name for name in found if "background" in name]
    assert by_rule(BY_CLASS.network) == by_class(LANES, BY_RULE.own) == {}
    nowhere = Scores(np.zeros((1, 2, 3), np.int64), np.ones((1, 2)), np.zeros((1, 2)))
    assert by_class(STREET, nowhere) == {}


def test_without_a_val_split_the_line_has_the_error_alone() -> None:
    line = calibration_line(done_of(BY_RULE), {"test/ece": 0.12345})
    assert line == "expected calibration error 0.1235; no val split to fit a temperature on"
