"""A batch's changes carried out on the device: gathered, moved, recoloured and put back, or added."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from petseg.augment.appearance import add_noise, blur, hide, recolor
from petseg.augment.draws import Change, draw
from petseg.augment.warp import affine_grid, displacement, warp
from petseg.config import AugmentConfig, RunConfig
from petseg.data.plan import Ids
from petseg.data.transfer import floats, indices

Pair = tuple[torch.Tensor, torch.Tensor]  # pictures (B, 3, H, W) float in 0-255, labels (B, H, W) uint8


def apply(changes: Sequence[Change], image: torch.Tensor, labels: torch.Tensor, config: AugmentConfig) -> Pair:
    """The batch with changed samples in their originals' places; what is not changed stays bit for bit."""
    if not changes:
        return image, labels
    rows = _rows(changes, image.device)
    moved, moved_labels = _changed(changes, image.index_select(0, rows), labels.index_select(0, rows), config)
    return _put(image, rows, moved), _put(labels, rows, moved_labels)


def augment_batch(
    config: RunConfig, ids: Ids, epoch: int, image: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The batch as an epoch (from 1) trains on it; ids and weight (B,). With `augment.mode` add, copies join it."""
    changes = draw(config.augment, ids, config.train.seed, epoch, config.data.image_size_px)
    if config.augment.mode == "add":
        return with_copies(changes, image, labels, weight, config.augment)
    return *apply(changes, image, labels, config.augment), weight


def with_copies(
    changes: Sequence[Change], image: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, config: AugmentConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The batch as it is, followed by changed copies; weight (B,) -> (B + copies,).

    Original and copy have half of the picture's weight each: a picture counts once in a step's mean, as it does in the
    ledger, on any number of ranks. So the sums of loss, Dice and IoU are over pictures too, that of a picture with a
    copy being the mean of both.
    """
    if not changes:
        return image, labels, weight
    rows = _rows(changes, image.device)
    moved, moved_labels = _changed(changes, image.index_select(0, rows), labels.index_select(0, rows), config)
    half = weight.index_select(0, rows) / 2
    weight = torch.cat([weight.index_copy(0, rows, half), half])
    return torch.cat([image, moved]), torch.cat([labels, moved_labels]), weight


def _changed(changes: Sequence[Change], image: torch.Tensor, labels: torch.Tensor, config: AugmentConfig) -> Pair:
    """Samples (N, ...), each by its change. The tensors are this function's own."""
    image = image.contiguous()  # grid_sample reads planes quicker than channels_last, and writes nothing else
    if flips := [i for i, change in enumerate(changes) if change.flip]:
        rows = indices(flips, image.device)
        image = _put(image, rows, _pick(image, rows).flip(-1))
        labels = _put(labels, rows, _pick(labels, rows).flip(-1))
    moved = [i for i, change in enumerate(changes) if change.affine is not None or change.bumps is not None]
    if moved:
        rows, grid = indices(moved, image.device), _grid([changes[i] for i in moved], image, config)
        pictures, moved_labels = warp(_pick(image, rows), _pick(labels, rows), grid)
        image, labels = _put(image, rows, pictures), _put(labels, rows, moved_labels)
    return _with_appearance(changes, image, config), labels


def _grid(changes: Sequence[Change], image: torch.Tensor, config: AugmentConfig) -> torch.Tensor:
    """The composed field of each change: (N, 2, H, W) in [-1, 1]."""
    device, (height, width) = image.device, image.shape[-2:]
    affine = np.stack([np.eye(2, 3) if change.affine is None else change.affine for change in changes])
    grid = affine_grid(floats(affine, device), (height, width))
    if bumps := [(i, change.bumps) for i, change in enumerate(changes) if change.bumps is not None]:
        rows, noise = zip(*bumps, strict=True)
        field = displacement(floats(np.stack(noise), device), config, (height, width))
        for axis, side in enumerate((width, height)):
            field[:, axis].mul_(2 / side)
        grid = grid.add_(field) if len(rows) == len(grid) else grid.index_add_(0, indices(rows, device), field)
    return grid


def _with_appearance(changes: Sequence[Change], image: torch.Tensor, config: AugmentConfig) -> torch.Tensor:
    """Pictures recoloured, blurred or made noisy, cut to 0-255, and with their holes."""
    device = image.device
    if colors := [(i, change.color) for i, change in enumerate(changes) if change.color is not None]:
        picks, matrices = zip(*colors, strict=True)
        rows = indices(picks, device)
        image = _put(image, rows, recolor(_pick(image, rows), floats(np.stack(matrices), device)))
    if blurred := [(i, change.blur_sigma_px) for i, change in enumerate(changes) if change.blur_sigma_px]:
        picks, sigmas = zip(*blurred, strict=True)
        rows, radius = indices(picks, device), math.ceil(3 * config.blur_max_sigma_px)
        image = _put(image, rows, blur(_pick(image, rows), floats(sigmas, device), radius))
    if noisy := [(i, change.noise_std, change.noise_at) for i, change in enumerate(changes) if change.noise_std]:
        add_noise(image, *zip(*noisy, strict=True))
    image.clamp_(0, 255)  # all: interpolated white may be 255.00002, and must not depend on its batch's other changes
    if holes := [(i, change.hole) for i, change in enumerate(changes) if change.hole]:
        hide(image, *zip(*holes, strict=True))
    return image


def _pick(whole: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return whole if len(rows) == len(whole) else whole.index_select(0, rows)


def _put(whole: torch.Tensor, rows: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    return part if len(part) == len(whole) else whole.index_copy(0, rows, part)


def _rows(changes: Sequence[Change], device: torch.device) -> torch.Tensor:
    return indices([change.row for change in changes], device)
