"""Runs on pictures that are no squares."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from petseg.config import DataConfig, RunConfig
from petseg.config.values import trial_id
from petseg.data.store import open_store
from petseg.data.tars import TarReader, Whole
from petseg.evaluate import main as evaluate
from petseg.evaluation.measure import measure, predict
from petseg.evaluation.network import windows_per_picture
from petseg.evaluation.protocol import Protocol, measure_protocol
from petseg.metrics.masks import load_masks
from petseg.metrics.windows import num_windows
from petseg.run.parts import build_parts
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import load_config, read_metrics
from petseg.run_folder.restore import load_weights
from petseg.training.loop import train
from petseg.training.needs import estimate_needs, render
from shards.command import run_command
from shards.pack import PackConfig, pack
from tests.petseg.stopped_runs import require_same_bits, stop_and_resume, without_clock

Tiny = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def native_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawn pets at their own sizes, at most 100 px."""
    out = tmp_path_factory.mktemp("native") / "shards"
    pack(PackConfig(out=out, synthetic=24, seed=1, synthetic_longer_side_px=100, samples_per_shard=8, workers=1))
    return out


def test_a_run_on_rectangles_is_the_same_from_every_cache(tiny: Tiny, native_shards: Path, tmp_path: Path) -> None:
    common = {
        "data.shards": str(native_shards), "data.image_size_px": "32x96", "data.cache_dir": str(tmp_path / "cache"),
        "augment.policy": "strong", "train.start_size_px": 32,
    }  # fmt: skip
    for cache in ("none", "node"):
        train(tiny(**common, data__cache=cache), tmp_path / cache)
    assert without_clock(tmp_path / "none") == without_clock(tmp_path / "node")
    assert load_config(tmp_path / "none")["config"]["data"]["image_size_px"] == "32x96"
    names = {path.name.partition("-")[2] for path in (tmp_path / "cache" / "decoded").glob("*.u8")}
    assert names == {"train-32x96-v1.u8", "val-32x96-v1.u8"}
    masks = load_masks(tmp_path / "none")
    assert masks is not None
    assert masks.of(0).shape == (32, 96)
    with Image.open(next((tmp_path / "none" / "overlays").glob("*.png"))) as overlay:
        assert overlay.size == (96, 32)
    assert run_command(evaluate, [str(tmp_path / "none"), "--tta", "flips_scales", "--pictures", "1"]) == 0
    assert np.isfinite([row["val/dice"] for row in without_clock(tmp_path / "none")]).all()


def test_a_letterboxed_run_counts_no_margin(tiny: Tiny, native_shards: Path, tmp_path: Path) -> None:
    common = {
        "data.shards": str(native_shards), "data.image_size_px": "64x96", "data.fit": "letterbox",
        "data.cache_dir": str(tmp_path / "cache"), "augment.policy": "strong",
    }  # fmt: skip
    for cache in ("none", "node"):
        train(tiny(**common, data__cache=cache), tmp_path / cache)
    assert without_clock(tmp_path / "none") == without_clock(tmp_path / "node")
    names = {path.name.partition("-")[2] for path in (tmp_path / "cache" / "decoded").glob("*.u8")}
    assert names == {"train-64x96-letterbox-v1.u8", "val-64x96-letterbox-v1.u8"}
    assert run_command(evaluate, [str(tmp_path / "none"), "--split", "val", "--pictures", "1"]) == 0
    measured = json.loads((tmp_path / "none" / "evaluate-val.json").read_text())["metrics"]
    # letterboxed by a factor of up to 1 pixel in 100, both sizes see the same masks
    assert measured["val/native/dice"] == pytest.approx(measured["val/dice"], abs=0.03)


def test_a_run_on_crops_resumes_within_an_epoch_bit_for_bit(tiny: Tiny, native_shards: Path, tmp_path: Path) -> None:
    common = {
        "data.shards": str(native_shards), "data.image_size_px": "32x64", "data.fit": "crop", "data.rare_crops": 0.5,
        "data.cache_dir": str(tmp_path / "cache"), "augment.policy": "strong", "train.batch_size": 4,
        "train.log_every": 1,
    }  # fmt: skip
    train(tiny(**common, data__cache="node"), tmp_path / "calm")
    config = tiny(**common, data__cache="none")
    stop_and_resume(config, tmp_path / "stopped", 2)
    require_same_bits(tmp_path / "calm", tmp_path / "stopped")
    masks = load_masks(tmp_path / "calm")
    assert masks is not None
    assert masks.of(0).shape == (32, 64)  # for display
    assert [row["data/coverage"] for row in read_metrics(tmp_path / "calm")] == [1.0, 1.0]


