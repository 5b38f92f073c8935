"""A sweep and its trials' folders written by hand, as they look while its jobs run."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from petseg.run_folder.layout import Result, save_result
from slurm.cluster import JobState


def sweep_of(folder: Path, count: int) -> Sweep:
    """A sweep of `count` seeds, and each trial's config.json."""
    trials = [Trial(f"{seed:x}{'0' * 9}", {"model.arch": "unet", "train.seed": seed}, Path()) for seed in range(count)]
    trials = [replace(trial, folder=folder / "trials" / trial.id) for trial in trials]
    sweep = Sweep(folder, folder.name, {"train.seed": list(range(count))}, "0" * 16, "x", tuple(trials))
    save_sweep(sweep)
    for trial in trials:
        trial.folder.mkdir(parents=True)
        config = {"config": {"train": {"epochs": 10, "batch_size": 32, "accumulation_steps": 1}}}
        (trial.folder / "config.json").write_text(json.dumps(config))
    return sweep


def finish(trial: Trial) -> None:
    metrics = {"val/dice": 0.9, "test/dice": 0.8}
    save_result(Result(trial.id, metrics, 7, 10, 31, 1, "node1", "cpu", 60.0, 83.0, 0.01, 84.0), trial.folder)


def beat(trial: Trial, epoch: int, step: int, when: float) -> None:
    content = {"time": when, "epoch": epoch, "epochs": 10, "step": step, "steps_per_epoch": 100, "images_per_s": 64.0}
    path = trial.folder / "heartbeat.json"
    path.write_text(json.dumps(content))
    os.utime(path, (when, when))


def on_slurm(trial: Trial, state: str, reason: str = "", source: str = "squeue") -> tuple[Submission, dict]:
    return Submission(trial.id, "12_0", "slurm", "x.out"), {"12_0": JobState(state, reason, "node1", source)}


def state_of(trial: Trial, when: float | None = None, **state: Any) -> None:
    """A state that was written then, or now."""
    trial.write_state(TrialState(**state))
    path = trial.folder / "state.json"
    if when is not None:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"time": when}))
