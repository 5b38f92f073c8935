"""What happens to which sample: random draws on the host, a function of (seed, epoch, sample) alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petseg.augment.appearance import NOISE_OFFSETS, Corner, Hole, color_matrix
from petseg.augment.warp import bumps_per_side
from petseg.config import AugmentConfig
from petseg.config.sizes import ImageSize, Size, size_of
from petseg.data.plan import Ids

Floats = NDArray[np.floating]
Fields = dict[str, Any]  # of a Change


@dataclass(frozen=True)
class Change:
    """What happens to one sample of a batch, in this order; what is None, False or 0 does not happen."""

    row: int  # its place in the batch
    flip: bool = False
    affine: Floats | None = None  # (2, 3) output -> input coordinates, both in [-1, 1] as grid_sample has them
    bumps: Floats | None = None  # (2, rows, columns) standard normal, the displacement (x, y) on its coarse grid
    color: Floats | None = None  # (3, 6) new RGB from RGB and the picture's mean RGB
    blur_sigma_px: float = 0.0
    noise_std: float = 0.0  # in grey levels of 255
    noise_at: Corner = (0, 0)  # the window of the noise bank
    hole: Hole | None = None  # pixels of the picture that are hidden


def draw(config: AugmentConfig, ids: Ids, seed: int, epoch: int, image_size_px: ImageSize | Size) -> list[Change]:
    """The changes of those samples `ids` (B,) of one batch that are changed, in the order of their rows."""
    if config.policy == "none":
        return []
    changes, size = [], size_of(image_size_px)
    p = config.strong_p if config.policy == "strong" else config.p
    for row, sample in enumerate(ids):
        rng = generator(seed, epoch, int(sample))
        if rng.random() < p:
            changes.append(Change(row, **POLICIES[config.policy](rng, config, size)))
    return changes


def generator(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """Independent random numbers for each (seed, epoch, sample), the same on every machine."""
    key = np.array([(seed << 32) | epoch, sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _elastic(rng: np.random.Generator, config: AugmentConfig, size: Size) -> Fields:
    rows, columns = (bumps_per_side(side, config.elastic_sigma_px) for side in size)
    return {"bumps": rng.standard_normal((2, rows, columns))}


def _elastic_crop(rng: np.random.Generator, config: AugmentConfig, size: Size) -> Fields:
    if rng.random() >= 0.5:
        return _elastic(rng, config, size)
    scale = math.sqrt(rng.uniform(config.crop_min_area, 1))
    x, y = rng.uniform(scale - 1, 1 - scale, size=2)
    return {"affine": np.array([[scale, 0, x], [0, scale, y]])}


def _flip(rng: np.random.Generator, config: AugmentConfig, size: Size) -> Fields:
    return {"flip": True}


def _rotate(rng: np.random.Generator, config: AugmentConfig, size: Size) -> Fields:
    angle = math.radians(rng.uniform(-config.rotate_max_deg, config.rotate_max_deg))
    cos, sin = math.cos(angle), math.sin(angle)
    aspect = size[0] / size[1]  # [-1, 1] is the height and the width: what is turned in pixels is sheared in them
    return {"affine": np.array([[cos, -sin * aspect, 0], [sin / aspect, cos, 0]])}


def _scale(rng: np.random.Generator, config: AugmentConfig, size: Size) -> Fields:
    """About a random point of the picture, so that a crop may lie anywhere; as often half as twice the size."""
    magnification = math.exp(rng.uniform(math.log(config.scale_min), math.log(config.scale_max)))
    x, y = rng.uniform(-1, 1, size=2) * (1 - 1 / magnification)
    return {"affine": np.array([[1 / magnification, 0, x], [0, 1 / magnification, y]])}


def _rotate_scale(rng: np.random.Generator, config: AugmentConfig, size: Size) -> Fields:
    rotation, scaling = (change(rng, config, size)["affine"] for change in (_rotate, _scale))
    return {"affine": rotation[:, :2] @ scaling}


def _color(rng: np.random.Generator, config: AugmentConfig, size: Size) -> Fields:
    strength = config.color_strength
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
    turn_deg = rng.uniform(-HUE_DEG * strength, HUE_DEG * strength)
    return {"color": color_matrix(brightness, contrast, saturation, turn_deg)}


def _blur_noise(rng: np.random.Generator, config: AugmentConfig, size: Size) -> Fields:
    if rng.random() < 0.5:
        return {"blur_sigma_px": rng.uniform(config.blur_max_sigma_px / 2, config.blur_max_sigma_px)}
    y, x = rng.integers(NOISE_OFFSETS, size=2).tolist()
    return {"noise_std": rng.uniform(0, config.noise_max_std), "noise_at": (y, x)}


def _cutout(rng: np.random.Generator, config: AugmentConfig, size: Size) -> Fields:
    """DeVries and Taylor 2017, with sides from half of the longest to the longest, wholly inside the picture."""
    longest = config.cutout_max_side
    shares = rng.uniform(longest / 2, longest, size=2)
    height, width = (max(1, round(side * share)) for side, share in zip(size, shares, strict=True))
    top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
    return {"hole": (top, left, top + height, left + width)}


def _strong(rng: np.random.Generator, config: AugmentConfig, size: Size) -> Fields:
    fields: Fields = {}
    for change, p in STRONG:
        if rng.random() < p:
            fields |= change(rng, config, size)
    return fields


HUE_DEG = 45.0  # turn of the hue at color_strength 1

POLICIES: dict[str, Callable[[np.random.Generator, AugmentConfig, Size], Fields]] = {
    "elastic": _elastic,
    "elastic_crop": _elastic_crop,
    "flip": _flip,
    "rotate": _rotate,
    "scale": _scale,
    "color": _color,
    "blur_noise": _blur_noise,
    "cutout": _cutout,
    "strong": _strong,
}

# The parts of `strong` and their chances. Training from scratch on a few thousand pictures wants most of them moved and
# recoloured, as timm's recipes do (flip 0.5, scale and colour always); elastic, blur and noise are rare as in nnU-Net.
STRONG = (
    (_flip, 0.5), (_rotate_scale, 0.7), (_elastic, 0.2), (_color, 0.8), (_blur_noise, 0.2), (_cutout, 0.2),
)  # fmt: skip
