"""Quantised models, and models measured beside each other by one protocol."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

import petseg
from petseg.best import main as best
from petseg.compress import main
from petseg.config import RunConfig
from petseg.evaluate import main as evaluate
from petseg.inference import points
from petseg.inference.exported.onnx_file import read_onnx
from petseg.inference.header import to_json
from petseg.inference.weights_file import load_model, save_weights
from petseg.training.loop import train
from shards.command import OK, WRONG_USE, run_command

Tiny = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def winner(pet_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has learnt drawn pets a little, and its weights file."""
    from petseg.config.values import with_values

    root = tmp_path_factory.mktemp("winner")
    values = {
        "data.shards": str(pet_shards), "data.image_size_px": 64, "data.threads": 1, "model.width": 8,
        "train.epochs": 6, "train.batch_size": 4, "train.loss": "ce_dice", "train.test": False, "optim.name": "adamw",
        "optim.lr": 3e-3, "tracking.overlays": 0,
    }  # fmt: skip
    train(with_values(RunConfig(), values), root / "run")
    assert run_command(best, [str(root / "run"), "--out", str(root / "winner.safetensors")]) == OK
    return root


def int8(winner: Path, shards: Path, out: Path) -> int:
    words = ["int8", "--weights", str(winner / "winner.safetensors"), "--shards", str(shards), "--out", str(out)]
    return run_command(main, words)


@pytest.mark.slow
def test_int8_is_smaller_and_nearly_the_same(
    winner: Path, pet_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Dice is measured by the same protocol as petseg.evaluate has it for the run."""
    monkeypatch.setenv("COLUMNS", "160")  # of the table
    out = tmp_path / "small.onnx"
    assert int8(winner, pet_shards, out) == OK
    assert "compared on 3 pictures" in capsys.readouterr().out  # all that val has
    header, form, content = read_onnx(out)
    assert form.precision == "int8"
    assert to_json(header) == to_json(load_model(winner / "winner.safetensors")[0])
    kinds = [node.op_type for node in onnx.load_model_from_string(content).graph.node]
    assert "QLinearConv" in kinds
    assert "Conv" not in kinds
    assert len(content) < 0.4 * (winner / "winner.safetensors").stat().st_size

    files = [str(winner / "winner.safetensors"), str(out)]
    words = ["--shards", str(pet_shards), "--split", "test", "--repeats", "2", "--out", str(tmp_path / "points.json")]
    assert run_command(main, ["measure", "--weights", *files, *words]) == OK
    measured = json.loads((tmp_path / "points.json").read_text())
    assert run_command(evaluate, [str(winner / "run"), "--split", "test", "--pictures", "1"]) == OK
    evaluated = json.loads((winner / "run" / "evaluate-test.json").read_text())
    first, second = measured["points"]
    assert (measured["protocol"], measured["split"]) == (evaluated["protocol"], "test")
    assert measured["manifest_hash"] == evaluated["manifest_hash"]
    assert first["dice"] == pytest.approx(evaluated["metrics"]["test/dice"], abs=1e-6)
    assert first["difference_to_first"] is None
    value, low, high = second["difference_to_first"]
    assert value == pytest.approx(second["dice"] - first["dice"], abs=1e-9)
    assert low <= value <= high
    assert abs(value) < 0.02
    assert second["file_mb"] < 0.4 * first["file_mb"]
    assert first["parameters"] == second["parameters"] > 0
    for one in (first, second):
        assert one["speed"]["latency_ms"] > 0
        assert one["peak_memory_mb"] > 0
    table = capsys.readouterr().out
    assert "winner.safetensors" in table
    assert "small.onnx" in table


def test_models_of_other_classes_are_not_compared(
    winner: Path, pet_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, model = load_model(winner / "winner.safetensors")
    renamed = (header.classes[0], replace(header.classes[1], name="animal"))
    save_weights(replace(header, classes=renamed), model.state_dict(), tmp_path / "other.safetensors")
    files = [str(winner / "winner.safetensors"), str(tmp_path / "other.safetensors")]
    assert run_command(main, ["measure", "--weights", *files, "--shards", str(pet_shards)]) == WRONG_USE
    assert "has the classes background, animal, and" in capsys.readouterr().err


def test_merged_classes_cannot_be_measured_without_their_run(
    winner: Path, pet_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, model = load_model(winner / "winner.safetensors")
    save_weights(replace(header, target="/home/somebody/coarse.toml"), model.state_dict(), tmp_path / "x.safetensors")
    words = ["measure", "--weights", str(tmp_path / "x.safetensors"), "--shards", str(pet_shards)]
    assert run_command(main, words) == WRONG_USE
    assert "a file that merges classes" in capsys.readouterr().err


def test_speeds_take_turns(winner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each repeat asks all models before the next begins; the first repeat is not counted."""
    asked: list[str] = []
    seconds = iter([9.0, 9.0, 9.0, 9.0, 0.001, 0.004, 0.002, 0.008, 0.003, 0.008, 0.004, 0.016])

    def timed(predictor: petseg.inference.predictor.Predictor, pictures: list[object]) -> float:
        asked.append(f"{predictor.precision} {len(pictures)}")
        return next(seconds)

    monkeypatch.setattr(points, "_seconds", timed)
    models = [petseg.load(winner / "winner.safetensors", device="cpu", precision=one) for one in ("no", "bf16")]
    one, other = points.measure_speeds(models, repeats=2)
    assert asked[:4] * 3 == asked == ["no 1", "no 8", "bf16 1", "bf16 8"] * 3
    assert (one.latency_ms, other.latency_ms) == (2.0, 3.0)
    assert (one.images_per_s, other.images_per_s) == pytest.approx((8 / 0.006, 8 / 0.012))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out", "x.safetensors"], "must end in .onnx"),
        (["--out", "nowhere/x.onnx"], "there is no folder"),
        (["--out", "x.onnx", "--pictures", "0"], "must be at least 1"),
    ],
)
def test_wrong_flags(
    winner: Path, pet_shards: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    common = ["int8", "--weights", str(winner / "winner.safetensors"), "--shards", str(pet_shards)]
    assert run_command(main, [*common, *flags]) == WRONG_USE
    assert words in capsys.readouterr().err


def test_models_to_measure_must_be_named(pet_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["measure", "--shards", str(pet_shards), "--weights"]) == WRONG_USE
    assert capsys.readouterr().err == "error: name the models with --weights\n"
