"""Runs of encoders: resumed, from a file of weights, and by several processes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from petseg.config import RunConfig
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import read_metrics
from petseg.training import interrupt
from petseg.training.loop import train
from shards.command import Interrupted
from tests.petseg.models.test_encoders import MOBILE, SWEEP, model_of
from tests.petseg.tensors import assert_same_tensors


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_numbers(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(model__arch="fpn", model__encoder=MOBILE, model__width=64, train__log_every=1, optim__lr=1e-3)
    calm = train(config, tmp_path / "calm")
    asked = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: next(asked) == 3)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "stopped")
    assert train(config, tmp_path / "stopped").metrics == calm.metrics
    ends = [
        load_file(list_checkpoints(tmp_path / n / "checkpoints")[-1].folder / "model.safetensors")
        for n in ("calm", "stopped")
    ]
    assert_same_tensors(*ends)
    assert read_metrics(tmp_path / "calm")[-1]["train/loss"] < read_metrics(tmp_path / "calm")[0]["train/loss"]


def donor_file(path: Path) -> torch.Tensor:
    """Weights of an encoder as a file; what its first convolution holds."""
    torch.manual_seed(99)
    tensors = model_of("fpn").encoder.state_dict()  # type: ignore[union-attr]
    save_file(tensors, path)
    return tensors["model.conv_stem.weight"]


def stem_of(run: Path) -> torch.Tensor:
    newest = list_checkpoints(run / "checkpoints")[-1]
    return load_file(newest.folder / "model.safetensors")["network.encoder.model.conv_stem.weight"]


@pytest.mark.slow
def test_a_resume_does_not_need_the_weights_file(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.safetensors"
    stem = donor_file(file)
    config = tiny(
        model__arch="fpn", model__encoder=MOBILE, model__weights=str(file), train__log_every=1, optim__lr=1e-4
    )
    calm = train(config, tmp_path / "calm")
    assert (stem_of(tmp_path / "calm") - stem).abs().max() < 0.01
    asked = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: next(asked) == 3)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "stopped")
    file.unlink()
    assert train(config, tmp_path / "stopped").metrics == calm.metrics
    with pytest.raises(ValueError, match="No such file"):
        train(config, tmp_path / "new")


@pytest.mark.slow
def test_one_of_several_processes_reads_the_weights(pet_shards: Path, tmp_path: Path) -> None:
    def launch(file: Path, out: Path) -> subprocess.CompletedProcess[str]:
        flags = {
            "data.shards": pet_shards, "data.image-size-px": 64, "model.arch": "fpn", "model.encoder": MOBILE,
            "model.weights": file, "train.epochs": 1, "train.batch-size": 8, "optim.lr": 1e-6,
        }  # fmt: skip
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", "slurm/accelerate/two_cpu.yaml", "petseg/train.py", "--train.no-test"]
        command += ["--out", str(out), "--world-size", "2"]
        command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        root = SWEEP.parents[2]
        return subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=300, check=False)

    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    stem = donor_file(good)
    done = launch(good, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tensors from") == 1
    assert (stem_of(tmp_path / "two") - stem).abs().max() < 1e-4
    save_file({"x": torch.ones(1)}, bad)
    done = launch(bad, tmp_path / "bad")
    assert done.returncode != 0
    assert done.stderr.count("error: model.weights") == 2
