"""Changes of rectangles: by as many pixels along both sides."""

from __future__ import annotations

import math
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from petseg.augment.batch import apply
from petseg.augment.draws import draw
from petseg.augment.warp import displacement
from petseg.config import AugmentConfig

POLICIES = [policy for policy in get_args(get_type_hints(AugmentConfig)["policy"]) if policy != "none"]


def test_a_rotation_turns_pixels_whatever_the_shape() -> None:
    """A disk stays a disk in a picture that is twice as wide as high, and moves about the centre."""
    height, width = 64, 128
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    inside = (x - 76) ** 2 + (y - 32) ** 2 < 8**2
    labels = torch.where(inside, 1, 2).to(torch.uint8).repeat(12, 1, 1)
    image = inside.float().mul(255).repeat(12, 3, 1, 1)
    config = AugmentConfig(policy="rotate", p=1.0, rotate_max_deg=20)
    moved, turned = apply(draw(config, np.arange(12), 0, 1, f"{height}x{width}"), image, labels, config)
    for picture, mask in zip(moved, turned, strict=True):
        at_y, at_x = y[mask == 1], x[mask == 1]
        assert math.hypot(at_y.mean() - 32, at_x.mean() - 64) == pytest.approx(12, abs=0.7)
        assert len(at_y) == pytest.approx(math.pi * 8**2, rel=0.06)
        assert at_y.std().item() == pytest.approx(4, abs=0.3)  # half of the radius, in any direction
        assert at_x.std().item() == pytest.approx(4, abs=0.3)
        assert ((picture[0] > 127) == (mask == 1)).float().mean() > 0.995
    assert not torch.equal(turned, labels)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_takes_rectangles(policy: str) -> None:
    random = torch.Generator().manual_seed(0)
    image = torch.rand(8, 3, 32, 96, generator=random) * 255
    labels = torch.randint(1, 4, (8, 32, 96), dtype=torch.uint8, generator=random)
    config = AugmentConfig(policy=policy, p=1.0)
    changes = draw(config, np.arange(8), 0, 1, (32, 96))
    moved, moved_labels = apply(changes, image.clone(), labels.clone(), config)
    assert moved.shape == image.shape
    assert moved_labels.shape == labels.shape
    assert not torch.equal(moved, image)
    for change in changes:
        if change.hole:
            top, left, bottom, right = change.hole
            assert 0 <= top < bottom <= 32
            assert 0 <= left < right <= 96


def test_displacement_is_as_strong_along_both_sides_of_a_rectangle() -> None:
    config = AugmentConfig(policy="elastic", p=1.0, elastic_alpha=60)
    bumps = [change.bumps for change in draw(config, np.arange(40), 0, 1, (64, 160))]
    field = displacement(torch.from_numpy(np.stack([b for b in bumps if b is not None])).float(), config, (64, 160))
    assert field.shape == (40, 2, 64, 160)
    along_x, along_y = field.square().mean(dim=(0, 2, 3)).sqrt().tolist()
    expected = 30 * math.sqrt(1 / 3 / (4 * math.pi * 25))
    assert along_x == pytest.approx(expected, rel=0.1)
    assert along_y == pytest.approx(expected, rel=0.1)


def test_a_displacement_moves_the_pixels_of_a_rectangle_by_as_many_pixels() -> None:
    """A picture whose pixels say where they are tells where each came from."""
    config, size = AugmentConfig(policy="elastic", p=1.0, elastic_alpha=40), (40, 120)
    changes = draw(config, np.arange(1), 0, 1, size)
    assert changes[0].bumps is not None
    along_x, along_y = displacement(torch.from_numpy(changes[0].bumps[None]).float(), config, size)[0]
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in size), indexing="ij")
    image = torch.stack([x, y, torch.zeros(size)])[None]
    moved, _ = apply(changes, image, torch.zeros(1, *size, dtype=torch.uint8), config)
    inside = (slice(5, -5), slice(5, -5))  # a displacement reaches 3 px, and the edge reflects
    torch.testing.assert_close(moved[0, 0][inside], (x + along_x)[inside], atol=1e-3, rtol=0)
    torch.testing.assert_close(moved[0, 1][inside], (y + along_y)[inside], atol=1e-3, rtol=0)
    assert along_x.std() > 0.3


def test_a_displacement_is_the_sum_of_bumps_that_stand_a_deviation_apart_from_the_edge_on() -> None:
    """The first three of a side, and the last ones, stand before its edge and beyond."""
    config, size, sigma = AugmentConfig(policy="elastic", elastic_alpha=40, elastic_sigma_px=4.0), (10, 22), 4.0
    counts = [math.ceil(side / sigma) + 6 for side in size]
    bumps = np.random.default_rng(0).standard_normal((2, *counts))
    weights = []
    for side, count in zip(size, counts, strict=True):
        distance = (np.arange(side) + 0.5)[:, None] - (np.arange(count) - 3)[None, :] * sigma
        gaussian = np.exp(-(distance**2) / (2 * sigma**2))
        weights.append(gaussian / np.sqrt((gaussian**2).sum(axis=1, keepdims=True)))
    rms_px = 20 * math.sqrt(1 / 3 / (4 * math.pi * sigma**2))
    expected = rms_px * weights[0] @ bumps @ weights[1].T
    found = displacement(torch.from_numpy(bumps).float()[None], config, size)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4, atol=1e-5)
