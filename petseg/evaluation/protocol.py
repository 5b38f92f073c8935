"""Measures the whole protocol in one pass over a split: rules, classes, network and native size, outlines, calibration.

Validation during training (`petseg.evaluation.measure`) does without it; the end of a run and the evaluate command
take the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from petseg.data.decode import Pixels
from petseg.data.inputs import IGNORE_INDEX
from petseg.data.ledger import Count, Ledger
from petseg.data.loader import Batch
from petseg.data.plan import Ids
from petseg.data.tars import Lost
from petseg.evaluation.gathered import close_ledger, collect, collect_masks
from petseg.evaluation.network import for_display, network_of, pixels_of
from petseg.metrics import BOUNDARY_RATIO, Tta
from petseg.metrics.boundary import boundary_iou, hd95_px
from petseg.metrics.calibration import Calibration, build_calibration
from petseg.metrics.components import keep_largest
from petseg.metrics.masks import Stored, store
from petseg.metrics.pixels import PerImage, Scores, confusion_of, count_masks, predicted_classes, prefixed, to_native
from petseg.metrics.tta import predict_logits
from petseg.run.batches import classes_by, eval_batches, eval_inputs
from petseg.run.parts import Parts
from petseg.targets.target import Target
from shards.manifest import Manifest

CHUNK = 4  # pictures scored at a time: at 384 px 64 at once exceed a CPU's cache, and took 38 ms each instead of 15
COLUMNS = 5  # of a class: true positives, false positives, false negatives, boundary IoU, HD95 in pixels


@dataclass(frozen=True)
class Protocol:
    """How a split is measured."""

    tta: Tta = "none"
    native: bool = False  # at the size that the pictures were packed at, too
    boundary_ratio: float = BOUNDARY_RATIO
    masks: bool = False  # keep the predicted masks, a bit per pixel
    keep_largest: bool = False  # of each predicted class only the largest connected part, the rest is background

    def predicted(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, K, H, W) logits -> (B, H, W) uint8, the classes that are measured."""
        classes = predicted_classes(logits)
        return keep_largest(classes, logits.shape[1]) if self.keep_largest else classes


@dataclass(frozen=True)
class Measured:
    """The results of a pass over a split, in the order of the split."""

    target: Target
    per_image: PerImage  # as validation measures it: the target's own rule at the network's size
    network: dict[str, Scores]  # by rule of the target, in the network's pixels
    native: dict[str, Scores]  # by rule of the target, in pixels of the original picture; {} if it was not measured
    calibration: Calibration  # the target's own rule at the network's size
    confusion: NDArray[np.int64] | None = None  # (K, K) pixels by true and predicted class; None with two classes
    masks: Stored | None = None  # as petseg.metrics.masks stores them; None unless asked for

    @property
    def own(self) -> Scores:
        """The scores at the network's size by the rule that the run was trained by."""
        return self.network[self.target.rule]

    def metrics(self, split: str, temperature: float | None) -> dict[str, float]:
        """Numbers by name, such as val/dice, val/RULE/dice, val/native/RULE/dice and val/ece.

        The target's own rule is listed without a prefix as well. With more than one class that counts there are also
        numbers of each, such as val/class/road/dice.
        temperature: fitted on val, None without a val split
        """
        named = {self.target.floor_name: self.per_image.one_class_dice(), "ece": self.calibration.reliability().ece}
        if temperature is not None:
            named |= {"temperature": temperature, "ece_scaled": self.calibration.scaled(temperature).ece}
        named |= self.own.means() | by_rule(self.network) | by_class(self.target, self.own)
        if self.native:
            native = self.native[self.target.rule]
            named |= prefixed("native", native.means() | by_rule(self.native) | by_class(self.target, native))
        return self.per_image.summary(split) | prefixed(split, named)


def by_rule(scores: Mapping[str, Scores]) -> dict[str, float]:
    """The means by rule, as RULE/dice and so on; nothing where there is one rule."""
    if len(scores) == 1:
        return {}
    return {name: value for rule, one in scores.items() for name, value in prefixed(rule, one.means()).items()}


