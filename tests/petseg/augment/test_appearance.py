"""Colour, blur, noise and holes against torchvision's and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional

from petseg.augment import appearance
from petseg.augment.appearance import NOISE_OFFSETS, add_noise, blur, color_matrix, recolor
from petseg.augment.batch import apply
from petseg.augment.draws import Change, draw
from petseg.config import AugmentConfig

SIZE = 64


def greyish(count: int) -> torch.Tensor:
    """Pictures far enough from 0 and 255 that torchvision, which cuts after each step, cuts nothing."""
    return 100 + 40 * torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def matrix(*factors: float) -> torch.Tensor:
    return torch.from_numpy(color_matrix(*factors)).float().unsqueeze(0)


@pytest.mark.parametrize(
    ("name", "factors"),
    [("brightness", (1.3, 1, 1, 0)), ("contrast", (1, 0.6, 1, 0)), ("saturation", (1, 1, 1.7, 0))],
)
def test_one_factor_is_torchvisions(name: str, factors: tuple[float, ...]) -> None:
    image = greyish(1)
    adjust = getattr(functional, f"adjust_{name}")
    expected = adjust(image / 255, next(f for f in factors if f != 1)) * 255
    torch.testing.assert_close(recolor(image, matrix(*factors)), expected, atol=0.05, rtol=0)


def test_factors_together_are_torchvisions_in_a_row() -> None:
    image = greyish(1)
    row = functional.adjust_brightness(image / 255, 1.2)
    row = functional.adjust_saturation(functional.adjust_contrast(row, 0.7), 1.4) * 255
    torch.testing.assert_close(recolor(image, matrix(1.2, 0.7, 1.4, 0)), row, atol=0.1, rtol=0)


def test_a_turn_of_the_hue_leaves_brightness_and_greys() -> None:
    image = greyish(1)
    turned = recolor(image, matrix(1, 1, 1, 120))
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    torch.testing.assert_close((turned * luma).sum(1), (image * luma).sum(1), atol=0.1, rtol=0)
    assert (turned - image).abs().mean() > 5
    grey = image[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(recolor(grey, matrix(1, 1, 1, 120)), grey, atol=0.1, rtol=0)
    back = recolor(turned, matrix(1, 1, 1, -120))
    torch.testing.assert_close(back, image, atol=0.1, rtol=0)


def test_each_picture_has_a_matrix_and_a_blur_of_its_own() -> None:
    image = greyish(3)
    matrices = torch.cat([matrix(1, 1, 1, 0), matrix(1.2, 0.8, 0.5, 30), matrix(0.7, 1, 1, 0)])
    sigmas = torch.tensor([0.0, 0.6, 1.4])
    for i in range(3):
        one = slice(i, i + 1)
        torch.testing.assert_close(recolor(image, matrices)[one], recolor(image[one], matrices[one]))
        assert torch.equal(blur(image, sigmas, 4)[one], blur(image[one], sigmas[one], 4))
    assert torch.equal(blur(image, sigmas, 4)[0], image[0])


def test_the_blur_is_torchvisions() -> None:
    image = greyish(1)
    expected = functional.gaussian_blur(image, kernel_size=[9, 9], sigma=[1.2, 1.2])
    torch.testing.assert_close(blur(image, torch.tensor([1.2]), 4), expected, atol=0.01, rtol=0)


def test_noise_has_the_wanted_strength_and_differs_by_window_and_channel() -> None:
    plain = torch.full((2, 3, SIZE, SIZE), 128.0)
    add_noise(plain, [0, 1], [10.0, 10.0], [(0, 0), (17, NOISE_OFFSETS - 1)])
    noise = plain - 128
    assert noise.std().item() == pytest.approx(10, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.2)
    flat = noise.flatten(2).flatten(0, 1)  # six channels
    assert (torch.corrcoef(flat) - torch.eye(6)).abs().max() < 0.06


def test_each_picture_of_a_batch_has_its_own_window_of_noise() -> None:
    image, trimap = torch.full((3, 3, SIZE, SIZE), 128.0), torch.ones(3, SIZE, SIZE, dtype=torch.uint8)
    windows = [(0, 0), (5, 9), (200, 17)]
    changes = [Change(row, noise_std=10.0, noise_at=window) for row, window in enumerate(windows)]
    noisy, _ = apply(changes, image, trimap, AugmentConfig())
    for row, window in enumerate(windows):
        expected = torch.full((1, 3, SIZE, SIZE), 128.0)
        add_noise(expected, [0], [10.0], [window])
        assert torch.equal(noisy[row], expected[0])


def test_noise_and_holes_of_a_batch_at_once_are_those_of_each_picture() -> None:
    """A GPU changes all pictures of a batch in the same few launches, a CPU one after the other."""
    image, rows = greyish(4), [0, 2, 3]
    noise = ([5.0, 10.0, 20.0], [(0, 0), (5, 9), (NOISE_OFFSETS - 1, 17)])
    holes = [(5, 10, 25, 40), (0, 0, SIZE, 1), (SIZE - 1, SIZE - 2, SIZE, SIZE)]
    for together, one_by_one, settings in (
        (appearance._add_noise_together, appearance._add_noise_one_by_one, noise),
        (appearance._hide_together, appearance._hide_one_by_one, (holes,)),
    ):
        ours, expected = image.clone(), image.clone()
        together(ours, rows, *settings)
        one_by_one(expected, rows, *settings)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-4)
        assert torch.equal(ours[1], image[1])
        assert not torch.equal(ours[0], image[0])


class Launches(TorchDispatchMode):
    """Counts operations that a GPU would be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def test_launches_on_a_gpu_do_not_grow_with_the_batch() -> None:
    """The device meta stands for a GPU: it takes the same way, without numbers."""
    config, counts = AugmentConfig(policy="strong"), []
    for batch in (64, 256):  # enough for each kind of change to occur
        changes = draw(config, np.arange(batch), 0, 1, SIZE)
        assert any(change.noise_std for change in changes)
        assert any(change.hole for change in changes)
        image = torch.empty(batch, 3, SIZE, SIZE, device="meta")
        trimap = torch.empty(batch, SIZE, SIZE, dtype=torch.uint8, device="meta")
        apply(changes, image, trimap, config)  # which makes the noise bank, once
        with Launches() as launches:
            apply(changes, image, trimap, config)
        counts.append(launches.count)
    assert counts[0] == counts[1] < 150


