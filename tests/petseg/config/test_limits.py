"""Both ends of the range of a setting, and settings that exclude each other."""

from __future__ import annotations

import math
from typing import Any

import pytest

from petseg.config import DataConfig, RunConfig
from petseg.config.values import with_values


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("train.epochs", 1, 0),
        ("train.batch_size", 1, 0),
        ("train.accumulation_steps", 0, -1),
        ("train.budget_steps", 1, -1),
        ("train.budget_min", 0.01, -0.01),
        ("train.budget_min", 1e6, math.inf),
        ("train.start_size_px", 32, 33),
        ("train.start_size_px", 256, 288),  # data.image_size_px is 256
        ("train.start_size_px", 0, -32),
        ("train.full_size_from", 0.01, 1.01),
        ("train.label_smoothing", 0.99, -0.01),
        ("train.border_weight", 9.0, math.inf),
        ("train.ema_decay", 0.99, -0.01),
        ("train.swa_from", 0.99, 1.0),
        ("train.swa_from", 0.0, -0.01),
        ("train.late_batches", 1, 0),
        ("train.late_batches_from", 0.0, -0.01),
        ("train.late_batches_from", 0.99, 1.0),
        ("train.seed", 0, -1),
        ("train.log_every", 1, 0),
        ("train.save_every_min", 0.0, -0.01),
        ("optim.momentum", 0.99, -0.01),
        ("optim.encoder_lr_factor", 9.0, -0.01),
        ("optim.warmup", 0.99, -0.01),
        ("optim.lr", 1.0, -1.0),
        ("optim.lr", 1.0, math.nan),
        ("data.rare_crops", 0.0, -0.01),
        ("data.rare_crops", 0.0, 0.5),  # data.fit is squash
        ("model.width", 4, 5),
        ("tracking.wandb_wait_s", 9.0, math.inf),
        ("distill.weight", 0.0, -0.01),
        ("distill.weight", 1.0, 1.01),
        ("distill.temperature", 0.01, 0.0),
        ("distill.temperature", 9.0, math.inf),
        ("distill.teacher", "t.safetensors", "t.pt"),
    ],
)
def test_a_setting_ends_at_its_bound(name: str, allowed: Any, refused: Any) -> None:
    with_values(RunConfig(), {name: allowed})
    with pytest.raises(ValueError, match=rf"^{name} "):
        with_values(RunConfig(), {name: refused})


@pytest.mark.parametrize(
    ("name", "value", "beside", "harmless"),
    [
        ("train.budget_min", 1.0, {"train.budget_steps": 5}, {"train.budget_steps": 0}),
        ("train.swa_from", 0.5, {"train.ema_decay": 0.9}, {"train.ema_decay": 0.0}),
        ("train.late_batches", 2, {"train.budget_min": 1.0}, {"train.budget_steps": 5}),
        ("train.compile", "auto", {"train.grad_checkpointing": True}, {"train.grad_checkpointing": False}),
        ("train.label_smoothing", 0.1, {"train.loss": "focal"}, {"train.loss": "ce_dice"}),
        ("train.label_smoothing", 0.1, {"train.loss": "lovasz"}, {"train.loss": "ce"}),
        ("train.class_weights", "frequency", {"train.loss": "dice"}, {"train.loss": "focal"}),
        ("train.class_weights", "frequency", {"train.loss": "lovasz"}, {"train.loss": "ce_dice"}),
        ("train.batch_size", 10, {"train.accumulation_steps": 4}, {"train.accumulation_steps": 5}),
        ("train.batch_size", 7, {"train.accumulation_steps": 4}, {"train.accumulation_steps": 0}),
        ("train.start_size_px", 160, {"data.image_size_px": "128x256"}, {"data.image_size_px": "160x256"}),
        ("data.rare_crops", 0.5, {"data.fit": "letterbox"}, {"data.fit": "crop"}),
        ("data.rare_crops", 1.01, {"data.fit": "crop"}, None),
        ("model.encoder", "resnet18", {"model.arch": "resnet34_unet"}, {"model.arch": "manet"}),
    ],
)
def test_a_setting_that_another_excludes_is_named(
    name: str, value: Any, beside: dict[str, Any], harmless: dict[str, Any] | None
) -> None:
    with pytest.raises(ValueError, match=rf"^{name} "):
        with_values(RunConfig(), {name: value} | beside)
    with_values(RunConfig(), beside)
    if harmless is not None:
        with_values(RunConfig(), {name: value} | harmless)


@pytest.mark.parametrize(
    ("values", "averages", "accumulates"),
    [
        ({}, False, False),
        ({"train.ema_decay": 0.9}, True, False),
        ({"train.swa_from": 0.5}, True, False),
        ({"train.accumulation_steps": 2}, False, True),
        ({"train.late_batches": 2}, False, True),
    ],
)
def test_what_a_run_averages_and_adds_up(values: dict[str, Any], averages: bool, accumulates: bool) -> None:
    train = with_values(RunConfig(), values).train
    assert (train.averages_weights, train.accumulates) == (averages, accumulates)


@pytest.mark.parametrize(
    ("teacher", "weight", "off"), [("", 0.5, True), ("t.safetensors", 0.0, True), ("t.safetensors", 0.5, False)]
)
def test_a_run_without_a_teacher_or_its_share_learns_from_none(teacher: str, weight: float, off: bool) -> None:
    config = with_values(RunConfig(), {"distill.teacher": teacher, "distill.weight": weight})
    assert config.distill.is_off is off


def test_a_square_written_as_two_sides_is_the_same_setting() -> None:
    assert DataConfig(image_size_px="256x256") == DataConfig(image_size_px=256)
    assert DataConfig(image_size_px="256x512").size_px == (256, 512)
