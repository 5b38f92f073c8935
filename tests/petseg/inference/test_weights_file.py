"""Weights files: what they carry, and what a damaged or a stranger's one gives."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from petseg.best import main as best
from petseg.config import RunConfig
from petseg.evaluate import main as evaluate
from petseg.inference.from_runs import combine, read_run
from petseg.inference.weights_file import ENTRY, load_model, read_header, save_weights
from petseg.training.loop import train
from shards.command import WRONG_USE, run_command


@pytest.fixture(scope="module")
def made(pet_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs that differ in their seed, the first of them evaluated, and the weights file of that one."""
    root = tmp_path_factory.mktemp("made")
    for seed in (0, 1):
        train(small(pet_shards, seed), root / f"seed-{seed}")
    assert run_command(evaluate, [str(root / "seed-0"), "--split", "test", "--pictures", "1"]) == 0
    assert run_command(best, [str(root / "seed-0"), "--out", str(root / "one.safetensors")]) == 0
    return root


def small(shards: Path, seed: int) -> RunConfig:
    from petseg.config.values import with_values

    values = {
        "data.shards": str(shards), "data.image_size_px": 64, "data.threads": 1, "model.width": 4, "train.epochs": 2,
        "train.batch_size": 8, "train.test": False, "train.seed": seed, "tracking.overlays": 0,
    }  # fmt: skip
    return with_values(RunConfig(), values)


def test_the_file_carries_everything(made: Path) -> None:
    header, model = load_model(made / "one.safetensors")
    config = json.loads((made / "seed-0" / "config.json").read_text())
    (origin,) = header.runs
    assert header.names == ("background", "pet")
    assert header.counted == (1,)
    assert (header.size_px, header.fit, header.combined, header.border) == ((64, 64), "squash", "single", "fg")
    assert (header.models[0].arch, header.models[0].width) == ("unet", 4)
    assert (origin.trial_id, origin.manifest_hash) == (config["trial_id"], config["identity"]["manifest_hash"])
    assert origin.attribution == json.loads((made / "seed-0" / "manifest.json").read_text())["source"]["attribution"]
    assert origin.attribution
    result = json.loads((made / "seed-0" / "result.json").read_text())
    assert origin.metrics["val/dice"] == result["metrics"]["val/dice"]
    evaluated = json.loads((made / "seed-0" / "evaluate-test.json").read_text())
    stored = origin.evaluations["test"]
    assert (stored["protocol"], stored["metrics"]["test/dice"]) == (
        evaluated["protocol"],
        evaluated["metrics"]["test/dice"],
    )
    low, high = stored["dice_interval_95"]
    assert low < evaluated["metrics"]["test/dice"] < high
    step = made / "seed-0" / "checkpoints" / origin.checkpoint / "model.safetensors"
    assert all(torch.equal(tensor, load_file(step)[name]) for name, tensor in model.state_dict().items())
    assert not model.training


def test_the_same_run_gives_the_same_bytes_without_machine_paths(made: Path, tmp_path: Path) -> None:
    assert run_command(best, [str(made / "seed-0"), "--out", str(tmp_path / "again.safetensors")]) == 0
    content = (tmp_path / "again.safetensors").read_bytes()
    assert content == (made / "one.safetensors").read_bytes()
    assert str(made).encode() not in content


