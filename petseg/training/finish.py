"""The end of a run: its best weights are measured picture by picture, and the results are written."""

from __future__ import annotations

import io
import json
import logging
import socket
import statistics
from typing import Any

import numpy as np
import torch
from PIL import Image

from petseg.data.tars import UNREADABLE
from petseg.evaluation.measure import PredictedPicture, predict
from petseg.evaluation.protocol import Measured, Protocol, measure_protocol
from petseg.footprint.utilization import device_name, peak_memory_mb
from petseg.metrics.masks import Masks, save_masks
from petseg.metrics.overlay import save_image
from petseg.models.build import count_parameters
from petseg.run.parts import Parts
from petseg.run.run import Run
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import (
    CALIBRATION_NAME,
    CHECKPOINTS_NAME,
    METRICS_NAME,
    OVERLAYS_NAME,
    PER_IMAGE_NAME,
    Result,
    load_config,
    read_metrics,
    save_result,
)
from petseg.run_folder.restore import load_weights
from petseg.tracking.tracker import Tracker
from shards.cause import Cause
from shards.command import Failure
from shards.files import write_whole
from shards.manifest import is_grouped, save_manifest

logger = logging.getLogger(__name__)


def finish(run: Run, tracker: Tracker | None) -> Result:
    """Measure the best weights picture by picture, draw some pictures, and write result.json last."""
    parts = run.parts
    rows = load_best(run)
    splits = ["val", "test"] if parts.config.train.test and "test" in parts.splits else ["val"]
    measured = {split: measure_protocol(parts, split, Protocol(masks=split == "val")) for split in splits}
    temperature = measured["val"].calibration.fit_temperature()
    metrics: dict[str, float] = {}
    for split, one in measured.items():
        metrics |= one.metrics(split, temperature)
    result = build_result(run, metrics, rows)
    if tracker:
        run.attempt.require_newest()
        save_per_image(parts, measured)
        save_val_masks(parts, measured["val"])
        save_calibration(parts, measured, temperature)
        save_manifest(parts.manifest, parts.folder)
        tracker.log_overlays(run.progress.epoch, draw_overlays(parts))
        save_result(result, parts.folder)
        tracker.finish(metrics | {"best_epoch": result.best_epoch, "parameters": result.parameters})
    parts.accelerator.wait_for_everyone()
    return result


def load_best(run: Run) -> list[dict[str, Any]]:
    """Load the best weights into the model; returns the rows of the run's metrics.jsonl.

    Raises Failure if the folder lacks either.
    """
    parts, step = run.parts, run.progress.best.step
    folder = parts.folder / CHECKPOINTS_NAME
    advice = f"delete {folder} to train again"
    best = next((c for c in list_checkpoints(folder) if c.step == step), None)
    if best is None:
        raise Failure(f"{folder} lacks the best checkpoint, step {step}: {advice}", Cause.DATA)
    rows = read_metrics(parts.folder)
    if not rows:
        raise Failure(f"{parts.folder / METRICS_NAME} has no epochs of this run: {advice}", Cause.DATA)
    load_weights(best.folder, parts.bare_model)
    return rows


def build_result(run: Run, metrics: dict[str, float], rows: list[dict[str, Any]]) -> Result:
    """The content of result.json. rows: of metrics.jsonl"""
    parts, progress = run.parts, run.progress

    def median(name: str) -> float:
        return statistics.median(row[name] for row in rows)

    return Result(
        trial_id=load_config(parts.folder, identified=True)["trial_id"],
        metrics=metrics,
        best_epoch=progress.best.epoch,
        epochs=progress.epoch,
        parameters=count_parameters(parts.bare_model),
        world_size=parts.world_size,
        host=socket.gethostname(),
        device=device_name(parts.device),
        train_s=sum(row["perf/seconds"] for row in rows),
        images_per_s=median("perf/images_per_s"),
        data_wait=median("perf/data_wait"),
        headroom=median("perf/headroom"),
        mfu=median("perf/mfu") if all("perf/mfu" in row for row in rows) else None,
        peak_memory_mb=peak_memory_mb(parts.device),
        threads=torch.get_num_threads() if parts.device.type == "cpu" else 0,
    )


