import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from petseg.config import RunConfig
from petseg.data.store import open_store
from petseg.evaluate import main
from petseg.evaluation.measure import predict
from petseg.evaluation.protocol import Protocol
from petseg.metrics.overlay import Pixels, draw_sheet
from petseg.metrics.pixels import predicted_classes
from petseg.metrics.tta import predict_logits
from petseg.run.batches import batches_at, eval_inputs
from petseg.run.parts import build_parts
from petseg.run_folder.checkpoint import choose_checkpoint, list_checkpoints
from petseg.run_folder.layout import load_result
from petseg.run_folder.restore import load_weights
from petseg.targets.pets import kind_and_species
from petseg.training.loop import train
from shards.command import Failure, run_command


def test_evaluate_repeats_the_numbers_of_training(
    tiny: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(train__test=True), tmp_path)
    assert run_command(main, [str(tmp_path), "--split", "test", "--pictures", "3"]) == 0
    out = capsys.readouterr().out
    assert "test: border=fg, 64 px, 30 pictures" in out
    assert "no numbers at native resolution: the shards hold pictures and masks squashed to 64 px" in out
    written = json.loads((tmp_path / "evaluate-test.json").read_text())
    result = load_result(tmp_path)
    assert result is not None
    assert {name for name in result.metrics if name.startswith("test/")} == written["metrics"].keys()
    for name, value in written["metrics"].items():
        assert value == pytest.approx(result.metrics[name], abs=1e-6)
    assert len(written["dice"]) == 30
    check_groups(written)
    with Image.open(tmp_path / "evaluate-test.png") as sheet:
        assert sheet.width == 3 * 192
    per_image = np.load(tmp_path / "per_image.npz", allow_pickle=False)
    check_arrays(per_image, result.metrics)


def check_groups(written: dict[str, Any]) -> None:
    """Breeds and species partition the pictures, and their means add up to the whole; the worst come first."""
    for groups in (written["breeds"], written["species"]):
        assert sum(group["pictures"] for group in groups.values()) == 30
        for metric in ("dice", "iou", "boundary_iou", "hd95_px"):
            whole = sum(group["pictures"] * group[metric] for group in groups.values()) / 30
            assert whole == pytest.approx(written["metrics"][f"test/{metric}"], rel=1e-9)
    assert written["species"].keys() == {"cat", "dog"}
    lowest = sorted(written["dice"].values())[:20]
    assert [row["dice"] for row in written["worst"]] == pytest.approx(lowest)
    assert all(written["dice"][row["key"]] == row["dice"] for row in written["worst"])
    curve = written["reliability"]["as_is"]
    pixels = sum(row["pixels"] for row in curve)
    assert pixels == 30 * 64 * 64
    ece = sum(row["pixels"] / pixels * abs(row["accuracy"] - row["confidence"]) for row in curve)
    assert ece == pytest.approx(written["metrics"]["test/ece"], abs=1e-9)
    assert sum(row["pixels"] for row in written["reliability"]["scaled"]) == pixels
    assert written["temperature_fitted_on"] == "val"


