"""Colour, sharpness and noise of pictures (N, 3, H, W) float32 in 0-255; the trimap has no part in it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

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
    """Gaussian blur, each picture by its own sigma (N,), over 2 radius + 1 pixels; reflects at the border.

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


def add_noise(picture: torch.Tensor, std: float, at: tuple[int, int]) -> None:
    """Add normal noise to one picture (3, H, W), in place: the window `at` of the noise bank.

    Fresh noise for each picture would have to be drawn on the host and carried over, since devices draw differently.
    """
    (y, x), size = at, picture.shape[-1]
    picture.add_(_noise_bank(size, picture.device)[:, y : y + size, x : x + size], alpha=std)


@functools.lru_cache(maxsize=4)
def _noise_bank(size: int, device: torch.device) -> torch.Tensor:
    """(3, size + NOISE_OFFSETS, size + NOISE_OFFSETS) standard normal, always the same."""
    side = size + NOISE_OFFSETS
    noise = np.random.Generator(np.random.Philox(key=0)).standard_normal((3, side, side), dtype=np.float32)
    return torch.from_numpy(noise).to(device)


def hide(picture: torch.Tensor, hole: Sequence[int]) -> None:
    """Fill a rectangle (top, left, bottom, right) of one picture (3, H, W) with its mean colour, in place."""
    top, left, bottom, right = hole
    picture[:, top:bottom, left:right] = picture.mean(dim=(1, 2)).view(3, 1, 1)
