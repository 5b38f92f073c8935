"""Pictures of best epochs: few, kept for a replay, and without any influence on the training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petseg.config import RunConfig, TrackingConfig
from petseg.evaluation.measure import PredictedPicture
from petseg.metrics.pixels import count_classes, count_masks, picture_dice
from petseg.metrics.pixels import dice_of as dice_of_counts
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import read_metrics
from petseg.tracking.naming import RunName
from petseg.tracking.overlays import (
    best_name,
    dice_of,
    forget_after,
    is_due,
    load_overlays,
    save_overlays,
    shown_epochs,
)
from petseg.tracking.tracker import Tracker
from petseg.training.loop import train
from tests.targets import PET


def picture(seed: int = 0) -> PredictedPicture:
    rng = np.random.default_rng(seed)
    truth = rng.choice(np.array([0, 1, 255], np.uint8), (16, 16))
    prediction = rng.integers(0, 2, (16, 16), np.uint8)
    return PredictedPicture(f"cat_{seed}", np.zeros((16, 16, 3), np.uint8), truth, prediction, PET)


@given(st.integers(0, 2**32 - 1))
def test_dice_is_that_of_the_metrics(seed: int) -> None:
    one = picture(seed)
    truth, prediction = torch.from_numpy(one.truth)[None], torch.from_numpy(one.prediction)[None]
    expected = dice_of_counts(count_masks((prediction == 1) & (truth != 255), truth == 1))
    assert dice_of(one.truth, one.prediction) == pytest.approx(float(expected))


@given(st.integers(0, 2**32 - 1))
def test_dice_of_classes_is_that_of_the_metrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, prediction = rng.choice(np.array([0, 1, 2, 255], np.uint8), (4, 4)), rng.integers(0, 4, (4, 4), np.uint8)
    counts = count_classes(torch.from_numpy(prediction)[None], torch.from_numpy(truth)[None], (1, 2, 3))
    assert dice_of(truth, prediction, (1, 2, 3)) == pytest.approx(float(picture_dice(counts)))


def test_dice_of_nothing_is_one() -> None:
    blank = np.zeros((4, 4), np.uint8)
    assert dice_of(blank, blank) == 1.0
    assert dice_of(blank + 255, blank + 1) == 1.0


@pytest.mark.parametrize("epochs", [1, 7, 100])
def test_a_run_that_gets_better_and_better_shows_few_epochs(tmp_path: Path, epochs: int) -> None:
    for epoch in range(1, epochs + 1):
        if is_due(epoch, tmp_path):
            save_overlays(epoch, [picture()], tmp_path, best_name(epoch))
    shown = shown_epochs(tmp_path)
    assert shown == [2**i for i in range(len(shown))]
    assert len(shown) == 1 + int(math.log2(epochs))


def test_pictures_of_epochs_that_are_run_again_are_forgotten_with_their_rows(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrackingConfig(), RunName("x"), {}, resumed_epoch=0)
    for epoch in (1, 2, 4):
        tracker.log({"epoch": epoch}, [picture()])
    assert not tracker.wants_pictures(7)
    assert tracker.wants_pictures(8)
    again = Tracker(tmp_path, TrackingConfig(), RunName("x"), {}, resumed_epoch=3)
    assert shown_epochs(tmp_path) == [1, 2]
    assert again.wants_pictures(4)
    forget_after(0, tmp_path)
    assert shown_epochs(tmp_path) == []
    assert not Tracker(tmp_path, TrackingConfig(overlays=0), RunName("x"), {}, 0).wants_pictures(1)


@pytest.mark.parametrize("ema_decay", [pytest.param(0.0, marks=pytest.mark.slow), 0.9])
def test_a_run_with_pictures_ends_with_the_same_bits(
    tiny: Callable[..., RunConfig], tmp_path: Path, ema_decay: float
) -> None:
    """As one without: rows, weights, BatchNorm's statistics and the optimizer's moments."""
    ends = []
    for overlays in (0, 3):
        folder = tmp_path / str(overlays)
        config = tiny(tracking__overlays=overlays, augment__policy="elastic_crop", train__ema_decay=ema_decay)
        train(config, folder)
        rows = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(folder)]
        last = list_checkpoints(folder / "checkpoints")[-1].folder
        ends.append((rows, {path.name: path.read_bytes() for path in last.glob("*.safetensors")}))
    assert ends[0] == ends[1]
    assert shown_epochs(tmp_path / "0") == []
    assert 1 in shown_epochs(tmp_path / "3")
    epoch, shown = load_overlays(tmp_path / "3", best_name(1))
    assert (epoch, len(shown)) == (1, 3)
    mean = np.mean([overlay.dice for overlay in shown])  # val has just these three
    assert mean == pytest.approx(read_metrics(tmp_path / "3")[0]["val/dice"], abs=1e-6)


@pytest.mark.parametrize(("overlays", "wanted"), [(0, False), (1, True)])
def test_a_run_that_draws_no_pictures_wants_none(tmp_path: Path, overlays: int, wanted: bool) -> None:
    tracker = Tracker(tmp_path, TrackingConfig(overlays=overlays), RunName("x"), {}, resumed_epoch=0)
    assert tracker.wants_pictures(1) is wanted
