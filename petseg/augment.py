"""Paired augmentation: one random draw per sample moves picture and trimap together, batched, on the device.

The draws of a sample are a function of (seed, epoch, sample) alone, so the pixels do not depend on the number of
processes, the batch, or a resume. The elastic displacement has the statistics of torchvision's ElasticTransform
(uniform noise in [-1, 1], blurred with a Gaussian of `sigma` pixels, times `alpha / 2` pixels) but is summed from
Gaussian bumps on a coarse grid: two small matrix products instead of a blur of the full field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from petseg.config import AugmentConfig
from petseg.data.plan import Ids


@dataclass(frozen=True)
class Draws:
    """Geometric changes of the samples of a batch that are changed at all.

    rows: (N,) their places in the batch
    affine: (N, 2, 3) float32, output -> input coordinates, both in [-1, 1] as grid_sample has them
    noise: (N, 2, G, G) float32 standard normal, the elastic displacement (x, y) on its coarse grid; 0 = none
    """

    rows: torch.Tensor
    affine: torch.Tensor
    noise: torch.Tensor


def generator(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """Independent random numbers for each (seed, epoch, sample), the same on every machine."""
    key = np.array([(seed << 32) | epoch, sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def draw(config: AugmentConfig, ids: Ids, seed: int, epoch: int, image_size_px: int) -> Draws | None:
    """Random changes for the samples `ids` (B,) of one batch; None if none of them is changed."""
    if config.policy == "none":
        return None
    side = _grid_side(image_size_px, config.elastic_sigma_px)
    rows, affine, noise = [], [], []
    for row, sample in enumerate(ids):
        rng = generator(seed, epoch, int(sample))
        if rng.random() >= config.p:
            continue
        crop = config.policy == "elastic_crop" and rng.random() < 0.5
        rows.append(row)
        affine.append(_random_crop(rng, config.crop_min_area) if crop else np.eye(2, 3))
        noise.append(np.zeros((2, side, side)) if crop else rng.standard_normal((2, side, side)))
    if not rows:
        return None
    return Draws(
        rows=torch.tensor(rows),
        affine=torch.from_numpy(np.stack(affine).astype(np.float32)),
        noise=torch.from_numpy(np.stack(noise).astype(np.float32)),
    )


def apply(
    draws: Draws | None, image: torch.Tensor, trimap: torch.Tensor, config: AugmentConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move picture (B, 3, H, W) float and trimap (B, H, W) uint8 by the same draws; returns new tensors.

    The picture is interpolated bilinearly, the trimap takes the nearest pixel, both reflect at the border.
    """
    if draws is None:
        return image, trimap
    device, size = image.device, image.shape[-1]
    rows = draws.rows.to(device, non_blocking=True)
    grid = F.affine_grid(draws.affine.to(device, non_blocking=True), [len(rows), 1, size, size], align_corners=False)
    if config.elastic_alpha > 0:
        grid = grid + displacement(draws.noise.to(device, non_blocking=True), config, size) * (2 / size)
    image, trimap = image.clone(), trimap.clone()
    moved = F.grid_sample(image[rows], grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    labels = trimap[rows].unsqueeze(1).float()
    labels = F.grid_sample(labels, grid, mode="nearest", padding_mode="reflection", align_corners=False)
    image[rows] = moved
    trimap[rows] = labels.squeeze(1).to(trimap.dtype)
    return image, trimap


def displacement(noise: torch.Tensor, config: AugmentConfig, image_size_px: int) -> torch.Tensor:
    """Coarse noise (N, 2, G, G) -> displacement (N, H, W, 2) in pixels.

    A sum of Gaussian bumps over white noise has the same autocovariance as blurred white noise; the bumps stand one
    sigma apart. Uniform noise in [-1, 1] has variance 1/3; a normalised Gaussian blur in two dimensions divides the
    variance by 4 pi sigma^2.
    """
    sigma, side = config.elastic_sigma_px, noise.shape[-1]
    pixels = torch.arange(image_size_px, device=noise.device, dtype=noise.dtype) + 0.5
    bumps = (torch.arange(side, device=noise.device, dtype=noise.dtype) - _MARGIN) * sigma
    weights = torch.exp(-((pixels[:, None] - bumps[None, :]) ** 2) / (2 * sigma**2))
    weights = weights / weights.square().sum(dim=1, keepdim=True).sqrt()  # (H, G), unit variance at each pixel
    rms_px = config.elastic_alpha / 2 * math.sqrt(1 / 3 / (4 * math.pi * sigma**2))
    return torch.einsum("hi,ncij,wj->nhwc", weights, noise, weights) * rms_px


_MARGIN = 3  # bumps beyond the border, so that the field is as strong there as inside


def _grid_side(image_size_px: int, sigma_px: float) -> int:
    return math.ceil(image_size_px / sigma_px) + 2 * _MARGIN


def _random_crop(rng: np.random.Generator, min_area: float) -> np.ndarray:
    """A square crop at a random place, scaled back to the full size: (2, 3)."""
    scale = math.sqrt(rng.uniform(min_area, 1))
    x, y = rng.uniform(scale - 1, 1 - scale, size=2)
    return np.array([[scale, 0, x], [0, scale, y]])