def by_class(target: Target, scores: Scores) -> dict[str, float]:
    """The means by class, as class/road/dice and so on, of classes that are in some truth or prediction."""
    if len(target.counted) == 1:
        return {}
    named: dict[str, float] = {}
    for number, value in enumerate(target.counted):
        if scores.present[:, number].any():
            named |= prefixed(f"class/{target.names[value]}", scores.of_class(number))
    return named


@torch.no_grad()
def measure_protocol(parts: Parts, split: str, protocol: Protocol) -> Measured:
    """Measure each picture of a split once; all ranks return the same. Raises as `petseg.evaluation.measure`.

    For each picture a row of numbers is kept, and its mask if it is asked for; for all pixels together the confusion of
    the classes and histograms of the confidence.
    """
    target, device = parts.target, parts.device
    ledger, calibration = Ledger(), build_calibration(len(target), device)
    confusion = torch.zeros(len(target), len(target), dtype=torch.int64, device=device)
    width = COLUMNS * len(target.counted) * len(target.rules)
    at_native = parts.config.data.fit == "crop"  # whole pictures are measured once, at their own size
    sizes = 1 + (protocol.native and not at_native)
    rows, masks = [torch.zeros((0, 3 + width * sizes), dtype=torch.float64)], list[torch.Tensor]()
    with ThreadPoolExecutor(parts.config.data.threads, thread_name_prefix="measure") as pool:
        scorer = Scorer(parts, protocol, pool)
        for batch, logits, truth in forward(parts, split, protocol.tta, ledger):
            calibration.add(logits, truth)
            columns = [torch.from_numpy(batch.plan.ids)[:, None], parts.loss(logits, truth).cpu()[:, None]]
            columns.append(pixels_of(parts, truth).cpu()[:, None])
            predicted = protocol.predicted(logits)
            if not target.is_binary:
                confusion += confusion_of(predicted, truth, len(target))
            columns.append(scorer.score(predicted, batch.labels.to(device), batch.rows))
            if protocol.native and not at_native:
                labels = pool.map(parts.splits[split].tars.whole_labels, batch.plan.ids.tolist())
                columns.append(scorer.score_native(logits, labels, batch.rows, ledger))
            if protocol.masks:
                shown = for_display(parts, predicted).cpu().numpy()
                masks.append(torch.from_numpy(store(shown, packed=target.is_binary)))
            rows.append(torch.cat([column.double() for column in columns], dim=1))
    close_ledger(parts, split, ledger)
    calibration.reduce(parts.accelerator)
    own = torch.cat(rows)
    table = collect(parts, split, own.to(device))
    network, native = scores_of(target, table[:, 3 : 3 + width]), scores_of(target, table[:, 3 + width :])
    if protocol.native and at_native:
        native = network
    return Measured(
        target=target,
        per_image=PerImage(counts=network[target.rule].counts, loss=table[:, 1], pixels=table[:, 2]),
        network=network,
        native=native,
        calibration=calibration,
        confusion=None if target.is_binary else parts.accelerator.reduce(confusion).cpu().numpy(),
        masks=collect_masks(parts, own[:, 0].long(), masks) if protocol.masks else None,
    )


@torch.no_grad()
def calibrate(parts: Parts, split: str, tta: Tta) -> Calibration:
    """Measure only the calibration on a split; all ranks return the same. Raises as `measure_protocol`."""
    ledger, calibration = Ledger(), build_calibration(len(parts.target), parts.device)
    for _, logits, target in forward(parts, split, tta, ledger):
        calibration.add(logits, target)
    close_ledger(parts, split, ledger)
    calibration.reduce(parts.accelerator)
    return calibration


def forward(parts: Parts, split: str, tta: Tta, ledger: Ledger) -> Iterator[tuple[Batch, torch.Tensor, torch.Tensor]]:
    """This rank's batches of a split with logits (B, K, H, W) and target (B, H, W), entered in the ledger."""
    parts.bare_model.eval()
    for batch in eval_batches(parts, split):
        ledger.add(batch)
        image, target = eval_inputs(parts, batch)
        with parts.accelerator.autocast():
            logits = predict_logits(network_of(parts), image, tta)
        yield batch, logits, target


