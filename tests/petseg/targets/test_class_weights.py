"""Weights of classes: given, or from the pixels that packing has counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from petseg.targets.class_weights import class_weights, train_pixels
from petseg.targets.target import Target
from shards.classes import IGNORE_VALUE, ClassEntry
from shards.manifest import Manifest
from tests.targets import PET, pets_target

TRIMAP = pets_target("trimap")
PACKED = tuple(ClassEntry(name, value, (value, 0, 0)) for value, name in enumerate(("road", "car", "bus", "sky")))


def merged() -> Target:
    """Cars and buses are one class, and the sky does not count."""
    table = np.full((1, 256), IGNORE_VALUE, np.uint8)
    table[0, :3] = [0, 1, 1]
    return Target("merged", (PACKED[0], ClassEntry("vehicle", 1, (1, 0, 0))), {"": table}, "", labels={})


def manifest_of(pixels: Any, classes: Any = PACKED) -> Manifest:
    return cast(Manifest, SimpleNamespace(packer={"labels": {"pixels": {"train": pixels}}}, classes=classes))


def test_pixels_are_counted_by_the_targets_own_classes() -> None:
    counted = manifest_of([600, 30, 70, 1000, 9])  # the last number is of pixels that do not count
    assert train_pixels(merged(), counted).tolist() == [600, 100]


def test_a_class_as_rare_as_the_median_weighs_one() -> None:
    weights = class_weights("frequency", merged(), manifest_of([600, 30, 70, 1000, 9]))
    assert weights is not None
    assert weights.dtype == np.float32
    assert weights.tolist() == pytest.approx([350 / 600, 350 / 100])
    weights = class_weights("frequency", merged(), manifest_of([600, 0, 0, 1000, 9]))
    assert weights is not None
    assert weights.tolist() == [1.0, 1.0]  # there are no vehicles to weigh


@pytest.mark.parametrize(
    "manifest",
    [
        manifest_of([1, 2, 3, 4]),
        manifest_of([0, 0, 0, 0, 9]),
        manifest_of(None),
        manifest_of(["a", 2, 3, 4, 5]),
        manifest_of([1, 2, 3, 4, 5], classes=None),
        SimpleNamespace(packer={}, classes=PACKED),
    ],
)
def test_a_set_whose_pixels_were_not_counted_asks_for_numbers(manifest: Any) -> None:
    with pytest.raises(ValueError, match=r"does not say how many .* each of road, vehicle, such as 1,1$"):
        class_weights("frequency", merged(), manifest)


@pytest.mark.parametrize("setting", ["1", "1,2,3,4", "1,2,x", "1,2,-1", "1,2,inf", "1,2,nan", "0,0,0", ""])
def test_numbers_that_do_not_fit_the_classes_are_refused(setting: str) -> None:
    with pytest.raises(
        ValueError, match=r"or 3 numbers of 0 or more, separated by commas: of background, pet, border$"
    ):
        class_weights(setting, TRIMAP, manifest_of(None))


def test_numbers_are_taken_as_they_are() -> None:
    weights = class_weights("1, 0,2.5", TRIMAP, manifest_of(None))
    assert weights is not None
    assert weights.tolist() == [1.0, 0.0, 2.5]
    assert class_weights("none", PET, manifest_of(None)) is None
