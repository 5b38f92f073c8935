"""Sweeps from a file of weights: named from where one types, read from where a trial runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from jobs import chain
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trials import with_absolute_paths
from jobs.state.trial_status import trial_statuses
from jobs.sweep import main
from petseg.config import ModelConfig, RunConfig
from petseg.config.values import trial_id, with_values
from petseg.models.build import build_model
from petseg.run_folder.layout import load_config
from shards.command import WRONG_USE, run_command

REPOSITORY = Path(__file__).parents[2]
FPN = ["model.arch=fpn", "model.encoder=tu-mobilenetv3_small_050"]


def set_(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@pytest.mark.parametrize("given", [["--set", "model.weights=gone.pth"], ["--axis", "model.weights=none,gone.pth"]])
def test_a_file_that_is_not_there_is_told_before_anything_is_submitted(
    given: list[str],
    tiny_sweep: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*tiny_sweep, *set_(*FPN), *given]
    chained = ["pack", "train", *words, *set_("data.shards=data/shards"), "--pack", "--synthetic", "60"]
    for command in (lambda: run_command(main, words), lambda: run_command(chain.main, chained)):
        assert command() == WRONG_USE
        assert f"model.weights = 'gone.pth': there is no such file in {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_paths_become_absolute_and_the_trial_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet.pth").write_bytes(b"weights")
    typed = with_values(RunConfig(), {"model.arch": "fpn", "model.weights": "resnet.pth", "data.shards": "data/shards"})
    config = with_absolute_paths(typed)
    assert config.model.weights == str(tmp_path / "resnet.pth")
    assert config.data.shards == str(tmp_path / "data" / "shards")
    assert trial_id(config, "0") == trial_id(typed, "0")
    assert with_absolute_paths(config) == config
    elsewhere = with_values(
        RunConfig(), {"model.arch": "fpn", "model.weights": "imagenet", "data.shards": "s3://pets/shards"}
    )
    assert with_absolute_paths(elsewhere) == elsewhere


@pytest.mark.slow
def test_a_trial_reads_the_file_from_its_snapshot_folder(tiny_sweep: list[str], tmp_path: Path) -> None:
    model = build_model(ModelConfig(arch="fpn", encoder=FPN[1].partition("=")[2]), image_size_px=64, pretrained=False)
    state = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    save_file(state, tmp_path / "encoder.safetensors")
    words = [*tiny_sweep, *set_(*FPN), "--axis", "model.weights=encoder.safetensors"]
    words += ["--cluster", "local", "--gpus", "0", "--max-parallel", "2"]
    command = [sys.executable, str(REPOSITORY / "jobs" / "sweep.py"), *words]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=600)
    sweep = load_sweep(tmp_path / "runs" / "lab")
    (row,) = trial_statuses(sweep)
    assert row.status == "done", row.note
    assert row.trial.axes["model.weights"] == "encoder.safetensors"
    found = load_config(row.trial.folder)["config"]["model"]["weights"]
    assert found == str(tmp_path / "encoder.safetensors")
