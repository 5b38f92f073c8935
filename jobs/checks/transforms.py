"""Check of the augmentation: on drawn pairs, in which the picture says what the mask must be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from jobs.checks.setup import Finding, Setup
from petseg.augment import batch, draws
from petseg.config import AugmentConfig

SIZE_PX, CELL_PX, PAIRS = 128, 16, 8
VALUES = (1, 2, 3)  # of the labels
GREYS = (0.0, 127.5, 255.0)  # of the picture where the labels are those
MIN_AGREEMENT = 0.98  # away from edges; right pairs have 0.999 (rounding), masks that stay behind 0.75 to 0.88
STRONG_PER_SIGMA = 40.0  # elastic_alpha over elastic_sigma_px at which the displacement is 3.2 px rms


def check_transforms(setup: Setup) -> Finding:
    """Each augmentation moves picture and mask alike, leaves the mask its values, and is a function of its seed."""
    what, details = "transforms", list[str]()
    for config in setup.distinct(lambda config: config.augment):
        policy = config.augment.policy
        if policy == "none":
            details.append(policy)
            continue
        problem, agreement = try_policy(config.augment)
        if problem:
            return Finding("FAIL", what, f"{policy}: {problem}", "look at petseg.augment.batch.apply and draws.draw")
        name = "augment.strong_p" if policy == "strong" else "augment.p"
        if (config.augment.strong_p if policy == "strong" else config.augment.p) == 0:
            return Finding("warn", what, f"{policy} with {name} = 0 changes nothing", f"raise {name}")
        details.append(f"{policy} {100 * agreement:.1f} %")
    return Finding("ok", what, f"picture and mask agree after {', '.join(details)}")


def try_policy(config: AugmentConfig) -> tuple[str, float]:
    """What is wrong, empty if nothing, and the share of pixels away from edges on which picture and mask agree.

    Every pair is augmented, and strongly: at the lab's half a pixel a mask that stays behind would hardly show. Where
    picture and mask are compared, colours, sharpness and holes stay out of it.
    """
    alpha = max(config.elastic_alpha, STRONG_PER_SIGMA * config.elastic_sigma_px)
    strong = replace(config, p=1.0, strong_p=1.0, elastic_alpha=alpha)
    still = replace(strong, color_strength=0.0, blur_max_sigma_px=0.0, noise_max_std=0.0, cutout_max_side=1e-3)
    image, drawn = drawn_pairs()
    agreement = agreement_of(*_augmented(still, image, drawn, epoch=1))
    moved, labels = _augmented(strong, image, drawn, epoch=1)
    again = _augmented(strong, image, drawn, epoch=1)
    half = replace(strong, p=0.5, strong_p=0.5)
    first, other = (_augmented(half, image, drawn, epoch)[0] for epoch in (1, 2))
    if foreign := sorted(set(labels.unique().tolist()) - set(VALUES)):
        return f"the mask has values {foreign} that it had not", agreement
    if agreement < MIN_AGREEMENT:
        return f"picture and mask agree on {100 * agreement:.1f} % of the pixels away from edges", agreement
    if not (torch.equal(moved, again[0]) and torch.equal(labels, again[1])):
        return "two calls with the same seed, epoch and sample differ", agreement
    if torch.equal(moved, image):
        return "with augment.p = 1 it leaves pictures as they are", agreement
    if torch.equal(first, other):
        return "all epochs have the same draws", agreement
    return "", agreement


def drawn_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Random cells of three values: pictures (B, 3, H, W) float32 in 0-255, labels (B, H, W) uint8."""
    cells = np.random.default_rng(0).integers(0, len(VALUES), (PAIRS, SIZE_PX // CELL_PX, SIZE_PX // CELL_PX))
    classes = torch.from_numpy(cells.repeat(CELL_PX, axis=1).repeat(CELL_PX, axis=2))
    image = torch.tensor(GREYS)[classes].unsqueeze(1).expand(-1, 3, -1, -1).contiguous()
    return image, torch.tensor(VALUES, dtype=torch.uint8)[classes]


def agreement_of(image: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the pixels whose neighbours all have their label, on which the picture says that label too."""
    mask = labels.float().unsqueeze(1)
    inside = (F.max_pool2d(mask, 3, 1, 1) == -F.max_pool2d(-mask, 3, 1, 1)).squeeze(1)
    nearest = (image[:, :1] - torch.tensor(GREYS).view(1, -1, 1, 1)).abs().argmin(dim=1)
    says = torch.tensor(VALUES, dtype=labels.dtype)[nearest]
    return (says == labels)[inside].float().mean().item()


def _augmented(
    config: AugmentConfig, image: torch.Tensor, labels: torch.Tensor, epoch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    changes = draws.draw(config, np.arange(PAIRS), 0, epoch, SIZE_PX)
    return batch.apply(changes, image.clone(), labels.clone(), config)
