"""Measures the whole protocol in one pass over a split: border rules, network and native size, outlines, calibration.

Validation during training (`petseg.evaluation.measure`) does without it; the end of a run and the evaluate command
take the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from petseg.config.sizes import Fit, Size
from petseg.data.decode import Pixels
from petseg.data.inputs import IGNORE_INDEX, build_target
from petseg.data.ledger import Count, Ledger
from petseg.data.letterbox import without_margins
from petseg.data.loader import Batch
from petseg.data.tars import Lost
from petseg.evaluation.network import for_display, network_of, pixels_of
from petseg.metrics import BOUNDARY_RATIO, Tta
from petseg.metrics.boundary import boundary_iou, hd95_px
from petseg.metrics.calibration import Calibration
from petseg.metrics.components import largest_components
from petseg.metrics.masks import Bits, pack
from petseg.metrics.pixels import PerImage, Scores, count_masks, pet_mask, prefixed
from petseg.metrics.tta import predict_logits
from petseg.run.batches import eval_batches, eval_inputs
from petseg.run.parts import Parts
from shards.cause import Cause
from shards.command import Failure
from shards.manifest import Manifest

BORDERS = ("fg", "bg", "ignore")
CHUNK = 4  # pictures scored at a time: at 384 px 64 at once exceed a CPU's cache, and took 38 ms each instead of 15
COLUMNS = 5  # of a border rule: true positives, false positives, false negatives, boundary IoU, HD95 in pixels
WIDTH = COLUMNS * len(BORDERS)


@dataclass(frozen=True)
class Protocol:
    """How a split is measured."""

    tta: Tta = "none"
    native: bool = False  # at the size that the labels were packed at, too
    boundary_ratio: float = BOUNDARY_RATIO
    masks: bool = False  # keep the predicted masks, a bit per pixel
    keep_largest: bool = False  # of each predicted mask only the largest connected part

    def predicted(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, 2, H, W) logits -> (B, H, W) bool, the masks that are measured."""
        masks = pet_mask(logits)
        return largest_components(masks) if self.keep_largest else masks


@dataclass(frozen=True)
class Measured:
    """The results of a pass over a split, in the order of the split."""

    per_image: PerImage  # as validation measures it: the config's border rule at the network's size
    network: dict[str, Scores]  # by border rule, in pixels of the squashed picture
    native: dict[str, Scores]  # by border rule, in pixels of the original picture; {} if it was not measured
    calibration: Calibration  # the config's border rule at the network's size
    masks: Bits | None = None  # (N, H, ceil(W / 8)) uint8 as petseg.metrics.masks packs them; None unless asked for

    def metrics(self, split: str, border: str, temperature: float | None) -> dict[str, float]:
        """Numbers by name, such as val/dice, val/border_bg/dice, val/native/border_bg/dice and val/ece.

        The config's border rule is listed without a prefix as well.
        temperature: fitted on val, None without a val split
        """
        named = {"all_pet_dice": self.per_image.all_pet_dice(), "ece": self.calibration.reliability().ece}
        if temperature is not None:
            named |= {"temperature": temperature, "ece_scaled": self.calibration.scaled(temperature).ece}
        named |= self.network[border].means() | by_rule(self.network)
        if self.native:
            named |= prefixed("native", self.native[border].means() | by_rule(self.native))
        return self.per_image.summary(split) | prefixed(split, named)


def by_rule(scores: Mapping[str, Scores]) -> dict[str, float]:
    """The means by border rule, as border_bg/dice and so on."""
    return {
        name: value for rule, one in scores.items() for name, value in prefixed(f"border_{rule}", one.means()).items()
    }


