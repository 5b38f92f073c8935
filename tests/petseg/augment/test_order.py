"""Changes of one sample follow each other in one order, and the edges of a moved picture reflect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from petseg.augment.appearance import blur, color_matrix
from petseg.augment.batch import apply
from petseg.augment.draws import Change
from petseg.augment.warp import affine_grid, displacement, warp
from petseg.config import AugmentConfig

CONFIG = AugmentConfig(blur_max_sigma_px=1.0)
ALL = Change(
    0,
    flip=True,
    affine=np.array([[0.9, -0.2, 0.1], [0.1, 0.8, -0.1]]),
    color=color_matrix(1.1, 0.8, 1.2, 10.0),
    blur_sigma_px=0.9,
    noise_std=4.0,
    noise_at=(7, 9),
    hole=(3, 5, 10, 20),
)
FIELDS = ("flip", "affine", "color", "blur_sigma_px", "noise_std", "hole")


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A rectangle far from black and white, so that no part of a change is cut."""
    draw = torch.Generator().manual_seed(0)
    image = 100 + 40 * torch.rand(1, 3, 24, 32, generator=draw)
    return image, torch.randint(0, 5, (1, 24, 32), dtype=torch.uint8, generator=draw)


def one_after_the_other(order: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    image, labels = pair()
    for name in order:
        alone = replace(Change(0, noise_at=ALL.noise_at), **{name: getattr(ALL, name)})
        image, labels = apply([alone], image, labels, CONFIG)
    return image, labels


def test_the_parts_of_a_change_follow_each_other() -> None:
    image, labels = apply([ALL], *pair(), CONFIG)
    expected = one_after_the_other(FIELDS)
    torch.testing.assert_close(image, expected[0], atol=1e-3, rtol=0)
    assert torch.equal(labels, expected[1])


@pytest.mark.parametrize("first", range(len(FIELDS) - 1))
def test_in_another_order_they_give_another_picture(first: int) -> None:
    """So the test above can fail."""
    order = list(FIELDS)
    order[first : first + 2] = order[first : first + 2][::-1]
    image, _ = apply([ALL], *pair(), CONFIG)
    assert (one_after_the_other(tuple(order))[0] - image).abs().max() > 1e-2


def test_a_map_and_a_displacement_make_one_field() -> None:
    image, labels = pair()
    config = AugmentConfig(policy="elastic", elastic_alpha=40)
    bumps = np.random.default_rng(0).standard_normal((2, 11, 13))
    moved, moved_labels = apply([Change(0, affine=ALL.affine, bumps=bumps)], image, labels, config)
    field = displacement(torch.from_numpy(bumps).float()[None], config, (24, 32))
    field *= torch.tensor([2 / 32, 2 / 24]).view(1, 2, 1, 1)
    grid = affine_grid(torch.from_numpy(ALL.affine).float()[None], (24, 32)) + field
    expected = warp(image, labels, grid)
    torch.testing.assert_close(moved, expected[0], atol=1e-3, rtol=0)
    assert torch.equal(moved_labels, expected[1])
    only = apply([Change(0, bumps=bumps)], image, labels, config)[0]
    assert not torch.allclose(only, moved, atol=1)


def test_only_moved_samples_of_a_batch_get_the_field_of_their_own() -> None:
    """Displaced, mapped, both, neither: each as it would be alone."""
    config = AugmentConfig(policy="elastic", elastic_alpha=40)
    image, labels = (torch.cat([part, part.flip(-1), part.flip(1), part]) for part in pair())
    bumps = np.random.default_rng(1).standard_normal((2, 2, 11, 13))
    changes = [
        Change(0, bumps=bumps[0]),
        Change(1, affine=ALL.affine),
        Change(2, affine=ALL.affine, bumps=bumps[1]),
        Change(3, flip=True),
    ]
    together = apply(changes, image, labels, config)
    for i, change in enumerate(changes):
        alone = apply([replace(change, row=0)], image[i : i + 1], labels[i : i + 1], config)
        torch.testing.assert_close(together[0][i], alone[0][0], atol=1e-3, rtol=0)
        assert torch.equal(together[1][i], alone[1][0])


def test_what_comes_from_beyond_the_edge_is_reflected() -> None:
    row = torch.arange(8.0)
    image = row.expand(1, 3, 4, 8)
    labels = row.to(torch.uint8).expand(1, 4, 8)
    by_four = np.array([[1.0, 0, 1.0], [0, 1.0, 0]])  # half of the width to the right
    moved, moved_labels = apply([Change(0, affine=by_four)], image, labels, CONFIG)
    expected = [4.0, 5, 6, 7, 7, 6, 5, 4]
    torch.testing.assert_close(moved[0, 0, 0], torch.tensor(expected), atol=1e-4, rtol=0)
    assert moved_labels[0, 3].tolist() == expected


def test_pictures_are_bilinear_and_labels_nearest() -> None:
    image = torch.tensor([0.0, 100.0]).repeat_interleave(4).expand(1, 3, 4, 8)
    labels = torch.tensor([1, 9], dtype=torch.uint8).repeat_interleave(4).expand(1, 4, 8)
    quarter = np.array([[1.0, 0, 0.0625], [0, 1.0, 0]])  # of a pixel
    moved, moved_labels = apply([Change(0, affine=quarter)], image, labels, CONFIG)
    torch.testing.assert_close(moved[0, 0, 0], torch.tensor([0.0, 0, 0, 25, 100, 100, 100, 100]), atol=1e-3, rtol=0)
    assert moved_labels[0, 0].tolist() == [1, 1, 1, 1, 9, 9, 9, 9]


def test_a_blur_reaches_three_times_the_largest_deviation() -> None:
    image = torch.zeros(1, 3, 33, 33)
    image[:, :, 16, 16] = 200.0
    for largest, reach in ((1.0, 3), (1.5, 5), (2.0, 6)):
        config = AugmentConfig(blur_max_sigma_px=largest)
        moved, _ = apply([Change(0, blur_sigma_px=1.0)], image, torch.zeros(1, 33, 33, dtype=torch.uint8), config)
        seen = torch.nonzero(moved[0, 0])
        assert (seen.min().item(), seen.max().item()) == (16 - reach, 16 + reach)
        assert moved[0, 0].sum().item() == pytest.approx(200, rel=1e-4)
    edge = torch.arange(9.0).view(1, 1, 1, 9).expand(1, 3, 9, 9)
    blurred = blur(edge, torch.tensor([1.0]), 1)[0, 0, 0]
    taps = np.exp([-0.5, 0, -0.5]) / np.exp([-0.5, 0, -0.5]).sum()
    assert blurred[0].item() == pytest.approx(2 * taps[0])  # on both sides of 0 lies 1
    assert blurred[8].item() == pytest.approx(7 * 2 * taps[0] + 8 * taps[1], rel=1e-6)
