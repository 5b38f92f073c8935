"""A sweep whose finished trials were online, and the Report of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.reporting.statistics.records import read_records
from jobs.reporting.statistics.verdict import build_leaderboard
from jobs.reporting.wandb_report.content import Content, compose
from jobs.runs.trial import Sweep
from tests.jobs.reporting.written_sweep import Lab, finish

AXES = {"model.arch": ["unet", "resnet34_unet"], "augment.policy": ["none", "elastic"], "train.seed": [0, 1]}


def build_sweep(tmp_path: Path, **fixed: Any) -> Sweep:
    """Eight finished trials that were online, as their configs say."""
    (tmp_path / "shards").mkdir()
    lab = Lab(tmp_path / "runs" / "lab", tmp_path / "shards", AXES, {"tracking.wandb": "online"} | fixed)
    sweep = lab.plan()
    for trial in sweep.trials:
        finish(trial, {"unet": 0.9, "resnet34_unet": 0.8}[trial.axes["model.arch"]] + 0.001 * trial.axes["train.seed"])
    return sweep


def content_of(sweep: Sweep) -> Content:
    records = read_records(sweep)
    return compose(sweep, records, build_leaderboard(sweep, records))
