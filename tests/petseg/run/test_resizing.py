"""Training that begins on small pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petseg.config import RunConfig
from petseg.config.values import trial_id, with_values
from petseg.data.store import open_store
from petseg.models.build import build_model
from petseg.run.batches import take_step, train_batches
from petseg.run.parts import build_parts
from petseg.run.progress import start_progress
from petseg.run.resizing import relative_area, require_sizes, shrink, size_px
from petseg.run.run import new_run
from petseg.run.schedule import fit_budget, relative_area_of
from petseg.run_folder.layout import read_metrics
from petseg.training.loop import train
from petseg.training.step import train_step

Tiny = Callable[..., RunConfig]


def config_of(start: int, full: int = 128, full_from: float = 0.5) -> RunConfig:
    values = {"data.image_size_px": full, "train.start_size_px": start, "train.full_size_from": full_from}
    return with_values(RunConfig(), values)


def test_sizes_by_hand() -> None:
    sizes = [size_px(config_of(64), step, 16) for step in range(16)]
    assert sizes == [(64, 64)] * 4 + [(96, 96)] * 4 + [(128, 128)] * 8
    assert relative_area(config_of(64), 0, 16, 16) == pytest.approx(0.25 * 0.25 + 0.25 * 0.5625 + 0.5)
    assert relative_area(config_of(64), 4, 8, 16) == pytest.approx(0.5625)
    assert [size_px(config_of(96, full_from=1.0), step, 4) for step in range(4)] == [(96, 96)] * 4
    assert size_px(config_of(0), 0, 10) == size_px(config_of(128), 0, 10) == (128, 128)
    assert relative_area(config_of(0), 0, 10, 10) == relative_area(config_of(128), 0, 10, 10) == 1.0


def test_both_sides_of_a_rectangle_grow() -> None:
    config = with_values(config_of(64), {"data.image_size_px": "128x224"})
    sizes = [size_px(config, step, 16) for step in range(16)]
    assert sizes == [(64, 128)] * 4 + [(96, 160)] * 4 + [(128, 224)] * 8  # of 64 x 112 and 96 x 168
    assert relative_area(config, 0, 4, 16) == pytest.approx(64 * 128 / (128 * 224))


@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 300), st.floats(0.01, 1.0))
def test_sizes_grow_to_full_ones(start: int, full: int, total_steps: int, full_from: float) -> None:
    config = config_of(32 * min(start, full), 32 * full, full_from)
    both = [size_px(config, step, total_steps) for step in range(total_steps)]
    sizes = [height for height, width in both if height == width]
    assert len(sizes) == total_steps
    assert sizes == sorted(sizes)
    assert {size % 32 for size in sizes} == {0}
    assert config.train.start_size_px <= sizes[0]
    at_full = sizes[math.ceil(full_from * total_steps) :]
    assert at_full == [32 * full] * (total_steps - math.ceil(full_from * total_steps))
    assert 0 < relative_area(config, 0, total_steps, total_steps) <= 1


def test_a_label_is_taken_from_the_middle_of_its_block() -> None:
    """Four columns become two: the first is taken from column 0.5 (rounded up to 1), the second from 2.5 (3)."""
    trimap = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    _, labels = shrink(torch.zeros(1, 3, 4, 4), trimap, (2, 2))
    assert labels.tolist() == [[[5, 7], [13, 15]]]
    trimap = torch.arange(9, dtype=torch.uint8).view(1, 1, 9).expand(1, 9, 9)
    _, labels = shrink(torch.zeros(1, 3, 9, 9), trimap, (3, 3))
    assert labels[0, 0].tolist() == [1, 4, 7]


def test_shrunk_pictures_are_averaged_and_labels_stay_labels() -> None:
    image = torch.arange(64.0).repeat(2, 3, 64, 1)
    trimap = torch.tensor([1, 3, 2, 1], dtype=torch.uint8).repeat_interleave(16).repeat(2, 64, 1)
    small, labels = shrink(image, trimap, (32, 32))
    assert small.shape == (2, 3, 32, 32)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, torch.tensor([1, 3, 2, 1], dtype=torch.uint8).repeat_interleave(8).repeat(2, 32, 1))
    assert small[0, 0, 0, 5].item() == pytest.approx(10.5)  # of columns 10 and 11, and as much of 9 as of 12
    assert small.mean().item() == pytest.approx(image.mean().item())


def test_pictures_and_targets_come_in_the_size_of_the_step(tiny: Tiny, tmp_path: Path, pet_shards: Path) -> None:
    config = tiny(train__start_size_px=32, augment__policy="strong", augment__mode="add")
    parts = build_parts(config, open_store(str(pet_shards)), tmp_path, splits=["train"])
    run, seen, targets = new_run(parts), [], []
    parts.bare_model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        targets.append(target)
        return parts.loss(logits, target)

    assert parts.bare_model.training
    run = dataclasses.replace(run, parts=dataclasses.replace(parts, loss=loss))
    for epoch in (1, 2):
        batches = train_batches(parts, epoch)
        for step in range(4):
            train_step(run, epoch, step, take_step(batches), torch.zeros(4, dtype=torch.float64))
    assert [image.shape[-1] for image in seen] == [32] * 4 + [64] * 4
    assert [image.shape[-2:] for image in seen] == [target.shape[-2:] for target in targets]
    assert [image.is_contiguous(memory_format=torch.channels_last) for image in seen] == [True] * 8
    areas = [relative_area_of(config, run.progress, epoch) for epoch in (1, 2)]
    assert areas == [0.25, 1.0]
    parts.close()


def test_progressive_resizing_trains_resumes_and_is_another_run(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(train__start_size_px=32)
    train(config, tmp_path)
    rows = read_metrics(tmp_path)
    assert [row["data/coverage"] for row in rows] == [1.0, 1.0]
    assert trial_id(config, "0") != trial_id(tiny(), "0") == trial_id(tiny(train__full_size_from=0.5), "0")


def test_a_budget_of_minutes_counts_small_pictures_by_their_area(tiny: Tiny, pet_shards: Path) -> None:
    """4 steps of a quarter of the area in 1 s: a full step takes 1 s, a mean one 0.625 s."""
    config = tiny(train__start_size_px=32, train__budget_min=10.0)
    progress = start_progress(config, open_store(str(pet_shards)).manifest.splits["train"].num_samples)
    fit_budget(config, progress, 4, 1.0)
    assert progress.total_steps == 960
    fit_budget(config, progress, 4, 1.0, validation_s=1.5)  # with each epoch of 4 steps
    assert progress.total_steps == 600


def test_sizes_that_do_not_work_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"train.start_size_px = 48: must be 0 or a multiple of 32"):
        tiny(train__start_size_px=48)
    with pytest.raises(ValueError, match=r"train.start_size_px = 96: must be at most data.image_size_px = 64"):
        tiny(train__start_size_px=96)
    with pytest.raises(ValueError, match=r"train.full_size_from = 0.0: must lie in \(0, 1\]"):
        tiny(train__full_size_from=0.0)
    vit = tiny(model__arch="dpt", model__encoder="tu-vit_tiny_patch16_224", train__start_size_px=32)
    with pytest.raises(ValueError, match=r"train.start_size_px = 32: model.arch = 'dpt' does not work on .* of 32 px"):
        require_sizes(vit, build_model(vit.model, image_size_px=64))
