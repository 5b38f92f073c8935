"""Where each pixel comes from: one composed field per sample, affine and elastic, and one grid_sample for it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from petseg.config import AugmentConfig
from petseg.config.sizes import ImageSize, Size, size_of

_MARGIN = 3  # bumps beyond the edge, so that the displacement is as strong there as inside


def warp(image: torch.Tensor, labels: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture (N, 3, H, W) float, bilinear, and labels (N, H, W) uint8, nearest, at grid (N, 2, H, W) of (x, y).

    Both reflect at the edge. The grid stays planar: grid_sample takes either layout, and it need not be rewritten.
    """
    places = grid.permute(0, 2, 3, 1)
    moved = F.grid_sample(image, places, mode="bilinear", padding_mode="reflection", align_corners=False)
    planes = labels.unsqueeze(1).float()
    planes = F.grid_sample(planes, places, mode="nearest", padding_mode="reflection", align_corners=False)
    return moved, planes.squeeze(1).to(labels.dtype)


def affine_grid(affine: torch.Tensor, image_size_px: ImageSize | Size) -> torch.Tensor:
    """(N, 2, 3) output -> input -> (N, 2, H, W) places in [-1, 1]: what F.affine_grid gives, at a tenth of its time."""
    y, x = (
        (torch.arange(side, device=affine.device, dtype=affine.dtype) * 2 + 1) / side - 1
        for side in size_of(image_size_px)
    )
    along_x = affine[:, :, 0, None] * x  # (N, 2, W)
    along_y = affine[:, :, 1, None] * y + affine[:, :, 2, None]  # (N, 2, H)
    return along_x.unsqueeze(2) + along_y.unsqueeze(3)


def displacement(bumps: torch.Tensor, config: AugmentConfig, image_size_px: ImageSize | Size) -> torch.Tensor:
    """White noise on the coarse grid (N, 2, rows, columns) -> displacement (x, y) in pixels: (N, 2, H, W).

    A sum of Gaussian bumps over white noise has the same autocovariance as blurred white noise; the bumps stand one
    sigma apart. Uniform noise in [-1, 1] has variance 1/3; a normalised Gaussian blur in two dimensions divides the
    variance by 4 pi sigma^2.
    """
    sigma = config.elastic_sigma_px
    along_y, along_x = (
        _bump_weights(side, count, sigma, bumps)
        for side, count in zip(size_of(image_size_px), bumps.shape[-2:], strict=True)
    )
    rms_px = config.elastic_alpha / 2 * math.sqrt(1 / 3 / (4 * math.pi * sigma**2))
    # the second factor contiguous: as a transposed view it takes twice as long
    return (along_y * rms_px) @ (bumps @ along_x.T.contiguous())


def _bump_weights(side_px: int, count: int, sigma: float, like: torch.Tensor) -> torch.Tensor:
    """(side_px, count) weight of each bump at each pixel of a side."""
    pixels = torch.arange(side_px, device=like.device, dtype=like.dtype) + 0.5
    centres = (torch.arange(count, device=like.device, dtype=like.dtype) - _MARGIN) * sigma
    weights = torch.exp(-((pixels[:, None] - centres[None, :]) ** 2) / (2 * sigma**2))
    return weights / weights.square().sum(dim=1, keepdim=True).sqrt()  # unit variance at each pixel


def bumps_per_side(side_px: int, sigma_px: float) -> int:
    """Bumps of the coarse grid along a side of the picture."""
    return math.ceil(side_px / sigma_px) + 2 * _MARGIN
