"""A sweep whose folders are written by hand, as finished trials leave them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.design.expansion import expand
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Spec
from jobs.reporting.statistics.records import gather, rank, read_records, varied
from jobs.reporting.statistics.verdict import Leaderboard, build_leaderboard
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.runs.trials import plan_sweep
from petseg.config.values import trial_id
from petseg.run_folder.layout import Result, claim_folder, save_result, write_metrics
from shards.manifest import Manifest, Source, Split, save_manifest

LAB = {"model.arch": ["unet", "resnet34_unet"], "augment.policy": ["none", "elastic"], "train.seed": [0, 1, 2]}
# val Dice by place; the means are 0.901, 0.900, 0.880 and 0.860
DICE = {
    ("unet", "none"): (0.899, 0.900, 0.904),
    ("unet", "elastic"): (0.898, 0.900, 0.902),
    ("resnet34_unet", "none"): (0.88, 0.88, 0.88),
    ("resnet34_unet", "elastic"): (0.85, 0.86, 0.87),
}


@dataclass
class Lab:
    """A sweep under construction."""

    folder: Path
    shards: Path
    axes: dict[str, list[Any]] = field(default_factory=lambda: dict(LAB))
    fixed: dict[str, Any] = field(default_factory=dict)

    def plan(self) -> Sweep:
        """sweep.json and each trial's config.json."""
        source = Source("drawn", "by hand & <with care>")
        manifest = save_manifest(
            Manifest(source, {}, {"train": Split(90, "0" * 16), "val": Split(10, "1" * 16)}, ()), self.shards
        )
        spec = Spec("lab", self.axes, {"data.shards": str(self.shards), "train.epochs": 2} | self.fixed)
        cells = expand(spec)
        sweep = plan_sweep(spec, cells, ShardSets({str(self.shards): manifest}), self.folder)
        save_sweep(sweep)
        configs = {trial_id(cell.config, manifest.hash): cell.config for cell in cells}
        for trial in sweep.trials:
            if config := configs.get(trial.id):
                claim_folder(config, manifest.hash, trial.folder)
        return sweep


def finish(trial: Trial, dice: float, epochs: int = 2, test: bool = True) -> None:
    """As train() leaves a finished trial."""
    epoch_rows(trial, [dice - 0.1 * (epochs - epoch) for epoch in range(1, epochs + 1)])
    metrics = {"val/loss": 0.25, "val/dice": dice, "val/iou": dice - 0.1, "val/all_pet_dice": 0.55}
    metrics |= {"test/dice": dice - 0.01, "test/all_pet_dice": 0.56} if test else {}
    splits = {"val": dice} | ({"test": dice - 0.01} if test else {})
    save_result(
        Result(trial.id, metrics, epochs, epochs, 31_037_698, 1, "node1", "cpu", 60.0, 83.0, 0.01, 84.0), trial.folder
    )
    trial.write_state(TrialState("done", host="node1", job_id="1"))
    draw_overlay(trial)
    save_pictures(trial, splits)


def epoch_rows(trial: Trial, dice: Sequence[float]) -> None:
    rows = [
        {"epoch": i, "train/loss": 0.5 / i, "train/dice": d, "val/loss": 0.2 + 0.1 * i, "val/dice": d}
        for i, d in enumerate(dice, start=1)
    ]
    write_metrics(rows, trial.folder)


def draw_overlay(trial: Trial) -> None:
    (trial.folder / "overlays").mkdir()
    Image.new("RGB", (400, 400), "teal").save(trial.folder / "overlays" / "cat_1.png")


def save_pictures(trial: Trial, dice_by_split: dict[str, float], num_pictures: int = 40) -> None:
    """per_image.npz whose pictures are 0.06 apart, the same in all trials, with a little of their own."""
    own = int(trial.id, 16) % 1000
    content, arrays = io.BytesIO(), {}
    for split, dice in dice_by_split.items():
        spread = 0.03 * np.cos(np.pi * np.arange(num_pictures)) + 0.005 * np.sin(own + np.arange(num_pictures) ** 2)
        each = dice + spread - spread.mean()
        arrays[f"{split}/keys"] = np.array([f"cat_{i}" for i in range(num_pictures)])
        hits = np.round(each * 1_000_000).astype(int)
        arrays[f"{split}/counts"] = np.stack([hits, 2_000_000 - 2 * hits, 0 * hits], axis=1)
    np.savez(content, allow_pickle=False, **arrays)
    (trial.folder / "per_image.npz").write_bytes(content.getvalue())


def place(trial: Trial) -> tuple[str, str]:
    return trial.axes["model.arch"], trial.axes["augment.policy"]


def board_of(sweep: Sweep) -> Leaderboard:
    return build_leaderboard(sweep, read_records(sweep))


def ranking_of(sweep: Sweep) -> list[Any]:
    records = read_records(sweep)
    return rank(gather(varied(sweep, records), records))
