"""Overlapping windows: they cover the picture, and blending changes nothing that all windows agree on."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from petseg.config.training import TrainConfig
from petseg.footprint.operations import OpCounter
from petseg.losses import build_loss
from petseg.metrics.tta import predict_logits
from petseg.metrics.windows import bytes_per_pixel, gaussian, margins_of, num_windows, starts, windowed
from petseg.models.unet import UNet

SIDES = st.integers(1, 150)


def identity(image: torch.Tensor) -> torch.Tensor:
    return image.clone()


@given(st.integers(1, 3000), st.integers(1, 64).map(lambda n: 32 * n), st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_windows_lie_inside_and_cover_all(length: int, window: int, overlap: float) -> None:
    firsts = starts(length, window, overlap)
    assert firsts[0] == 0
    assert firsts == sorted(set(firsts))
    if length > window:
        assert firsts[-1] == length - window
    for one, following in itertools.pairwise(firsts):
        assert following - one <= max(1, int(window * (1 - overlap)))  # overlap as much as asked for, or more


def test_the_fewest_windows_that_overlap_by_half() -> None:
    assert starts(1024, 512, 0.5) == [0, 256, 512]
    assert starts(1025, 512, 0.5) == [0, 171, 342, 513]
    assert num_windows((1024, 2048), (512, 512)) == 3 * 7
    assert num_windows((100, 2048), (512, 1024)) == 3


@given(SIDES, SIDES, st.integers(1, 3), st.integers(1, 5), st.sampled_from([0.0, 0.5]))
def test_a_model_of_pixels_sees_no_windows(height: int, width: int, count: int, batch: int, overlap: float) -> None:
    """A constant comes out as a constant, and the identity gives the picture back."""
    image = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 4 - 2
    seen: list[tuple[int, ...]] = []

    def model(windows: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(windows.shape))
        return windows

    torch.testing.assert_close(windowed(model, (32, 64), batch, overlap)(image), image, rtol=1e-5, atol=1e-5)
    assert {shape[1:] for shape in seen} == {(3, 32, 64)}
    assert max(shape[0] for shape in seen) <= batch
    assert sum(shape[0] for shape in seen) == count * num_windows((height, width), (32, 64), overlap)
    constant = windowed(lambda windows: torch.full((len(windows), 2, 32, 64), 0.75), (32, 64), batch, overlap)(image)
    torch.testing.assert_close(constant, torch.full((count, 2, height, width), 0.75))


def test_the_centre_of_a_window_counts_most() -> None:
    """Two windows that say 0 and 1 of a strip: a pixel takes the side of the window whose centre is nearer."""
    weight = gaussian((32, 32), torch.device("cpu"))
    assert weight.max() == weight[15, 15] == weight[16, 16]
    assert 0 < weight.min() < 1e-6
    torch.testing.assert_close(weight, weight.flip(0).flip(1))
    calls = itertools.count()
    said = windowed(lambda windows: torch.full((1, 1, 32, 32), float(next(calls))), (32, 32), 1)(
        torch.zeros(1, 3, 32, 48)
    )[0, 0, 0]
    assert said[:16].tolist() == [0.0] * 16  # of the first window alone
    assert said[-16:].tolist() == [1.0] * 16
    assert said.tolist() == sorted(said.tolist())
    assert said[23].item() == pytest.approx(1 - said[24].item())


def test_small_pictures_stand_in_the_middle_of_zeros() -> None:
    seen: list[torch.Tensor] = []

    def model(windows: torch.Tensor) -> torch.Tensor:
        seen.append(windows)
        return windows

    image = torch.ones(1, 3, 10, 20)
    assert torch.equal(windowed(model, (32, 32), 4)(image).round(), image)
    expected = torch.zeros(1, 3, 32, 32)
    expected[:, :, 11:21, 6:26] = 1
    assert torch.equal(seen[0], expected)


def test_windows_keep_the_layout_of_the_picture() -> None:
    layouts: set[bool] = set()

    def model(windows: torch.Tensor) -> torch.Tensor:
        layouts.add(windows.is_contiguous(memory_format=torch.channels_last))
        return windows

    image = torch.rand(1, 3, 70, 90).to(memory_format=torch.channels_last)
    windowed(model, (32, 32), 4)(image)
    assert layouts == {True}


def test_views_of_test_time_augmentation_are_cut_into_windows() -> None:
    """A model of pixels gives the same with windows and without, at every scale."""
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    for tta in ("flips", "scales", "flips_scales"):
        expected = predict_logits(identity, image, tta)
        torch.testing.assert_close(predict_logits(windowed(identity, (32, 32), 4), image, tta), expected)


def test_a_picture_of_the_windows_size_is_one_pass() -> None:
    image = torch.rand(5, 3, 32, 32)
    sizes: list[int] = []

    def model(windows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(windows))
        return windows * 2

    assert torch.equal(windowed(model, (32, 32), 2)(image), image * 2)
    assert sizes == [2, 2, 1]


@torch.no_grad()
def test_memory_is_that_of_one_picture_and_one_batch_of_windows() -> None:
    """A street scene of a quarter of its size, and three of them one after the other."""
    model, loss = UNet(width=4).eval(), build_loss(TrainConfig(loss="ce"))
    size, batch = (64, 128), 2

    def peak(pictures: int) -> int:
        with OpCounter() as counter:
            for _ in range(pictures):
                logits = windowed(model, size, batch)(torch.zeros(1, 3, 256, 512))
                loss(logits, torch.zeros(1, 256, 512, dtype=torch.int64))
                del logits
        return counter.peak_bytes

    with OpCounter() as counter:
        model(torch.zeros(batch, 3, *size))
    gaussian(size, torch.device("cpu"))  # which is kept
    one = peak(1)
    assert peak(3) == one
    assert one <= counter.peak_bytes + 256 * 512 * bytes_per_pixel(2)


@pytest.mark.parametrize(
    ("length", "window", "overlap", "firsts"),
    [
        (32, 32, 0.5, [0]),
        (31, 32, 0.5, [0]),
        (33, 32, 0.5, [0, 1]),
        (48, 32, 0.5, [0, 16]),
        (49, 32, 0.5, [0, 8, 17]),
        (64, 32, 0.0, [0, 32]),
        (65, 32, 0.0, [0, 16, 33]),
        (10, 4, 0.75, [0, 1, 2, 3, 4, 5, 6]),
        (3, 1, 0.9, [0, 1, 2]),
    ],
)
def test_windows_stand_from_edge_to_edge(length: int, window: int, overlap: float, firsts: list[int]) -> None:
    assert starts(length, window, overlap) == firsts
    assert num_windows((length, 1), (window, 1), overlap) == len(firsts)


def test_margins_are_larger_below_and_at_the_right() -> None:
    margins, inner = margins_of((3, 9), (8, 8))
    assert margins == [0, 0, 2, 3]
    padded = F.pad(torch.arange(27.0).view(1, 1, 3, 9), margins)
    assert torch.equal(inner(padded), torch.arange(27.0).view(1, 1, 3, 9))
    assert margins_of((8, 5), (8, 8))[0] == [1, 2, 0, 0]
    assert margins_of((9, 9), (8, 8))[0] == [0, 0, 0, 0]
    assert [bytes_per_pixel(number) for number in (2, 12)] == [44, 164]


def test_windows_of_half_precision_are_blended_in_float32() -> None:
    blended = windowed(lambda windows: windows.half(), (32, 32), batch_size=3)
    for size in ((32, 32), (40, 33), (20, 50)):
        image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
        found = blended(image)
        assert found.dtype == torch.float32
        assert (found - image).abs().max() < 1e-3
