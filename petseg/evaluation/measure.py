"""Validation during training: a model's loss and Dice on a split, without the rest of petseg.evaluation.protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from petseg.data.inputs import IGNORE_INDEX
from petseg.data.ledger import Ledger
from petseg.evaluation.gathered import close_ledger, collect
from petseg.evaluation.network import network_of, pixels_of
from petseg.evaluation.protocol import Protocol, forward
from petseg.metrics.overlay import Pixels, draw_classes, draw_overlay
from petseg.metrics.pixels import PerImage, count_pixels
from petseg.metrics.tta import predict_logits
from petseg.run.batches import batches_at, eval_inputs
from petseg.run.parts import Parts
from petseg.targets.target import Target


@torch.no_grad()
def measure(parts: Parts, split: str) -> PerImage:
    """Loss and pixel counts of each picture of a split, each seen exactly once; all ranks return the same.

    Ranks work alone and exchange results once at the end, so that uneven shares cannot hang. Raises Failure, on all
    ranks, if a picture cannot be read or is missing from the results.
    """
    counted = parts.target.counted
    rows = [torch.zeros((0, 3 + 3 * len(counted)), dtype=torch.float64, device=parts.device)]
    ledger = Ledger()
    for batch, logits, target in forward(parts, split, "none", ledger):
        columns = [torch.from_numpy(batch.plan.ids).to(logits.device), parts.loss(logits, target)]
        columns.append(pixels_of(parts, target))
        counts = count_pixels(logits, target, counted).flatten(1)
        rows.append(torch.cat([torch.stack([c.double() for c in columns], dim=1), counts.double()], dim=1))
    close_ledger(parts, split, ledger)
    table = collect(parts, split, torch.cat(rows))
    by_class = table[:, 3:].astype(np.int64).reshape(len(table), len(counted), 3)
    return PerImage(counts=by_class, loss=table[:, 1], pixels=table[:, 2])


@dataclass(frozen=True)
class PredictedPicture:
    """A picture with its true and its predicted mask, for display."""

    key: str
    image: Pixels  # (H, W, 3) uint8
    truth: Pixels  # (H, W) uint8 classes, 255 where ignored
    prediction: Pixels  # (H, W) uint8 classes
    target: Target

    @property
    def counts(self) -> NDArray[np.bool_]:
        """(H, W) where the picture is measured."""
        return self.truth != IGNORE_INDEX

    def overlay(self) -> Pixels:
        if self.target.is_binary:
            return draw_overlay(self.image, self.truth == 1, (self.prediction == 1) & self.counts)
        return draw_classes(self.image, self.truth, self.prediction, [one.colour for one in self.target.classes])


@torch.no_grad()
def predict(
    parts: Parts, split: str, positions: Sequence[int], protocol: Protocol | None = None
) -> list[PredictedPicture]:
    """The masks of some pictures of a split, by default without test-time augmentation."""
    protocol = protocol or Protocol()
    parts.bare_model.eval()
    pictures = []
    for position, batch in zip(positions, batches_at(parts, split, positions), strict=True):
        image, target = eval_inputs(parts, batch)
        with parts.accelerator.autocast():
            prediction = protocol.predicted(predict_logits(network_of(parts), image, protocol.tta))
        truth, predicted = (mask[0].cpu().numpy().astype(np.uint8) for mask in (target, prediction))
        key, pixels = parts.splits[split].key(position), batch.image[0].cpu().numpy()
        pictures.append(PredictedPicture(key, pixels, truth, predicted, parts.target))
    return pictures
