"""A picture of any size through a network of one size: overlapping windows, blended by Gaussian weights.

As nnU-Net does it (Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation"): windows overlap by half, and a pixel's logits are the mean over its windows, weighted by a Gaussian
about each window's centre with an eighth of the window as standard deviation. A network sees little around the pixels
at the edge of a window, and their weight is small.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from petseg.config.sizes import Size
from petseg.metrics.tta import Model

OVERLAP = 0.5  # of neighbouring windows, as a share of their side
SIGMA = 1 / 8  # of the Gaussian, as a share of the window's side

Corner = tuple[int, int, int]  # number of the picture in its batch, first row, first column


def windowed(model: Model, size: Size, batch_size: int, overlap: float = OVERLAP) -> Model:
    """A model of pictures (B, 3, h, w) of any size, from one of pictures of `size`: (B, C, h, w) float32 logits.

    batch_size: windows of one pass
    Besides the pictures it holds their logits, once more for the sum and its quotient, and a batch of windows. Where a
    picture is smaller than a window, the rest is zero, the mean colour of a normalised picture, and is cut off again.
    """

    def predict(image: torch.Tensor) -> torch.Tensor:
        if tuple(image.shape[-2:]) == size:
            return torch.cat([model(part).float() for part in image.split(batch_size)])
        margins, inner = margins_of((image.shape[-2], image.shape[-1]), size)
        return inner(blended(model, F.pad(image, margins), size, batch_size, overlap))

    return predict


def blended(model: Model, image: torch.Tensor, size: Size, batch_size: int, overlap: float) -> torch.Tensor:
    """(B, 3, h, w) pictures no smaller than a window -> (B, C, h, w) float32 logits."""
    height, width = image.shape[-2:]
    rows, columns = (starts(*sides, overlap) for sides in zip((height, width), size, strict=True))
    corners = [(i, top, left) for i in range(len(image)) for top in rows for left in columns]
    weight = gaussian(size, image.device)
    total: torch.Tensor | None = None
    for first in range(0, len(corners), batch_size):
        some = corners[first : first + batch_size]
        logits = model(_cut(image, some, size)).float()
        if total is None:
            total = logits.new_zeros(len(image), logits.shape[1], height, width)
        for one, (i, top, left) in zip(logits, some, strict=True):
            total[i, :, top : top + size[0], left : left + size[1]].addcmul_(one, weight)
    assert total is not None
    return total.div_(_sum_of_weights(weight, rows, columns, (height, width)))


def starts(length: int, window: int, overlap: float) -> list[int]:
    """First pixels of the windows along a side: from edge to edge at equal distances, which overlap as much or more."""
    if length <= window:
        return [0]
    stride = max(1, int(window * (1 - overlap)))
    steps = -(-(length - window) // stride)
    return [(length - window) * i // steps for i in range(steps + 1)]


@functools.lru_cache(maxsize=4)
def gaussian(size: Size, device: torch.device) -> torch.Tensor:
    """(H, W) float32 weights of a window's pixels, 1 at its centre and about 1e-7 in its corners."""
    sides = []
    for side in size:
        offsets = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / (SIGMA * side)
        sides.append(torch.exp(-(offsets**2) / 2))
    return torch.outer(*sides).float().to(device)


def margins_of(inner: Size, size: Size) -> tuple[list[int], Model]:
    """What F.pad adds around a picture that is smaller than a window, and what cuts it off again."""
    (height, width), (high, wide) = inner, size
    top, left = max(0, high - height) // 2, max(0, wide - width) // 2
    margins = [left, max(0, wide - width) - left, top, max(0, high - height) - top]
    return margins, lambda whole: whole[..., top : top + height, left : left + width]


def bytes_per_pixel(num_classes: int) -> int:
    """Bytes of the device that evaluation takes for each pixel of a picture, beside a batch of windows.

    The picture (3 float32), its target (int64), and the logits three times: their sum, and their log-softmax and its
    copy in the loss.
    """
    return 3 * 4 + 8 + 3 * 4 * num_classes


def num_windows(picture: Size, size: Size, overlap: float = OVERLAP) -> int:
    """Windows of one picture."""
    rows, columns = (starts(*sides, overlap) for sides in zip(picture, size, strict=True))
    return len(rows) * len(columns)


def _cut(image: torch.Tensor, corners: Sequence[Corner], size: Size) -> torch.Tensor:
    """(N, 3, H, W) windows, in the memory layout of the pictures."""
    windows = [image[i : i + 1, :, top : top + size[0], left : left + size[1]] for i, top, left in corners]
    return torch.cat(windows)


def _sum_of_weights(weight: torch.Tensor, rows: Sequence[int], columns: Sequence[int], picture: Size) -> torch.Tensor:
    """(h, w) what the windows' weights add up to at each pixel."""
    total = weight.new_zeros(picture)
    for top in rows:
        for left in columns:
            total[top : top + weight.shape[0], left : left + weight.shape[1]].add_(weight)
    return total