@torch.no_grad()
def measure_protocol(parts: Parts, split: str, protocol: Protocol) -> Measured:
    """Measure each picture of a split once; all ranks return the same. Raises as `petseg.evaluation.measure`.

    For each picture a row of numbers is kept, and its mask if it is asked for; for all pixels together two histograms.
    """
    ledger, calibration = Ledger(), Calibration(parts.device)
    at_native = parts.config.data.fit == "crop"  # whole pictures are measured once, at their own size
    sizes = 1 + (protocol.native and not at_native)
    rows, masks = [torch.zeros((0, 3 + WIDTH * sizes), dtype=torch.float64)], []
    with ThreadPoolExecutor(parts.config.data.threads, thread_name_prefix="measure") as pool:
        scorer = Scorer(parts.manifest.source.trimap, protocol, pool, parts.config.data.fit)
        for batch, logits, target in forward(parts, split, protocol.tta, ledger):
            calibration.add(logits, target)
            columns = [torch.from_numpy(batch.plan.ids)[:, None], parts.loss(logits, target).cpu()[:, None]]
            columns.append(pixels_of(parts, target).cpu()[:, None])
            predicted = protocol.predicted(logits)
            columns.append(scorer.score(predicted, batch.labels.to(logits.device)))
            if protocol.native and not at_native:
                labels = pool.map(parts.splits[split].tars.whole_labels, batch.plan.ids.tolist())
                columns.append(scorer.score_native(logits, labels, ledger))
            if protocol.masks:
                masks.append(torch.from_numpy(pack(for_display(parts, predicted).cpu().numpy())))
            rows.append(torch.cat([column.double() for column in columns], dim=1))
    close_ledger(parts, split, ledger)
    calibration.reduce(parts.accelerator)
    own = torch.cat(rows)
    table = collect(parts, split, own.to(parts.device))
    bits = collect_masks(parts, own[:, 0].long(), masks) if protocol.masks else None
    network, native = scores_of(table[:, 3 : 3 + WIDTH]), scores_of(table[:, 3 + WIDTH :])
    if protocol.native and at_native:
        native = network
    counts = network[parts.config.data.border].counts
    per_image = PerImage(counts=counts, loss=table[:, 1], pixels=table[:, 2])
    return Measured(per_image, network, native, calibration, bits)


@torch.no_grad()
def calibrate(parts: Parts, split: str, tta: Tta) -> Calibration:
    """Measure only the calibration on a split; all ranks return the same. Raises as `measure_protocol`."""
    ledger, calibration = Ledger(), Calibration(parts.device)
    for _, logits, target in forward(parts, split, tta, ledger):
        calibration.add(logits, target)
    close_ledger(parts, split, ledger)
    calibration.reduce(parts.accelerator)
    return calibration


def forward(parts: Parts, split: str, tta: Tta, ledger: Ledger) -> Iterator[tuple[Batch, torch.Tensor, torch.Tensor]]:
    """This rank's batches of a split with logits (B, 2, H, W) and target (B, H, W), entered in the ledger."""
    parts.bare_model.eval()
    for batch in eval_batches(parts, split):
        ledger.add(batch)
        image, target = eval_inputs(parts, batch)
        with parts.accelerator.autocast():
            logits = predict_logits(network_of(parts), image, tta)
        yield batch, logits, target