def draw_overlays(parts: Parts) -> list[PredictedPicture]:
    """Save some val pictures with their masks drawn over them as overlays/KEY.png; returns the pictures."""
    pictures = predict(parts, "val", fixed_positions(len(parts.splits["val"]), parts.config.tracking.overlays))
    for picture in pictures:
        save_image(Image.fromarray(picture.overlay()), parts.folder / OVERLAYS_NAME / f"{picture.key}.png")
    return pictures


def save_per_image(parts: Parts, measured: dict[str, Measured]) -> None:
    """Write per_image.npz: arrays over the N pictures of each measured split, in the order of the split.

    SPLIT/keys (N,) str, SPLIT/loss (N,) float64; by the target's own rule SPLIT/counts (N, 3) int64 of true positives,
    false positives and false negatives, SPLIT/boundary_iou (N,) and SPLIT/hd95_px (N,) float64; and these three by each
    rule, as SPLIT/RULE/counts and so on. All in the network's pixels. With C > 1 classes that count they have an
    axis for them: (N, C, 3), (N, C), (N, C); and with more than two classes SPLIT/confusion (K, K) int64 has the pixels
    by true class and predicted class. In a set that was packed with --group-by, SPLIT/groups (N,) str has the group of
    each picture.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, one in measured.items():
        data = parts.splits[split]
        arrays[f"{split}/keys"] = np.array([data.key(i) for i in range(len(data))])
        arrays[f"{split}/loss"] = one.per_image.loss
        named = {split: one.own}
        if len(one.network) > 1:
            named |= {f"{split}/{rule}": scores for rule, scores in one.network.items()}
        for name, scores in named.items():
            columns = {"counts": scores.counts, "boundary_iou": scores.boundary_iou, "hd95_px": scores.hd95_px}
            single = scores.counts.shape[1] == 1
            arrays |= {f"{name}/{column}": values[:, 0] if single else values for column, values in columns.items()}
        if one.confusion is not None:
            arrays[f"{split}/confusion"] = one.confusion
        if groups := groups_of(parts, split):
            arrays[f"{split}/groups"] = np.array(groups)
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_whole(parts.folder / PER_IMAGE_NAME, content.getvalue())


def groups_of(parts: Parts, split: str) -> list[str]:
    """The group of each picture of a split, such as its video; [] in a set that was packed without --group-by."""
    if not is_grouped(parts.manifest):
        return []
    tars = parts.splits[split].tars
    try:
        groups = [str(tars.facts(position).get("group") or "") for position in range(len(tars))]
    except UNREADABLE as error:  # training needs no facts: a run of days must not fail for them at its end
        logger.warning("%s: the report will not know the groups of the pictures (%s)", split, error)
        return []
    return groups if all(groups) else []


def save_val_masks(parts: Parts, measured: Measured) -> None:
    """Write val_masks.npz, which petseg.metrics.masks describes."""
    assert measured.masks is not None
    keys = tuple(parts.splits["val"].key(i) for i in range(len(parts.splits["val"])))
    masks = Masks(keys, parts.config.data.size_px[1], measured.masks, packed=measured.target.is_binary)
    save_masks(masks, parts.folder)


def save_calibration(parts: Parts, measured: dict[str, Measured], temperature: float) -> None:
    """Write calibration.json: each split's reliability curve, as it is and at the temperature fitted on val."""
    splits = {
        split: {"as_is": one.calibration.reliability().rows(), "scaled": one.calibration.scaled(temperature).rows()}
        for split, one in measured.items()
    }
    content = {"format_version": 1, "temperature": temperature, "splits": splits}
    write_whole(parts.folder / CALIBRATION_NAME, json.dumps(content, indent=2) + "\n")


def fixed_positions(num_samples: int, count: int) -> list[int]:
    """Evenly spread positions, the same in every run, so that the overlays of runs can be compared; none twice."""
    count = min(count, num_samples)
    return [i * num_samples // count for i in range(count)]
