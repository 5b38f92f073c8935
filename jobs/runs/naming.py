"""How wandb shows the trials of a sweep: each is one run for ever, grouped with its sweep."""

from __future__ import annotations

from pathlib import Path

from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import SWEEP_NAME, TRIALS_NAME, Sweep
from petseg.config import RunConfig
from petseg.run_folder.layout import load_config
from petseg.tracking.naming import RunName, label_of, name_of_run, read_name
from shards.command import typed


def trial_name(sweep: Sweep, trial_id: str, config: RunConfig) -> RunName:
    return RunName(
        id=f"{sweep.name}-{trial_id}",
        group=sweep.name,
        tags=(config.model.arch, config.augment.policy, f"seed{config.train.seed}"),
        label=label_of(config, sweep.axes),
        program="jobs/sweep.py",
        resend=f"`{typed('jobs/sync.py', sweep.folder)}` sends it later",
    )


def name_in_place(folder: Path, config: RunConfig) -> RunName:
    """The name that a run was trained under; that of a trial where an earlier version left none in its folder."""
    around = folder.resolve().parent
    if read_name(folder) or around.name != TRIALS_NAME or not (around.parent / SWEEP_NAME).exists():
        return name_of_run(folder, config)
    return trial_name(load_sweep(around.parent), load_config(folder, identified=True)["trial_id"], config)