def test_a_hole_has_the_mean_colour_and_its_mask_stays() -> None:
    image, trimap = greyish(2), torch.randint(1, 4, (2, SIZE, SIZE), dtype=torch.uint8)
    top, left, bottom, right = hole = (5, 10, 25, 40)
    moved, labels = apply([Change(1, hole=hole)], image, trimap, AugmentConfig())
    assert torch.equal(labels, trimap)
    outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    outside[top:bottom, left:right] = False
    assert torch.equal(moved[1][:, outside], image[1][:, outside])
    mean = image[1].mean(dim=(1, 2)).view(3, 1, 1)
    torch.testing.assert_close(moved[1][:, top:bottom, left:right], mean.expand(3, 20, 30))


def test_holes_are_as_large_as_wanted_and_lie_within() -> None:
    config = AugmentConfig(policy="cutout", p=1.0, cutout_max_side=0.5)
    holes = np.array([change.hole for change in draw(config, np.arange(300), 0, 1, SIZE)])
    sides = holes[:, 2:] - holes[:, :2]
    assert sides.min() >= 16
    assert sides.max() == 32
    assert holes.min() == 0
    assert holes.max() == SIZE


def test_strong_does_each_of_its_parts_as_often_as_it_says() -> None:
    changes = draw(AugmentConfig(policy="strong"), np.arange(1000), 0, 1, SIZE)
    assert len(changes) == 1000
    counts = {
        "flip": sum(c.flip for c in changes),
        "affine": sum(c.affine is not None for c in changes),
        "elastic": sum(c.bumps is not None for c in changes),
        "color": sum(c.color is not None for c in changes),
        "blur_noise": sum(bool(c.blur_sigma_px or c.noise_std) for c in changes),
        "cutout": sum(c.hole is not None for c in changes),
    }
    wanted = {"flip": 500, "affine": 700, "elastic": 200, "color": 800, "blur_noise": 200, "cutout": 200}
    assert counts == {name: pytest.approx(count, abs=65) for name, count in wanted.items()}