def check_arrays(arrays: Mapping[str, np.ndarray], metrics: dict[str, float]) -> None:
    """per_image.npz holds what result.json's means are of."""
    for split, count in (("val", 3), ("test", 30)):
        assert arrays[f"{split}/keys"].shape == arrays[f"{split}/loss"].shape == (count,)
        assert np.array_equal(arrays[f"{split}/counts"], arrays[f"{split}/border_fg/counts"])
        for name in (split, *(f"{split}/border_{border}" for border in ("fg", "bg", "ignore"))):
            tp, fp, fn = arrays[f"{name}/counts"].sum(axis=0)
            assert metrics[f"{name}/dice_dataset"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
            for metric in ("boundary_iou", "hd95_px"):
                assert metrics[f"{name}/{metric}"] == pytest.approx(arrays[f"{name}/{metric}"].mean())
        assert {f"{split}/ece", f"{split}/ece_scaled", f"{split}/temperature"} <= metrics.keys()
    assert metrics["val/temperature"] == metrics["test/temperature"]


def test_val_says_that_its_temperature_is_its_own(
    tiny: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(train__epochs=1), tmp_path)
    flags = ["--split", "val", "--tta", "flips", "--no-native", "--pictures", "1", "--keep-largest"]
    assert run_command(main, [str(tmp_path), *flags]) == 0
    out = capsys.readouterr().out
    assert "val: border=fg, 64 px, 3 pictures, TTA flips" in out
    assert "fitted and measured on the same pictures" in out
    assert "no numbers at native resolution: not asked for" in out
    content = json.loads((tmp_path / "evaluate-val.json").read_text())
    assert (content["tta"], content["keep_largest"]) == ("flips", True)
    assert content["protocol"].endswith(", TTA flips, largest part of each mask")


def test_the_sheet_has_the_best_the_median_and_the_worst_pictures(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of two, under their keys and Dice; and the masks are those of the TTA that the numbers are of."""
    train(tiny(train__epochs=1), tmp_path)
    sheets: list[list[tuple[str, Pixels]]] = []

    def noted(pictures: list[tuple[str, Pixels]], columns: int) -> Image.Image:
        sheets.append(pictures)
        assert columns == 2
        return draw_sheet(pictures, columns)

    monkeypatch.setattr("petseg.metrics.overlay.draw_sheet", noted)
    for tta in ("none", "flips"):
        flags = ["--split", "test", "--pictures", "2", "--tta", tta, "--no-native"]
        assert run_command(main, [str(tmp_path), *flags]) == 0
        dice = json.loads((tmp_path / "evaluate-test.json").read_text())["dice"]
        ranked = sorted(dice, key=lambda key: -dice[key])
        shown = [caption.split() for caption, _ in sheets[-1]]
        assert [float(number) for _, number in shown] == [round(dice[key], 3) for key, _ in shown]
        assert {shown[0][0], shown[1][0]} == set(ranked[:2])
        assert {shown[2][0], shown[3][0]} == set(ranked[14:16])
        assert {shown[4][0], shown[5][0]} == set(ranked[-2:])
    parts = build_parts(tiny(train__epochs=1), open_store(tiny().data.shards), tmp_path, splits=["test"])
    load_weights(list_checkpoints(tmp_path / "checkpoints")[-1].folder, parts.bare_model)
    positions = [0, 7]
    plain, flipped = (predict(parts, "test", positions, Protocol(tta)) for tta in ("none", "flips"))
    for position, batch, ours in zip(positions, batches_at(parts, "test", positions), flipped, strict=True):
        image, _ = eval_inputs(parts, batch)
        expected = predicted_classes(predict_logits(parts.bare_model, image, "flips"))[0].numpy()
        assert ours.key == parts.splits["test"].key(position)
        assert np.array_equal(ours.prediction, expected)
    assert any(not np.array_equal(a.prediction, b.prediction) for a, b in zip(plain, flipped, strict=True))
    parts.close()


def test_breed_and_species_come_from_the_facts_or_from_the_key() -> None:
    assert kind_and_species("Maine_Coon_12", {}) == ("Maine_Coon", "cat")
    assert kind_and_species("saint_bernard_7", {}) == ("saint_bernard", "dog")
    assert kind_and_species("7", {}) == ("7", "dog")
    assert kind_and_species("Rex_1", {"breed": "boxer", "species": "dog"}) == ("boxer", "dog")


def test_wrong_use_is_one_line(
    tiny: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, [str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: no run in {tmp_path}: it has no config.json\n"
    for flag, value in (("--boundary-ratio", "0"), ("--pictures", "0")):
        assert run_command(main, [str(tmp_path), flag, value]) == 2
        assert capsys.readouterr().err.startswith(f"error: {flag} {float(value) if 'ratio' in flag else value}: must")
    train(tiny(train__epochs=1), tmp_path)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        (checkpoint / "state.json").unlink()
    assert run_command(main, [str(tmp_path)]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


def test_a_best_checkpoint_that_is_gone_is_named(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(train__epochs=1), tmp_path)
    (checkpoint,) = list_checkpoints(tmp_path / "checkpoints")
    assert choose_checkpoint(tmp_path, "best") == checkpoint
    state = checkpoint.state | {"best": {"step": checkpoint.step + 1}}
    without_best = [replace(checkpoint, state=state)]
    monkeypatch.setattr("petseg.run_folder.checkpoint.list_checkpoints", lambda folder: without_best)
    with pytest.raises(Failure, match=rf"checkpoints lacks the best checkpoint, step {checkpoint.step + 1}"):
        choose_checkpoint(tmp_path, "best")
