"""Sweeps whose cost is to be estimated, and trials that leave records of theirs."""

from __future__ import annotations

from pathlib import Path

from jobs.cost.estimate import Estimate, estimate
from jobs.design.expansion import Cell, expand
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Spec
from jobs.runs.launch import Launch
from jobs.runs.trial import Sweep, Trial
from jobs.runs.trials import Trials, plan_sweep
from petseg.config import RunConfig
from petseg.config.values import trial_id
from petseg.run_folder.layout import Result, append_metrics, claim_folder, save_result
from shards.manifest import Manifest, load_manifest
from slurm.resources import Resources

SMALL = {"data.image_size_px": 64, "model.width": 4, "train.epochs": 10, "train.batch_size": 16}
CPU = Resources(gpus_per_node=0, cpus_per_task=2)
GPU = Resources(gpus_per_node=2, cpus_per_task=4)


def plan(shards: Path, folder: Path, axes: dict[str, list]) -> tuple[Sweep, dict[str, Cell]]:
    spec = Spec("lab", axes, {**SMALL, "data.shards": str(shards)})
    cells, manifest = expand(spec), load_manifest(shards)
    sweep = plan_sweep(spec, cells, ShardSets({str(shards): manifest}), folder)
    return sweep, {trial_id(cell.config, manifest.hash): cell for cell in cells}


def estimate_of(
    sweep: Sweep, cells: dict[str, Cell], sets: ShardSets, resources: Resources, max_parallel: int,
    trials_per_job: int = 1, probe: bool = False, trials_at_once: int = 1,
) -> Estimate:  # fmt: skip
    """The estimate of these cells on Slurm."""
    launch = Launch("slurm", resources, max_parallel, trials_per_job, trials_at_once)
    return estimate(Trials(sweep, cells, sets), launch, probe)


def finish(trial: Trial, config: RunConfig, manifest: Manifest, epoch_s: float, device: str = "cpu, 2 threads") -> None:
    """As if a trial had run: ten epochs, the first one slower, and a result."""
    claim_folder(config, manifest.hash, trial.folder)
    for epoch in range(1, 11):
        append_metrics(
            {"epoch": epoch, "step": 2 * epoch, "perf/seconds": epoch_s * (5 if epoch == 1 else 1)}, trial.folder
        )
    save_result(
        Result(
            trial_id=trial.id, metrics={"val/dice": 0.9}, best_epoch=10, epochs=10, parameters=1,
            world_size=2 if device != "cpu, 2 threads" else 1, host="node1", device=device, train_s=14 * epoch_s,
            images_per_s=1.0, data_wait=0.0, headroom=1.0, threads=2 if device == "cpu, 2 threads" else 0,
        ),
        trial.folder,
    )  # fmt: skip