def test_an_ensemble_averages_probabilities_and_is_measured(
    made: Path, pet_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both.safetensors"
    runs = [str(made / "seed-0"), str(made / "seed-1")]
    assert run_command(best, [*runs, "--out", str(out), "--shards", str(pet_shards), "--split", "test"]) == 0
    header, model = load_model(out)
    assert (header.combined, len(header.models)) == ("ensemble", 2)
    assert header.measured["split"] == "test"
    assert 0 <= header.measured["metrics"]["test/dice"] < 1
    assert "measured here: test Dice" in capsys.readouterr().out
    image = torch.rand(1, 3, 64, 64)
    members = [load_run(made / f"seed-{seed}") for seed in (0, 1)]
    with torch.no_grad():
        mean = sum(member(image).softmax(1) for member in members) / 2
        assert torch.allclose(model(image).softmax(1), mean, atol=1e-6)


def load_run(folder: Path) -> torch.nn.Module:
    from petseg.inference.weights_file import build_network

    header, tensors = combine([read_run(folder)])
    model = build_network(header)
    model.load_state_dict(tensors)
    return model


def test_one_run_is_measured_as_evaluate_measures_it(made: Path, pet_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.safetensors"
    assert (
        run_command(best, [str(made / "seed-0"), "--out", str(out), "--shards", str(pet_shards), "--split", "test"])
        == 0
    )
    evaluated = json.loads((made / "seed-0" / "evaluate-test.json").read_text())["metrics"]
    measured = read_header(out).measured["metrics"]
    assert measured["test/dice"] == pytest.approx(evaluated["test/dice"], abs=1e-9)


def test_averaged_weights_are_the_mean(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "average.safetensors"
    assert run_command(best, [str(made / "seed-0"), str(made / "seed-1"), "--average", "--out", str(out)]) == 0
    header, model = load_model(out)
    assert (header.combined, len(header.models), len(header.runs)) == ("average", 1, 2)
    first, second = (read_run(made / f"seed-{seed}").tensors for seed in (0, 1))
    for name, tensor in model.state_dict().items():
        expected = (first[name] + second[name]) / 2 if tensor.is_floating_point() else first[name]
        assert torch.allclose(tensor, expected, atol=1e-6), name


def test_a_command_without_a_run_says_how_to_name_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(best, ["--out", str(tmp_path / "w.safetensors")]) == WRONG_USE
    assert "name the folder of a run, such as runs/single/" in capsys.readouterr().err


def test_runs_that_do_not_fit_together_are_named(
    made: Path, pet_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from petseg.config.values import with_values

    other = with_values(small(pet_shards, 0), {"data.image_size_px": 32})
    train(other, tmp_path / "other")
    words = [str(made / "seed-0"), str(tmp_path / "other"), "--out", str(tmp_path / "x.safetensors")]
    assert run_command(best, words) == 2
    assert "do not fit together (data.image_size_px 64 and 32)" in capsys.readouterr().err
    assert run_command(best, [str(made / "seed-0"), "--out", str(tmp_path / "x.pth")]) == 2
    assert "its name must end in .safetensors" in capsys.readouterr().err


def rewritten(made: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The weights file with another header."""
    header, model = load_model(made / "one.safetensors")
    from petseg.inference.header import to_json

    content = to_json(header)
    change(content)
    path = tmp_path / "changed.safetensors"
    path.write_bytes(save(model.state_dict(), {ENTRY: json.dumps(content)}))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 2}, "was written by a later petseg (format version 2, and this petseg reads 1): update"),
        ({"format_version": "1"}, "it has no format version"),
        ({"classes": []}, "it has 0 classes"),
        ({"fit": "stretch"}, "fit is 'stretch'"),
        ({"image_size_px": 1 << 40}, "its image_size_px is"),
        ({"image_size_px": "64x" + "9" * 5000}, "its image_size_px is"),
        ({"models": []}, "it has 0 networks"),
        ({"runs": 3}, "a int where a list is expected"),
        ({"normalisation": {"mean": [0, 0, 0], "std": [1, 1, 1]}}, "its normalisation is"),
        ({"models": [{"arch": "unet", "width": 1 << 40, "up": "bilinear", "encoder": "", "pretrained": False}]}, ""),
        ({"models": [{"arch": "unet", "width": 8, "up": "bilinear", "encoder": "", "pretrained": False}]}, "is F32 ["),
        ({"models": [{"arch": "os.system", "width": 8, "up": "bilinear", "encoder": "", "pretrained": False}]}, ""),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_is_one_line(made: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = rewritten(made, tmp_path, lambda content: content.update(change))
    with pytest.raises(ValueError, match=r"changed\.safetensors") as error:
        load_model(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_alien_files_are_one_line(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "alien.safetensors"
    with pytest.raises(ValueError, match="there is no such file"):
        load_model(path)
    with pytest.raises(ValueError, match=r"is a folder, not a regular file"):
        load_model(tmp_path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"was not written by petseg: make one with `python -m petseg.best`"):
        load_model(path)
    for content in (b"", b"PK\x03\x04", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 9) + b"[" * 9):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"alien\.safetensors is damaged, or no safetensors file"):
            load_model(path)


def test_a_file_cut_short_is_noticed_at_every_length(made: Path, tmp_path: Path) -> None:
    content, path = (made / "one.safetensors").read_bytes(), tmp_path / "cut.safetensors"
    for length in (*range(0, 60, 7), len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.safetensors"):
            load_model(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=r"bytes of tensors"):
        load_model(path)


@settings(max_examples=25)
@given(data=st.data())
def test_a_flipped_byte_of_the_header_never_crashes(made: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    content = bytearray((made / "one.safetensors").read_bytes())
    end = 8 + struct.unpack("<Q", content[:8])[0]
    content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        load_model(path)


def test_header_round_trip(made: Path, tmp_path: Path) -> None:
    header, model = load_model(made / "one.safetensors")
    changed = replace(header, measured={"split": "val", "metrics": {}})
    save_weights(changed, model.state_dict(), tmp_path / "w.safetensors")
    assert read_header(tmp_path / "w.safetensors") == changed


def test_weights_in_any_layout_are_saved_as_they_are(made: Path, tmp_path: Path) -> None:
    header, model = load_model(made / "one.safetensors")
    save_weights(header, model.to(memory_format=torch.channels_last).state_dict(), tmp_path / "w.safetensors")
    saved, kept = (load_file(path) for path in (tmp_path / "w.safetensors", made / "one.safetensors"))
    assert saved.keys() == kept.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in kept.items())
