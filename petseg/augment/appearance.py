"""Colour, sharpness and noise of pictures (N, 3, H, W) float32 in 0-255; the labels have no part in it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from petseg.config.sizes import Size
from petseg.data.transfer import floats, indices

Corner = tuple[int, int]  # row and column of a window's first pixel
Hole = tuple[int, int, int, int]  # top, left, bottom, right: the last two outside

NOISE_OFFSETS = 256  # windows of the noise bank per direction
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow and torchvision have it
_TO_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def color_matrix(brightness: float, contrast: float, saturation: float, hue_deg: float) -> NDArray[np.float64]:
    """(3, 6): new RGB = matrix @ (RGB, mean RGB of the picture); three factors and a turn of the hue.

    All four are linear, so they are one matrix: the picture times `brightness`, drawn away from its mean grey by
    `contrast` and from its own grey by `saturation`, as in torchvision, then turned in the plane of YIQ. Saturation and
    hue leave greys and brightness as they are, so the order of the first three does not matter.
    """
    cos, sin = math.cos(math.radians(hue_deg)), math.sin(math.radians(hue_deg))
    hue = np.linalg.inv(_TO_YIQ) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _TO_YIQ
    colorful = saturation * np.eye(3) + (1 - saturation) * np.outer(np.ones(3), _LUMA)
    mixed = contrast * brightness * hue @ colorful
    mean_grey = (1 - contrast) * brightness * np.outer(np.ones(3), _LUMA)
    return np.concatenate([mixed, mean_grey], axis=1)


def recolor(image: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Pictures by their `color_matrix` (N, 3, 6)."""
    mean_grey = torch.bmm(matrices[:, :, 3:], image.mean(dim=(2, 3)).unsqueeze(2))  # (N, 3, 1)
    return torch.baddbmm(mean_grey, matrices[:, :, :3], image.flatten(2)).view(image.shape)


def blur(image: torch.Tensor, sigmas_px: torch.Tensor, radius_px: int) -> torch.Tensor:
    """Gaussian blur, each picture by its own sigma (N,), over 2 radius + 1 pixels; reflects at the edge.

    A sum of shifted pictures: a grouped convolution of two dimensions takes half as long again.
    """
    offsets = torch.arange(-radius_px, radius_px + 1, device=image.device, dtype=image.dtype)
    taps = torch.exp(-((offsets / sigmas_px.clamp(min=1e-3)[:, None]) ** 2) / 2)
    taps = (taps / taps.sum(dim=1, keepdim=True)).view(len(image), -1, 1, 1, 1)
    for dim, pad in ((3, (radius_px, radius_px, 0, 0)), (2, (0, 0, radius_px, radius_px))):
        padded, size = F.pad(image, pad, mode="reflect"), image.shape[dim]
        image = torch.zeros_like(image)
        for k in range(2 * radius_px + 1):
            image.addcmul_(padded.narrow(dim, k, size), taps[:, k])
    return image


def add_noise(image: torch.Tensor, rows: Sequence[int], stds: Sequence[float], corners: Sequence[Corner]) -> None:
    """Add normal noise to some pictures of (N, 3, H, W), in place: each takes the noise bank's window at its corner.

    rows: (M) of the pictures; stds: (M) in grey levels of 255; corners: (M) row and column in the bank
    Fresh noise for each picture would have to be drawn on the host and carried over, since devices draw differently.
    """
    add = _add_noise_one_by_one if image.device.type == "cpu" else _add_noise_together
    add(image, rows, stds, corners)


def _add_noise_one_by_one(
    image: torch.Tensor, rows: Sequence[int], stds: Sequence[float], corners: Sequence[Corner]
) -> None:
    """Least work: a window is a view of the bank. On a GPU each picture would be a launch."""
    height, width = image.shape[-2:]
    bank = _noise_bank((height, width), image.device)
    for row, std, (y, x) in zip(rows, stds, corners, strict=True):
        image[row].add_(bank[:, y : y + height, x : x + width], alpha=std)


def _add_noise_together(
    image: torch.Tensor, rows: Sequence[int], stds: Sequence[float], corners: Sequence[Corner]
) -> None:
    device, (height, width) = image.device, image.shape[-2:]
    first_y, first_x = indices([*itertools.chain(*corners)], device).view(-1, 2, 1).unbind(1)  # (M, 1) each
    y, x = first_y + torch.arange(height, device=device), first_x + torch.arange(width, device=device)
    windows = _noise_bank((height, width), device)[:, y[:, :, None], x[:, None, :]].transpose(0, 1)  # (M, 3, H, W)
    at = indices(rows, device)
    noisy = image.index_select(0, at).addcmul_(windows, floats(stds, device).view(-1, 1, 1, 1))
    image.index_copy_(0, at, noisy)


@functools.lru_cache(maxsize=4)
def _noise_bank(size: Size, device: torch.device) -> torch.Tensor:
    """(3, height + NOISE_OFFSETS, width + NOISE_OFFSETS) standard normal, always the same."""
    shape = (3, size[0] + NOISE_OFFSETS, size[1] + NOISE_OFFSETS)
    noise = np.random.Generator(np.random.Philox(key=0)).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(noise).to(device)


def hide(image: torch.Tensor, rows: Sequence[int], holes: Sequence[Hole]) -> None:
    """Fill a rectangle of some pictures of (N, 3, H, W) with their mean colour, in place; rows, holes: (M)."""
    (_hide_one_by_one if image.device.type == "cpu" else _hide_together)(image, rows, holes)


def _hide_one_by_one(image: torch.Tensor, rows: Sequence[int], holes: Sequence[Hole]) -> None:
    """Least work: only the rectangle is written. On a GPU each picture would be a launch."""
    for row, (top, left, bottom, right) in zip(rows, holes, strict=True):
        picture = image[row]
        picture[:, top:bottom, left:right] = picture.mean(dim=(1, 2)).view(3, 1, 1)


def _hide_together(image: torch.Tensor, rows: Sequence[int], holes: Sequence[Hole]) -> None:
    device, (height, width) = image.device, image.shape[-2:]
    sides = indices([*itertools.chain(*holes)], device).view(-1, 4, 1, 1, 1)
    top, left, bottom, right = sides.unbind(1)  # (M, 1, 1, 1) each
    y, x = torch.arange(height, device=device).view(-1, 1), torch.arange(width, device=device)
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)  # (M, 1, H, W)
    at = indices(rows, device)
    pictures = image.index_select(0, at)
    image.index_copy_(0, at, torch.where(inside, pictures.mean(dim=(2, 3), keepdim=True), pictures))
