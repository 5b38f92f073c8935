"""The sweep files that come with petseg: each cell is a run that can be built, and small ones of each kind are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs.design.expansion import expand
from jobs.design.spec import load_spec
from jobs.runs.sweep_file import load_sweep
from jobs.state.trial_status import trial_statuses
from petseg.losses import build_loss
from petseg.models.build import build_model
from petseg.optim import build_optimizer
from petseg.run_folder.layout import load_config

REPOSITORY = Path(__file__).parents[2]
SWEEPS = REPOSITORY / "jobs" / "sweeps"
CELLS = {
    "augment": 10 * 3,
    "augment_mode": 2 * 2 * 2 * 3,
    "compress": 3 * 2 * 3,
    "demo": 2 * 3 * 2,
    "encoders": 3 * 5 * 2,
    "lab": 2 * 3 * 3,
    "losses": 5 * 3,
    "search": 10,  # those that chance gives; the others follow from results
}
SMALL = {
    "data.image_size_px": 64,
    "data.threads": 1,
    "model.width": 4,
    "train.budget_steps": 1,
    "train.batch_size": 4,
    "train.mixed_precision": "no",  # bf16 is slow on a CPU
    "train.test": "false",
    "tracking.overlays": 1,
}
SEED = "train.seed=0"
PARTS = {  # axes of fewer values, which together have each architecture, encoder, loss and policy that a file names
    "augment": [[SEED]],
    "augment_mode": [[SEED, "augment.p=0.4"]],
    "compress": [[SEED]],
    "demo": [[SEED]],
    "encoders": [[SEED, "model.arch=fpn"], [SEED, "model.arch=smp_unet,segformer", "model.encoder=mit_b0"]],
    "lab": [[SEED]],
    "losses": [[SEED]],
    "search": [[]],
}
PROPOSED = 4  # trials of the search, the first three of them together


def test_each_file_is_known_here() -> None:
    assert {path.stem for path in SWEEPS.glob("*.yaml")} == CELLS.keys() == PARTS.keys()


@pytest.mark.parametrize("name", CELLS)
def test_a_file_has_its_cells(name: str) -> None:
    spec = load_spec(SWEEPS / f"{name}.yaml")
    cells = expand(spec)
    assert spec.name == name
    assert len({cell.config for cell in cells}) == len(cells) == CELLS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_what_its_cells_train_can_be_built(name: str) -> None:
    """Each architecture and each encoder once; the slow test has them all in all combinations."""
    configs = [cell.config for cell in expand(load_spec(SWEEPS / f"{name}.yaml"))]
    seen: set[str] = set()
    for config in configs:
        if not {config.model.arch, config.model.encoder} <= seen:
            seen |= {config.model.arch, config.model.encoder}
            with torch.device("meta"):
                model = build_model(config.model, image_size_px=config.data.image_size_px, pretrained=False)
            build_optimizer(config.optim, model)
    for train in {config.train for config in configs}:
        build_loss(train)


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_small_trials_of_each_kind_are_run_and_reported(name: str, pet_shards: Path, tmp_path: Path) -> None:
    text = (SWEEPS / f"{name}.yaml").read_text()
    path = tmp_path / f"{name}.yaml"
    path.write_text(re.sub(r"^run_cap: \d+$", f"run_cap: {PROPOSED}", text, flags=re.MULTILINE))
    fixed = {**SMALL, "data.shards": pet_shards}
    if name in ("encoders", "compress"):
        del fixed["model.width"]
    if name == "compress":
        fixed["distill.teacher"] = make_teacher(pet_shards, tmp_path)
    words = [word for key, value in fixed.items() for word in ("--set", f"{key}={value}")]
    words += ["--runs-dir", str(tmp_path / "runs"), "--cluster", "local", "--gpus", "0", "--max-parallel", "2"]
    words += ["--trials-per-job", "3" if name == "search" else "20"]  # of a search so many are proposed together
    for part in PARTS[name]:
        run("jobs/sweep.py", "--sweep", str(path), *words, *(word for axis in part for word in ("--axis", axis)))

    folder = tmp_path / "runs" / name
    sweep = load_sweep(folder)
    assert {row.status for row in trial_statuses(sweep)} == {"done"}
    assert name != "search" or len(sweep.trials) == PROPOSED
    for axis, values in load_spec(path).axes.items():
        assert axis in ("train.seed", "augment.p") or set(sweep.axes[axis]) == set(values), axis
    for trial in sweep.trials:
        assert [row["step"] for row in trial.metrics()] == [SMALL["train.budget_steps"]]
        assert load_config(trial.folder)["config"]["model"]["weights"] == "none"
    run("jobs/report.py", str(folder))
    assert (folder / "report.html").stat().st_size > 10_000


def make_teacher(shards: Path, folder: Path) -> Path:
    """The weights file of a small network of the students' classes and size."""
    fixed = {**SMALL, "data.shards": shards}
    flags = [word for key, value in fixed.items() if key != "train.test" for word in (f"--{key}", str(value))]
    run("petseg/train.py", *flags, "--train.no-test", "--out", str(folder / "teacher"))
    run("-m", "petseg.best", str(folder / "teacher"), "--out", str(folder / "teacher.safetensors"))
    return folder / "teacher.safetensors"


def run(*command: str) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