@pytest.mark.slow
def test_whole_pictures_are_measured_by_windows(tiny: Tiny, native_shards: Path, tmp_path: Path) -> None:
    """The numbers of a run on crops are those of its masks at the pictures' own size."""
    config = tiny(
        data__shards=str(native_shards), data__image_size_px=32, data__fit="crop", train__epochs=1, train__batch_size=3,
        data__cache_dir=str(tmp_path / "cache"), data__cache="none",
    )  # fmt: skip
    train(config, tmp_path / "run")
    parts = build_parts(config, open_store(str(native_shards)), tmp_path / "run", splits=("test",))
    load_weights(list_checkpoints(tmp_path / "run" / "checkpoints")[-1].folder, parts.bare_model)
    positions = range(len(parts.splits["test"]))
    pictures = predict(parts, "test", positions)
    reader = parts.splits["test"].tars
    wholes = [reader.whole(position) for position in positions]
    assert all(isinstance(whole, Whole) for whole in wholes)
    sizes = [whole.labels.shape for whole in wholes if isinstance(whole, Whole)]
    assert [picture.prediction.shape for picture in pictures] == sizes
    assert any(min(size) < 32 for size in sizes) or max(max(size) for size in sizes) > 64
    by_hand = []
    for picture in pictures:
        truth, called = picture.truth == 1, (picture.prediction == 1) & (picture.truth != 255)
        by_hand.append([[(truth & called).sum(), (~truth & called).sum(), (truth & ~called).sum()]])
    assert measure(parts, "test").counts.tolist() == np.array(by_hand).tolist()
    measured = measure_protocol(parts, "test", Protocol(native=True, masks=True))
    assert (
        measured.network["border_fg"].counts.tolist()
        == measured.native["border_fg"].counts.tolist()
        == np.array(by_hand).tolist()
    )
    assert measured.masks is not None
    assert measured.masks.shape == (len(pictures), 32, 4)
    parts.close()
    assert run_command(evaluate, [str(tmp_path / "run"), "--tta", "scales", "--pictures", "1"]) == 0
    content = json.loads((tmp_path / "run" / "evaluate-test.json").read_text())
    assert content["metrics"]["test/native/dice"] == content["metrics"]["test/dice"]


def test_a_set_that_was_squashed_is_warned_of(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tiny(data__fit="crop", data__image_size_px=32, train__epochs=1), tmp_path)
    assert (
        "data.fit = crop cannot undo that: pack the set with `python -m shards.pack --image-size-px 0`" in caplog.text
    )


def test_rare_crops_go_with_crops_alone() -> None:
    with pytest.raises(ValueError, match=r"data.rare_crops = 0.5: must lie in \[0, 1\], and needs data.fit crop"):
        DataConfig(rare_crops=0.5)
    assert trial_id(RunConfig(), "m") == "32e69dc83e"  # the id that this config had before


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """16 pictures of 70 x 100 px with a sky, a road and a sign of 4 px, and unlabelled pixels at the bottom."""
    rng = np.random.default_rng(0)
    for number in range(16):
        mask = np.zeros((70, 100), np.uint8)
        mask[35:], mask[66:] = 1, 3
        top, left = rng.integers(0, 60), rng.integers(0, 98)
        mask[top : top + 2, left : left + 2] = 2
        picture = (mask[..., None] * 60 + rng.integers(0, 40, (70, 100, 3))).astype(np.uint8)
        for kind, pixels in (("images", picture), ("masks", mask)):
            folder = tmp_path / kind / ("train" if number < 12 else "val")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    table = tmp_path / "classes.toml"
    names = "".join(f"[[class]]\nname = '{name}'\nvalues = [{i}]\n" for i, name in enumerate(("sky", "road", "sign")))
    table.write_text(f"name = 'street'\nignore = [3]\n{names}")
    patterns = {kind: f"{tmp_path}/{kind}/{{split}}/{{key}}.png" for kind in ("images", "masks")}
    pack(PackConfig(out=tmp_path / "set", classes=str(table), workers=1, samples_per_shard=8, **patterns))
    return tmp_path / "set"


@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_scenes_of_several_classes_train_and_are_measured(tiny: Tiny, street: Path, tmp_path: Path, fit: str) -> None:
    config = tiny(
        data__shards=str(street), data__image_size_px="32x64", data__fit=fit, data__cache_dir=str(tmp_path / "cache"),
        data__rare_crops=0.5 if fit == "crop" else 0.0, train__batch_size=4, augment__policy="strong",
        train__loss="ce_dice",
    )  # fmt: skip
    result = train(config, tmp_path / "run")
    assert [row["data/coverage"] for row in read_metrics(tmp_path / "run")] == [1.0, 1.0]
    assert {f"val/class/{name}/dice" for name in ("sky", "road", "sign")} <= result.metrics.keys()
    masks = load_masks(tmp_path / "run")
    assert masks is not None
    assert masks.of(0).shape == (32, 64)
    assert run_command(evaluate, [str(tmp_path / "run"), "--split", "val", "--pictures", "1"]) == 0
    metrics = json.loads((tmp_path / "run" / "evaluate-val.json").read_text())["metrics"]
    assert np.isfinite(metrics["val/native/dice"])
    if fit == "crop":
        confusion = measured_pixels(config, tmp_path / "run")
        assert confusion == 4 * 66 * 100  # all labelled pixels of the four pictures, each once


def measured_pixels(config: RunConfig, folder: Path) -> int:
    """Pixels of val that the confusion of the classes counts."""
    parts = build_parts(config, open_store(config.data.shards), folder, splits=("val",))
    try:
        confusion = measure_protocol(parts, "val", Protocol()).confusion
        assert confusion is not None
        return int(confusion.sum())
    finally:
        parts.close()


@pytest.mark.slow
def test_an_estimate_counts_windows_and_the_largest_picture(tiny: Tiny, native_shards: Path) -> None:
    config = tiny(data__shards=str(native_shards), data__image_size_px=32, data__fit="crop")
    needs = estimate_needs(config, 1, "H100", 0)
    reader = TarReader(open_store(str(native_shards)), "val", 32, "crop")
    sizes = {whole.labels.shape for i in range(len(reader)) if isinstance(whole := reader.whole(i), Whole)}
    assert set(needs.pictures) == sizes
    assert windows_per_picture(reader) == np.mean([num_windows(size, (32, 32)) for size in needs.pictures]) > 4
    height, width = max(sizes, key=math.prod)
    text = io.StringIO()
    Console(file=text, width=300).print(render(needs))
    assert f"for a picture of {height} x {width} px" in text.getvalue()
    squashed = estimate_needs(tiny(data__shards=str(native_shards), data__image_size_px=32), 1, "H100", 0)
    assert squashed.pictures == ()