@dataclass(frozen=True)
class Scorer:
    """Compares predicted masks with labels by every border rule; the threads of `pool` measure distances."""

    trimap_values: Mapping[str, int]
    protocol: Protocol
    pool: ThreadPoolExecutor
    fit: Fit = "squash"  # by which the pictures got the network's size

    def score(self, prediction: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, H, W) bool prediction, (B, H, W) uint8 labels -> (B, WIDTH) float64, on the CPU."""
        chunks = zip(prediction.split(CHUNK), labels.split(CHUNK), strict=True)
        return torch.cat([self._score_chunk(*chunk) for chunk in chunks])

    def _score_chunk(self, prediction: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        columns = []
        for border in BORDERS:
            target = build_target(labels, border, self.trimap_values)
            predicted, truth = prediction & (target != IGNORE_INDEX), target == 1
            distances = list(self.pool.map(hd95_px, predicted.cpu().numpy(), truth.cpu().numpy()))
            columns.append(count_masks(predicted, truth).double().cpu())
            columns.append(boundary_iou(predicted, truth, self.protocol.boundary_ratio).cpu()[:, None])
            columns.append(torch.tensor(distances, dtype=torch.float64)[:, None])
        return torch.cat(columns, dim=1)

    def score_native(self, logits: torch.Tensor, labels: Iterable[Pixels | Lost], ledger: Ledger) -> torch.Tensor:
        """(B, C, h, w) logits and the B labels (H, W) as packed -> (B, WIDTH); the ledger gets those that are lost."""
        rows = [torch.zeros((0, WIDTH), dtype=torch.float64)]
        for picture, own in zip(logits, labels, strict=True):
            if isinstance(own, Lost):
                ledger.lost.append(own)
                ledger.count += Count(lost=1, unnamed=1)
                rows.append(rows[0].new_zeros(1, WIDTH))
                continue
            prediction = self.protocol.predicted(to_native(picture, (own.shape[0], own.shape[1]), self.fit))
            rows.append(self.score(prediction, torch.from_numpy(own)[None].to(logits.device)))
        return torch.cat(rows)


def scores_of(columns: NDArray[np.float64]) -> dict[str, Scores]:
    """(N, WIDTH) columns of `Scorer.score` -> scores by border rule; {} if there are no columns."""
    if columns.shape[1] == 0:
        return {}
    by_border = zip(BORDERS, np.split(columns, len(BORDERS), axis=1), strict=True)
    return {border: Scores(own[:, :3].astype(np.int64), own[:, 3], own[:, 4]) for border, own in by_border}


def close_ledger(parts: Parts, split: str, ledger: Ledger) -> None:
    """Raises Failure, on all ranks, if a picture could not be read, or was not seen exactly once."""
    count = ledger.gather(parts.accelerator)
    if count.lost:
        raise ledger.failure(split, budget=0)
    count.check(parts.manifest.splits[split], split)


def collect(parts: Parts, split: str, rows: torch.Tensor) -> NDArray[np.float64]:
    """Gather the (n, columns) rows of all ranks in the order of the split; each begins with position and loss.

    Raises Failure, on all ranks, if a loss is not finite.
    """
    padded = parts.accelerator.pad_across_processes(rows, dim=0, pad_index=-1)
    table: NDArray[np.float64] = parts.accelerator.gather(padded).cpu().numpy()
    table = table[table[:, 0] >= 0]
    table = table[np.argsort(table[:, 0], kind="stable")]
    assert np.array_equal(table[:, 0], np.arange(parts.manifest.splits[split].num_samples))  # the ledger has proven it
    if broken := int((~np.isfinite(table[:, 1])).sum()):
        raise Failure(
            f"the loss is NaN or infinite on {broken} pictures of {split}: the weights have diverged; "
            "try a lower optim.lr, optim.grad_clip 1 or train.mixed_precision no",
            Cause.NAN,
        )
    return table


def collect_masks(parts: Parts, positions: torch.Tensor, masks: Sequence[torch.Tensor]) -> Bits:
    """Gather the packed masks (n, H, ceil(W / 8)) of all ranks' pictures in the order of the split.

    At a bit per pixel, 368 pictures of 256 px take 3 MB on each rank for a moment.
    """
    (height, width), device = parts.config.data.size_px, parts.device
    bits = torch.cat([torch.zeros((0, height, -(-width // 8)), dtype=torch.uint8), *masks])
    columns = [
        parts.accelerator.gather(parts.accelerator.pad_across_processes(column.to(device), dim=0, pad_index=pad)).cpu()
        for column, pad in ((positions, -1), (bits, 0))
    ]
    order, gathered = columns[0].numpy(), columns[1].numpy()
    in_order: Bits = gathered[order >= 0][np.argsort(order[order >= 0], kind="stable")]
    return in_order


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


def to_native(logits: torch.Tensor, size: Size, fit: Fit = "squash") -> torch.Tensor:
    """(C, h, w) logits of one picture -> (1, C, H, W) float32, bilinear: the squash or the letterbox is undone."""
    if fit == "letterbox":
        logits = without_margins(logits, size)
    return F.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)
