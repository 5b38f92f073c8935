"""What the network and its loss are given of decoded bytes."""

from __future__ import annotations

import pytest
import torch

from petseg.data.inputs import MEAN, STD, normalise, to_classes, to_image
from petseg.data.transfer import floats, indices

CPU = torch.device("cpu")


def test_a_picture_is_planes_of_grey_levels_in_the_order_of_its_bytes() -> None:
    pixels = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).view(2, 4, 5, 3)
    image = to_image(pixels, CPU)
    assert (image.dtype, image.shape) == (torch.float32, (2, 3, 4, 5))
    assert image[1, 2, 3, 4].item() == pixels[1, 3, 4, 2].item() == 119
    assert image.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
def test_each_channel_has_its_own_mean_and_deviation(channels_last: bool) -> None:
    image = torch.tensor([0.0, 255.0, 51.0]).view(1, 3, 1, 1).repeat(2, 1, 4, 5)
    normal = normalise(image, channels_last)
    expected = [(value - mean) / std for value, mean, std in zip((0, 1, 0.2), MEAN, STD, strict=True)]
    assert normal[1, :, 3, 4].tolist() == pytest.approx(expected, rel=1e-6)
    assert normal.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert normal.is_contiguous() != channels_last


def test_classes_are_those_of_each_samples_own_row() -> None:
    table = torch.stack([torch.arange(256), 255 - torch.arange(256), torch.full((256,), 7)]).to(torch.uint8)
    labels = torch.tensor([[[0, 255], [3, 200]]], dtype=torch.uint8).repeat(3, 1, 1)
    first, second, third = to_classes(labels, table, torch.tensor([1, 0, 2])).tolist()
    assert (first, second, third) == ([[255, 0], [252, 55]], [[0, 255], [3, 200]], [[7, 7], [7, 7]])
    alone = to_classes(labels, table[1:2])
    assert alone.tolist() == [first] * 3
    assert alone.dtype == torch.uint8


def test_numbers_are_sent_as_whole_ones_or_as_floats() -> None:
    assert (indices([3, 2**40], CPU).tolist(), indices([], CPU).dtype) == ([3, 2**40], torch.int64)
    assert (floats([[1, 2.5]], CPU).tolist(), floats([1], CPU).dtype) == ([[1.0, 2.5]], torch.float32)
