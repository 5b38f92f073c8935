"""Histograms of confidence: their edges, pixels that do not count, and the sums of several processes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from petseg.data.inputs import IGNORE_INDEX
from petseg.metrics import calibration as calibration_module
from petseg.metrics.calibration import (
    GRID,
    NUM_BINS,
    SAMPLED,
    BinaryCalibration,
    MulticlassCalibration,
    Reliability,
    _bin_of,
    build_calibration,
)

CPU = torch.device("cpu")


def logits_of(*confidences: float, num_classes: int = 2) -> torch.Tensor:
    """(1, K, 1, n): class 1 has the confidence, and the others share the rest."""
    own = torch.tensor(confidences, dtype=torch.float64)
    rest = (1 - own) / (num_classes - 1)
    return torch.stack([own if one == 1 else rest for one in range(num_classes)])[None, :, None].log()


def test_each_number_of_classes_has_its_calibration() -> None:
    assert type(build_calibration(2, CPU)) is BinaryCalibration
    assert type(build_calibration(3, CPU)) is MulticlassCalibration


def test_a_bin_holds_its_upper_edge() -> None:
    edges = torch.tensor([0.0, 0.2, 0.2 + 1e-6, 0.4 - 1e-6, 0.6, 1.0], dtype=torch.float64)
    assert (edges * NUM_BINS)[1].item() == 3.0  # no rounding
    assert _bin_of(edges).tolist() == [0, 2, 3, 5, 8, 14]


def test_a_curve_by_hand() -> None:
    pixels, confidence, right = (np.zeros(NUM_BINS) for _ in range(3))
    pixels[[9, 14]], confidence[[9, 14]], right[[9, 14]] = [4, 6], [2.5, 5.7], [3, 3]
    curve = Reliability(pixels, confidence, right)
    assert curve.ece == pytest.approx((0.5 + 2.7) / 10)
    low, high = curve.rows()
    assert low == pytest.approx({"from": 0.6, "to": 2 / 3, "pixels": 4, "confidence": 0.625, "accuracy": 0.75})
    assert high == pytest.approx({"from": 14 / 15, "to": 1.0, "pixels": 6, "confidence": 0.95, "accuracy": 0.5})
    assert type(low["pixels"]) is int  # for JSON


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_do_not_count(num_classes: int, broken: float) -> None:
    logits = logits_of(0.9, 0.8, 0.7, num_classes=num_classes)
    logits[0, 1 if broken != -math.inf or num_classes == 2 else slice(None), 0, 1] = broken
    found = build_calibration(num_classes, CPU)
    found.add(logits, torch.tensor([[[1, 1, 0]]]))
    curve = found.reliability()
    assert curve.pixels.sum() == 2
    assert curve.right.sum() == 1
    assert curve.confidence.sum() == pytest.approx(1.6)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_a_pixel_is_right_where_its_class_has_the_largest_logit(num_classes: int) -> None:
    found = build_calibration(num_classes, CPU)
    found.add(logits_of(0.9, 0.9, 0.9, 0.1, num_classes=num_classes), torch.tensor([[[1, 0, IGNORE_INDEX, 0]]]))
    curve = found.reliability()
    others = 0.9 if num_classes == 2 else 0.3  # three classes share 0.9, and the first of them is called
    assert curve.pixels.sum() == 3
    assert curve.right.sum() == 2
    assert curve.confidence.sum() == pytest.approx(0.9 + 0.9 + others)
    assert curve.right[13] == 1 + (num_classes == 2)  # in (13/15, 14/15]


class Doubling:
    """A process whose peer has measured the same."""

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return 2 * tensor


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_histograms_of_all_processes_are_added_up(num_classes: int) -> None:
    draw = torch.Generator().manual_seed(num_classes)
    logits = 3 * torch.randn(2, num_classes, 40, 40, generator=draw)
    target = torch.randint(0, num_classes, (2, 40, 40), generator=draw)
    alone, together, reduced = (build_calibration(num_classes, CPU) for _ in range(3))
    for one, times in ((alone, 1), (together, 2), (reduced, 1)):
        for _ in range(times):
            one.add(logits, target)
    peer: Any = Doubling()
    reduced.reduce(peer)
    temperature = alone.fit_temperature()
    assert reduced.fit_temperature() == pytest.approx(temperature)
    for ours, theirs in (
        (reduced.reliability(), together.reliability()),
        (reduced.scaled(temperature), together.scaled(temperature)),
    ):
        for name in ("pixels", "confidence", "right"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-12)
    assert reduced.reliability().pixels.sum() == 2 * alone.reliability().pixels.sum() == 2 * 2 * 40 * 40
    assert reduced.reliability().ece == pytest.approx(alone.reliability().ece)


def test_the_temperature_of_several_classes_is_fitted_on_every_64th_pixel_that_counts() -> None:
    """And a temperature that the grid lacks stands for the nearest one."""
    found, target = MulticlassCalibration(CPU), torch.ones(1, 10, 30, dtype=torch.int64)
    target[0, :2] = IGNORE_INDEX
    logits = torch.zeros(1, 3, 10, 30)
    logits[0, 1] = 2.0
    found.add(logits, target)
    assert found.reliability().pixels.sum() == 240
    for temperature in (1.0, 1.02, GRID[0], GRID[-1]):
        nearest = min(GRID, key=lambda one: abs(one - temperature))
        curve = found.scaled(temperature)
        assert curve.pixels.sum() == curve.right.sum() == -(-240 // SAMPLED)
        confidence = 1 / (1 + 2 * math.exp(-2 / nearest))
        assert curve.confidence.sum() == pytest.approx(4 * confidence)
    assert found.fit_temperature() == GRID[0]  # nothing is wrong: the surer, the better


@pytest.mark.parametrize("most", [1, 61 * 3 * 2, 2**21])
def test_temperatures_do_not_hang_on_how_many_pixels_are_taken_at_once(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    draw = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 3, 32, 32, generator=draw), torch.randint(0, 3, (2, 32, 32), generator=draw)
    whole = MulticlassCalibration(CPU)
    whole.add(logits, target)
    monkeypatch.setattr(calibration_module, "MOST_LOGITS", most)
    parts = MulticlassCalibration(CPU)
    for picture in range(2):
        parts.add(logits[picture : picture + 1], target[picture : picture + 1])
    assert parts.fit_temperature() == whole.fit_temperature()
    np.testing.assert_allclose(parts.scaled(1.0).confidence, whole.scaled(1.0).confidence, rtol=1e-6)
