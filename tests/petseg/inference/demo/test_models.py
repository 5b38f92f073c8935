"""What the page says of its models, and the command's refusals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from petseg.demo import main
from petseg.inference.demo.models import Model, facts_of, label_of, load_models
from petseg.inference.exported.hub import SIZE_RULES
from petseg.inference.predictor import Predictor
from petseg.models.networks import Network
from shards.command import WRONG_USE, run_command
from tests.petseg.inference.test_export import UNET, header_of


def test_facts_of_weights_and_of_an_onnx_file(models: list[Model]) -> None:
    weights, onnx, other, twelve = map(facts_of, models)
    assert [one["name"] for one in (weights, onnx)] == ["pets.safetensors", "pets.onnx"]
    assert weights["network"] == onnx["network"] == "unet of width 4"
    assert other["network"] == "unet of width 6"
    assert weights["size"] == "64 x 64 px"
    assert (weights["device"], onnx["device"]) == ("cpu, float32", "onnxruntime on the CPU")
    assert weights["rule"] != twelve["rule"]
    assert weights["classes"][1] == {"name": "cat", "colour": "#c81e1e", "counts": True}
    assert not weights["classes"][0]["counts"]
    assert len(twelve["classes"]) == 12


def test_the_chooser_names_a_file_by_its_own_dice_or_that_of_its_run(models: list[Model]) -> None:
    model = models[0]

    def label(run: dict[str, float], measured: dict[str, Any], runs: int = 1) -> str:
        origin = replace(model.predictor.header.runs[0], metrics=run, evaluations={})
        header = replace(model.predictor.header, runs=(origin,) * runs, measured=measured)
        return label_of(replace(model, predictor=Predictor(header, model.predictor.model, torch.device("cpu"), "no")))

    both = {"val/dice": 0.5, "test/dice": 0.25}
    assert label(both, {}) == "run's test Dice 0.2500: pets.safetensors"
    assert label({"val/dice": 0.5}, {}) == "run's val Dice 0.5000: pets.safetensors"
    assert label(both, {"metrics": {"val/dice": 0.75}}) == "val Dice 0.7500: pets.safetensors"
    assert label({}, {}) == label(both, {}, runs=2) == "pets.safetensors"  # no run speaks for an ensemble


def test_files_of_one_name_are_told_apart(files: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / files[0].name
    copy.write_bytes(files[0].read_bytes())
    assert [model.name for model in load_models([files[0], copy], "cpu")] == [str(files[0]), str(copy)]
    with pytest.raises(ValueError, match="twice: name each file once"):
        load_models([copy, copy], "cpu")


def test_unusable_weights_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    for name in ("bad.safetensors", "missing.safetensors"):
        assert run_command(main, ["--weights", str(tmp_path / name)]) == WRONG_USE
        error = capsys.readouterr().err
        assert name in error
        assert "Traceback" not in error


@pytest.mark.slow
def test_the_command_prints_an_address_and_ends_by_ctrl_c(files: list[Path]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "petseg.demo", "--weights", str(files[0])],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[4], env=os.environ,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first, second, third = (process.stdout.readline() for _ in range(3))
        assert first.startswith("drop pictures here: http://127.0.0.1:")
        assert "?token=" in first
        assert "ssh -N -L" in second
        assert third == "Ctrl-C ends it\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert "Traceback" not in error
    finally:
        process.kill()
        process.wait()


def test_a_label_and_facts_without_a_server() -> None:
    """By a header alone: of an ensemble of wide networks in half precision, measured twice."""
    wide = header_of(
        Network("fpn", 4, "bilinear", "resnet18", False), UNET, image_size_px="32x64", fit="crop",
        measured={"metrics": {"val/dice": 0.5, "train/dice": 0.75}, "dice_interval_95": [0.25, 0.75], "protocol": "p"},
    )  # fmt: skip
    predictor = Predictor(wide, torch.nn.Identity(), torch.device("cpu"), "bf16")
    model = Model("w", is_onnx=False, predictor=predictor)
    facts = facts_of(model)
    assert facts["label"] == label_of(model) == "val Dice 0.5000: w"
    assert facts["network"] == "2 networks, the first fpn on resnet18"
    assert (facts["size"], facts["rule"]) == ("32 x 64 px (height x width)", SIZE_RULES["crop"])
    assert facts["device"] == "cpu, bf16"
    assert facts["numbers"] == [
        "Dice 0.7500 (95 % interval 0.2500 to 0.7500) on train: this file, p",
        "Dice 0.5000 (95 % interval 0.2500 to 0.7500) on val: this file, p",
        "Dice 0.5000 on val: run 0123456789, at the end of the training",
    ]
    bare = replace(wide, measured={}, runs=(replace(wide.runs[0], metrics={}),))
    nothing = replace(model, predictor=Predictor(bare, torch.nn.Identity(), torch.device("cpu"), "no"))
    assert facts_of(nothing)["numbers"] == ["Its file holds no measured Dice."]
    assert facts_of(nothing)["label"] == "w"