@dataclass(frozen=True)
class Scorer:
    """Compares predicted classes with labels by every rule of the target; the threads of `pool` measure distances."""

    parts: Parts
    protocol: Protocol
    pool: ThreadPoolExecutor

    def score(self, predicted: torch.Tensor, labels: torch.Tensor, rows: Ids | None = None) -> torch.Tensor:
        """(B, H, W) predicted classes and (B, H, W) labels, uint8 -> (B, rules * C * COLUMNS) float64, on the CPU.

        rows: (B,) of the samples in the target's tables, as Batch.rows
        """
        scored = []
        for start in range(0, len(labels), CHUNK):
            part = slice(start, start + CHUNK)
            scored.append(self._score_chunk(predicted[part], labels[part], None if rows is None else rows[part]))
        return torch.cat(scored)

    def _score_chunk(self, predicted: torch.Tensor, labels: torch.Tensor, rows: Ids | None) -> torch.Tensor:
        columns: list[torch.Tensor] = []
        for rule in self.parts.target.rules:
            truth = classes_by(self.parts, rule, labels, rows)
            counts = truth != IGNORE_INDEX
            of_classes = (((predicted == one) & counts, truth == one) for one in self.parts.target.counted)
            columns.extend(self._score_masks(*masks) for masks in of_classes)
        return torch.cat(columns, dim=1)

    def _score_masks(self, predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """(B, H, W) bool masks of a class -> (B, COLUMNS) float64; an absent class has no outlines to compare."""
        counts = count_masks(predicted, truth).double().cpu()
        outlines = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(len(counts), 1)
        seen = counts.sum(dim=1) > 0
        if seen.any():
            ours, theirs = (masks[seen.to(masks.device)] for masks in (predicted, truth))
            outlines[seen, 0] = boundary_iou(ours, theirs, self.protocol.boundary_ratio).cpu()
            distances = list(self.pool.map(hd95_px, ours.cpu().numpy(), theirs.cpu().numpy()))
            outlines[seen, 1] = torch.tensor(distances, dtype=torch.float64)
        return torch.cat([counts, outlines], dim=1)

    def score_native(
        self, logits: torch.Tensor, labels: Iterable[Pixels | Lost], rows: Ids | None, ledger: Ledger
    ) -> torch.Tensor:
        """As `score`, of (B, K, h, w) logits and the B labels (H, W) as packed; the ledger gets those that are lost."""
        width = COLUMNS * len(self.parts.target.counted) * len(self.parts.target.rules)
        scored = [torch.zeros((0, width), dtype=torch.float64)]
        for number, (picture, own) in enumerate(zip(logits, labels, strict=True)):
            if isinstance(own, Lost):
                ledger.lost.append(own)
                ledger.count += Count(lost=1, unnamed=1)
                scored.append(scored[0].new_zeros(1, width))
                continue
            predicted = self.protocol.predicted(
                to_native(picture, (own.shape[0], own.shape[1]), self.parts.config.data.fit)
            )
            own_row = None if rows is None else rows[number : number + 1]
            scored.append(self.score(predicted, torch.from_numpy(own)[None].to(logits.device), own_row))
        return torch.cat(scored)


def scores_of(target: Target, columns: NDArray[np.float64]) -> dict[str, Scores]:
    """(N, rules * C * COLUMNS) columns of `Scorer.score` -> scores by rule; {} if there are no columns."""
    if columns.shape[1] == 0:
        return {}
    table = columns.reshape(len(columns), len(target.rules), len(target.counted), COLUMNS)
    return {
        rule: Scores(table[:, i, :, :3].astype(np.int64), table[:, i, :, 3], table[:, i, :, 4])
        for i, rule in enumerate(target.rules)
    }


def why_not_native(manifest: Manifest) -> str:
    """Why a shard set has no labels at native size; "" if it has.

    A sample's JSON then still records `original_width_px` and `original_height_px`, but the labels' pixels are gone.
    """
    side_px = manifest.packer.get("image_size_px", 0)
    if not side_px:
        return ""
    return (
        f"the shards hold pictures and masks squashed to {side_px} px: pack the set with --image-size-px 0 "
        "for numbers at native resolution"
    )
