"""Predictions at the size that pictures came in, against their trimaps as they were drawn."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from shards.manifest import Manifest


def why_not_native(manifest: Manifest) -> str:
    """Why a shard set has no trimaps at native size, "" if it has.

    A sample's JSON then still records `original_width_px` and `original_height_px`, but the trimap's pixels are gone.
    """
    side_px = manifest.packer.get("image_size_px", 0)
    if not side_px:
        return ""
    return (
        f"the shards hold pictures and trimaps squashed to {side_px} px: pack the set with --image-size-px 0 "
        "for numbers at native resolution"
    )


def to_native(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(C, S, S) logits of one picture -> (1, C, H, W) float32, bilinear: the squash to a square is undone."""
    return F.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)
