"""A sweep of three seeds on drawn pictures, before it is submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.design.cells import Cells
from jobs.design.expansion import expand
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Spec
from jobs.launch.options import Options
from jobs.runs.trials import Trials, plan_trials
from slurm.resources import Resources
from tests.jobs.costed_sweeps import SMALL


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(Resources(gpus_per_node=0, cpus_per_task=2), name="lab", runs_dir=tmp_path / "runs")


@pytest.fixture
def trials(options: Options, pet_shards: Path, sets: ShardSets) -> Trials:
    """Three seeds."""
    spec = Spec("lab", {"train.seed": [0, 1, 2]}, {**SMALL, "data.shards": str(pet_shards)})
    return plan_trials(Cells(spec, tuple(expand(spec)), sets), options.folder(spec))
