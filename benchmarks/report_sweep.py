"""A made-up sweep in a folder as jobs/sweep.py leaves it: trials of every kind, without training any."""

from __future__ import annotations

import io
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.design.expansion import expand
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Spec
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.runs.trials import plan_sweep
from petseg.config.values import trial_id
from petseg.run_folder.layout import (
    CALIBRATION_NAME,
    OVERLAYS_NAME,
    PER_IMAGE_NAME,
    Result,
    claim_folder,
    save_result,
    write_metrics,
)
from shards.manifest import Manifest, Source, Split, save_manifest

ARCHITECTURES = ("unet", "resnet34_unet")
POLICIES = ("none", "elastic", "elastic_crop", "flip", "color")
RATES = tuple(float(f"{10 ** (-4 + i / 3):.3g}") for i in range(10))
FAILED = 0.03
OVERLAYS, SIZE_PX = 8, 256
TRACEBACK = """Traceback (most recent call last):
  File "petseg/training/epoch.py", line 171, in train_step
    accelerator.backward(loss)
RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB
"""


def make_sweep(folder: Path, trials: int, pictures: int, epochs: int) -> Sweep:
    """`trials` of 2 architectures x 5 policies x 10 learning rates x seeds, a few of them failed."""
    shards = folder.parent.parent / "shards"
    shards.mkdir(parents=True)
    splits = {"train": Split(3312, "0" * 16), "val": Split(pictures, "1" * 16), "test": Split(2 * pictures, "2" * 16)}
    manifest = save_manifest(Manifest(Source("made-up", "numbers of a benchmark"), {}, splits, ()), shards)
    cells = len(ARCHITECTURES) * len(POLICIES) * len(RATES)
    axes: dict[str, list[Any]] = {
        "model.arch": list(ARCHITECTURES),
        "augment.policy": list(POLICIES),
        "optim.lr": list(RATES),
        "train.seed": list(range(math.ceil(trials / cells))),
    }
    spec = Spec("large", axes, {"data.shards": str(shards), "train.epochs": epochs})
    found = expand(spec)[:trials]
    sweep = plan_sweep(spec, found, ShardSets({str(shards): manifest}), folder)
    save_sweep(sweep)
    configs = {trial_id(cell.config, manifest.hash): cell.config for cell in found}
    draw = random.Random(0)  # noqa: S311
    submissions = []
    for number, trial in enumerate(sweep.trials):
        claim_folder(configs[trial.id], manifest.hash, trial.folder)
        log = f"logs/{number}_0_log.out"
        submissions.append(Submission(trial.id, str(1000 + number), "debug", log))
        _fill(trial, number, draw, pictures, epochs, sweep.folder / log)
    sweep.add_submissions(submissions)
    return sweep


def _fill(trial: Trial, number: int, draw: random.Random, pictures: int, epochs: int, log: Path) -> None:
    arch, policy = trial.axes["model.arch"], trial.axes["augment.policy"]
    rate = math.log10(trial.axes["optim.lr"])
    best = (
        0.9 + 0.01 * (arch == "unet") - 0.02 * (rate + 2.5) ** 2 + 0.004 * (policy == "elastic") + draw.gauss(0, 0.003)
    )
    failed = draw.random() < FAILED
    _write_epochs(trial, best, 3 if failed else epochs)
    attempts = [
        {
            "number": n,
            "host": f"node{n}",
            "job_id": str(1000 + number),
            "code": "0123456789ab",
            "first_step": 0,
            "time": n,
        }
        for n in range(1, 2 + (number % 17 == 0))
    ]
    (trial.folder / "lives.json").write_text(json.dumps(attempts))
    if failed:
        trial.write_state(
            TrialState("failed", job_id=str(1000 + number), host="node1", error=TRACEBACK.splitlines()[-1])
        )
        log.parent.mkdir(exist_ok=True)
        log.write_text(TRACEBACK)
        return
    metrics = {
        f"{split}/{name}": value
        for split in ("val", "test")
        for name, value in (
            ("dice", best),
            ("iou", best - 0.08),
            ("iou_dataset", best - 0.07),
            ("loss", 1 - best),
            ("boundary_iou", best - 0.2),
            ("hd95_px", 9.0),
            ("ece", 0.03),
            ("temperature", 1.4),
            ("all_pet_dice", 0.46),
        )
    }
    _write_pictures(trial, best, pictures, number)
    result = Result(
        trial.id, metrics, epochs, epochs, 31_037_698, 1, "node1", "NVIDIA H100", 600.0, 820.0, 0.01, 830.0, 0.31, 9e3
    )
    save_result(result, trial.folder)
    trial.write_state(TrialState("done", host="node1", job_id=str(1000 + number)))


def _write_epochs(trial: Trial, best: float, epochs: int) -> None:
    rows = []
    for epoch in range(1, epochs + 1):
        dice = best * (1 - math.exp(-epoch / 3))
        numbers = {"loss": 1 - dice, "dice": dice, "iou": dice - 0.08}
        row: dict[str, float] = {"epoch": epoch, "step": 52 * epoch, "lr": 0.01, "perf/seconds": 30.0}
        row |= {f"{split}/{name}": value for split in ("train", "val") for name, value in numbers.items()}
        rows.append(row | {"perf/images_per_s": 820.0, "perf/data_wait": 0.01})
    write_metrics(list(rows), trial.folder)


def _write_pictures(trial: Trial, best: float, pictures: int, number: int) -> None:
    generator = np.random.default_rng(number)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("val", pictures), ("test", 2 * pictures)):
        each = np.clip(best + 0.05 * np.cos(np.arange(count)) + generator.normal(0, 0.01, count), 0, 1)
        hits = np.round(each * 20_000).astype(np.int64)
        counts = np.stack([hits, 20_000 - hits, 20_000 - hits], axis=1)
        arrays[f"{split}/keys"] = np.array([f"cat_{i}" for i in range(count)])
        arrays[f"{split}/loss"] = 1 - each
        for name in (split, *(f"{split}/border_{rule}" for rule in ("fg", "bg", "ignore"))):
            arrays |= {f"{name}/counts": counts, f"{name}/boundary_iou": each - 0.2, f"{name}/hd95_px": 10 * (1 - each)}
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    (trial.folder / PER_IMAGE_NAME).write_bytes(content.getvalue())
    bins = [
        {
            "from": m / 15,
            "to": (m + 1) / 15,
            "pixels": 1000 * 2 ** (m - 7),
            "confidence": (m + 0.5) / 15,
            "accuracy": 0.9,
        }
        for m in range(7, 15)
    ]
    curves = {"as_is": bins, "scaled": bins}
    kept = {"format_version": 1, "temperature": 1.4, "splits": {"val": curves, "test": curves}}
    (trial.folder / CALIBRATION_NAME).write_text(json.dumps(kept))
    if number < 100:  # the same eight noisy ones, the largest that overlays can be
        (trial.folder / OVERLAYS_NAME).mkdir()
    for i in range(OVERLAYS if number < 100 else 0):
        noise = generator.integers(0, 255, (SIZE_PX // 8, SIZE_PX // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)
        picture.save(trial.folder / OVERLAYS_NAME / f"cat_{i}.png")
