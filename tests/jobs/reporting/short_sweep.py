"""A sweep whose trials trained 3 epochs and began to overfit in the third."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.reporting.statistics.records import Record, gather, read_records, varied
from jobs.runs.trial import Sweep, Trial
from jobs.runs.trial_state import TrialState
from petseg.run_folder.layout import Result, save_result, write_metrics
from tests.jobs.reporting.written_sweep import Lab

AXES = {"model.arch": ["unet", "resnet34_unet"], "augment.policy": ["none", "elastic"], "optim.lr": [0.001, 0.01]}


def plan(folder: Path, axes: dict[str, list[Any]]) -> Sweep:
    (folder / "shards").mkdir()
    sweep = Lab(folder / "runs" / "lab", folder / "shards", axes, {"train.epochs": 3}).plan()
    assert all((trial.folder / "config.json").is_file() for trial in sweep.trials)  # ids are those of the configs
    return sweep


def finish(trial: Trial, dice: float) -> None:
    """3 epochs; val loss is lowest in the second, train loss falls on."""
    rows = [
        {"epoch": e, "step": 10 * e, "train/loss": 0.5 - 0.1 * e, "val/loss": v, "train/dice": dice + 0.02 * e - 0.04}
        | {"val/dice": dice - 0.1 * (3 - e), "perf/seconds": 1800.0}
        for e, v in ((1, 0.5), (2, 0.4), (3, 0.45))
    ]
    write_metrics(list(rows), trial.folder)
    metrics = {"val/dice": dice, "val/temperature": 1.5, "val/all_pet_dice": 0.5}
    result = Result(trial.id, metrics, 3, 3, 100, 2, "node1", "cpu, 1 threads", 60.0, 83.0, 0.01, 84.0, None, 500.0)
    save_result(result, trial.folder)
    trial.write_state(TrialState("done", host="node1", job_id="1"))


def additive(trial: Trial) -> float:
    """Architecture moves Dice by 0.04, augmentation by 0.02, the rate not at all."""
    return 0.8 + 0.04 * (trial.axes["model.arch"] == "unet") + 0.02 * (trial.axes["augment.policy"] == "elastic")


def groups_of(sweep: Sweep) -> tuple[list[str], list[Any], list[Record]]:
    records = read_records(sweep)
    axes = varied(sweep, records)
    return axes, gather(axes, records), records
