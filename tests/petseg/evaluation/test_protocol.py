"""The whole protocol on small real runs, against what NumPy, Pillow and scipy say of the same pictures."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from scipy.ndimage import binary_erosion, distance_transform_edt

from petseg.config import RunConfig
from petseg.data.ledger import Count, Ledger
from petseg.data.letterbox import place
from petseg.data.store import open_store
from petseg.data.tars import Lost
from petseg.evaluation.measure import measure, predict
from petseg.evaluation.network import network_of
from petseg.evaluation.protocol import Protocol, Scorer, calibrate, measure_protocol, scores_of, why_not_native
from petseg.metrics.pixels import to_native
from petseg.run.batches import batches_at, eval_inputs
from petseg.run.parts import Parts, build_parts
from petseg.targets.pets import BORDERS
from petseg.training.loop import train
from shards.cause import Cause
from shards.command import Failure
from shards.index import load_index
from shards.manifest import load_manifest
from shards.pack import PackConfig, pack
from tests.targets import pets_target

Tiny = Callable[..., RunConfig]
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def whole_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawn pets at their own sizes: test has 12."""
    out = tmp_path_factory.mktemp("whole") / "shards"
    pack(PackConfig(out=out, synthetic=24, seed=1, image_size_px=0, synthetic_longer_side_px=90, workers=1))
    return out


@pytest.fixture
def whole_parts(whole_shards: Path, tiny: Tiny, tmp_path: Path) -> Iterator[Parts]:
    """Fresh weights on the pets at their own sizes."""
    config = tiny(data__shards=str(whole_shards), data__cache_dir=str(tmp_path / "cache"))
    parts = build_parts(config, open_store(config.data.shards), tmp_path, splits=["test", "val"])
    yield parts
    parts.close()


def trimaps_of(folder: Path) -> dict[str, np.ndarray]:
    """Key -> trimap, straight from the tars."""
    found = {}
    for shard in load_manifest(folder).of_split("test"):
        with tarfile.open(folder / shard.name) as tar:
            for sample in load_index(folder, shard.name):
                member = tar.extractfile(f"{sample.key}.png")
                assert member is not None
                found[sample.key] = np.asarray(Image.open(io.BytesIO(member.read())))
    return found


def by_hand(prediction: np.ndarray, trimap: np.ndarray, border: str) -> tuple[list[int], float, float]:
    """Counts, boundary IoU and HD95 by definition: distance maps of the whole picture, erosion step by step."""
    counted = trimap != 3 if border == "ignore" else np.ones_like(trimap, bool)
    truth = (trimap == 1) | ((trimap == 3) & (border == "fg"))
    ours, theirs = prediction & counted, truth & counted
    counts = [(ours & theirs).sum(), (ours & ~theirs).sum(), (~ours & theirs).sum()]
    diagonal = np.hypot(*trimap.shape)
    times = max(1, round(0.02 * diagonal))
    rings = [m & ~binary_erosion(m, np.ones((3, 3)), iterations=times) for m in (ours, theirs)]
    either = (rings[0] | rings[1]).sum()
    iou = float((rings[0] & rings[1]).sum() / either) if either else 1.0
    edges = [m & ~binary_erosion(m) for m in (ours, theirs)]
    if not all(edge.any() for edge in edges):
        return counts, iou, 0.0 if not any(edge.any() for edge in edges) else float(diagonal)
    ways = (edges, edges[::-1])
    hd95 = max(float(np.percentile(distance_transform_edt(~end)[start], 95)) for start, end in ways)
    return counts, iou, hd95


def test_both_sizes_and_all_border_rules_by_hand(whole_parts: Parts, whole_shards: Path) -> None:
    measured = measure_protocol(whole_parts, "test", Protocol(native=True))
    trimaps = trimaps_of(whole_shards)
    data = whole_parts.splits["test"]
    assert len({trimap.shape for trimap in trimaps.values()}) > 1
    for position, batch in enumerate(batches_at(whole_parts, "test", range(len(data)))):
        with torch.no_grad():
            logits = whole_parts.bare_model(eval_inputs(whole_parts, batch)[0])
        trimap = trimaps[data.key(position)]
        for scores, seen in ((measured.network, batch.labels[0].numpy()), (measured.native, trimap)):
            sized = F.interpolate(logits, size=seen.shape, mode="bilinear") if seen is trimap else logits
            prediction = sized[0].argmax(dim=0).numpy() == 1
            for border in BORDERS:
                counts, iou, hd95 = by_hand(prediction, seen, border)
                one = scores[f"border_{border}"]
                # a forward pass over one picture instead of eight may turn a pixel that is undecided
                assert np.abs(one.counts[position, 0] - counts).sum() <= 4
                if one.counts[position, 0].tolist() == counts:
                    assert one.boundary_iou[position, 0] == pytest.approx(iou, abs=1e-9)
                    assert one.hd95_px[position, 0] == pytest.approx(hd95, abs=1e-9)


@pytest.mark.parametrize("border", BORDERS)
def test_validation_measures_the_configs_border_rule(tiny: Tiny, tmp_path: Path, border: str) -> None:
    config = tiny(data__border=border)
    parts = build_parts(config, open_store(config.data.shards), tmp_path, splits=["test"])
    quick, measured = measure(parts, "test"), measure_protocol(parts, "test", Protocol())
    assert np.array_equal(quick.counts, measured.network[f"border_{border}"].counts)
    assert np.array_equal(quick.loss, measured.per_image.loss)
    metrics = measured.metrics("test", temperature=2.0)
    assert quick.summary("test").items() <= metrics.items()
    for name in ("dice", "iou", "dice_dataset", "boundary_iou", "hd95_px"):
        assert metrics[f"test/{name}"] == metrics[f"test/border_{border}/{name}"]
    assert metrics["test/temperature"] == 2.0
    again = calibrate(parts, "test", "none")
    assert again.reliability().ece == pytest.approx(metrics["test/ece"], abs=1e-9)
    assert "test/ece_scaled" not in measured.metrics("test", temperature=None)
    parts.close()


def test_validation_measures_every_class_of_the_target(tiny: Tiny, tmp_path: Path) -> None:
    """Else the best epoch would be chosen by the first class alone."""
    config = tiny(data__target="trimap")
    parts = build_parts(config, open_store(config.data.shards), tmp_path, splits=["test"])
    quick, measured = measure(parts, "test"), measure_protocol(parts, "test", Protocol())
    assert quick.counts.shape == (30, 2, 3)  # pictures, pet and border, the kinds of pixels
    assert measured.confusion is not None
    assert (measured.confusion.dtype, int(measured.confusion.sum())) == (np.int64, 30 * 64 * 64)
    assert measured.confusion.diagonal()[1:].tolist() == quick.counts[..., 0].sum(axis=0).tolist()
    assert np.array_equal(quick.counts, measured.per_image.counts)
    assert quick.summary("test").items() <= measured.metrics("test", temperature=None).items()
    parts.close()


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_pictures_of_any_shape_are_measured_at_their_own_size(
    whole_shards: Path, tiny: Tiny, tmp_path: Path, fit: str
) -> None:
    """Through windows that is the only size; a letterbox has the network's too, without its margins."""
    config = tiny(data__shards=str(whole_shards), data__fit=fit, data__cache="none")
    parts = build_parts(config, open_store(config.data.shards), tmp_path, splits=["test"])
    measured = measure_protocol(parts, "test", Protocol(native=True, masks=True))
    shapes = [trimap.shape for trimap in trimaps_of(whole_shards).values()]
    assert (measured.native is measured.network) == (fit == "crop")
    sizes = shapes if fit == "crop" else [place(shape, (64, 64)).size for shape in shapes]
    assert isinstance(measured.per_image.pixels, np.ndarray)
    assert measured.per_image.pixels.tolist() == [height * width for height, width in sizes]
    assert measured.masks is not None
    assert measured.masks.shape == (12, 64, 8)
    quick = measure(parts, "test")
    for name in ("counts", "pixels", "loss"):
        assert np.array_equal(getattr(quick, name), getattr(measured.per_image, name))
    network, native = network_of(parts), measured.native["border_bg"]
    data = parts.splits["test"]
    trimaps = trimaps_of(whole_shards)
    for position, batch in enumerate(batches_at(parts, "test", range(3))):
        with torch.no_grad():
            logits = network(eval_inputs(parts, batch)[0])
        trimap = trimaps[data.key(position)]
        own = logits if fit == "crop" else to_native(logits[0], trimap.shape, "letterbox")
        found, truth = own[0].argmax(dim=0).numpy() == 1, trimap == 1
        expected = [(found & truth).sum(), (found & ~truth).sum(), (~found & truth).sum()]
        assert np.abs(native.counts[position, 0] - expected).sum() <= 4
    parts.close()


def test_views_are_averaged_and_drawn(whole_parts: Parts) -> None:
    plain, views = (measure_protocol(whole_parts, "test", Protocol(tta=tta)) for tta in ("none", "flips_scales"))
    assert not np.array_equal(plain.per_image.counts, views.per_image.counts)
    drawn = predict(whole_parts, "test", [0], Protocol(tta="flips_scales"))[0]
    found = ((drawn.prediction == 1) & (drawn.truth == 1)).sum()
    assert abs(int(found) - int(views.per_image.counts[0, 0, 0])) <= 4


def test_only_the_largest_part_of_each_mask_is_measured_and_drawn(whole_parts: Parts) -> None:
    """Counts, outlines and native size follow from the cleaned masks; the loss and the calibration do not."""
    plain, cleaned = (
        measure_protocol(whole_parts, "test", Protocol(native=True, masks=True, keep_largest=kept))
        for kept in (False, True)
    )
    assert plain.masks is not None
    assert cleaned.masks is not None
    side_px = whole_parts.config.data.image_size_px
    parts_before, parts_after = (
        [ndimage.label(np.unpackbits(bits, axis=-1, count=side_px), np.ones((3, 3)))[1] for bits in one.masks]
        for one in (plain, cleaned)
    )
    assert max(parts_before) > 1
    assert max(parts_after) == 1
    assert cleaned.per_image.counts[..., :2].sum() < plain.per_image.counts[..., :2].sum()
    assert np.array_equal(cleaned.per_image.loss, plain.per_image.loss)
    assert not np.array_equal(cleaned.network["border_fg"].hd95_px, plain.network["border_fg"].hd95_px)
    assert cleaned.native["border_fg"].counts[..., :2].sum() < plain.native["border_fg"].counts[..., :2].sum()
    position = int(np.argmax(parts_before))
    drawn = predict(whole_parts, "test", [position], Protocol(keep_largest=True))[0]
    assert ndimage.label(drawn.prediction, np.ones((3, 3)))[1] == 1


def test_weights_that_are_not_finite_raise_a_failure(whole_parts: Parts) -> None:
    with torch.no_grad():
        next(whole_parts.bare_model.parameters()).fill_(float("nan"))
    for work in (lambda: measure(whole_parts, "val"), lambda: measure_protocol(whole_parts, "val", Protocol())):
        with pytest.raises(Failure, match="NaN or infinite on 2 pictures of val"):
            work()


def test_a_squashed_set_has_no_native_size(pet_shards: Path, whole_shards: Path) -> None:
    assert why_not_native(load_manifest(whole_shards)) == ""
    assert "squashed to 64 px: pack the set with --image-size-px 0" in why_not_native(load_manifest(pet_shards))


def test_a_trimap_that_is_lost_after_it_was_cached_is_named(whole_shards: Path, tiny: Tiny, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(whole_shards, tmp_path / "shards"))
    config = tiny(data__shards=str(shards), data__cache="node", data__cache_dir=str(tmp_path / "cache"))
    parts = build_parts(config, open_store(config.data.shards), tmp_path, splits=["test"])
    shard = load_manifest(shards).of_split("test")[0]
    sample = load_index(shards, shard.name)[1]
    with (shards / shard.name).open("r+b") as file:
        file.seek(sample.png.offset + 60)
        byte = file.read(1)
        file.seek(sample.png.offset + 60)
        file.write(bytes([byte[0] ^ 1]))
    measure_protocol(parts, "test", Protocol())  # the cache has it
    with pytest.raises(Failure, match=rf"1 samples of split test are unreadable.*\n.*{sample.key} at byte"):
        measure_protocol(parts, "test", Protocol(native=True))
    parts.close()


@pytest.mark.parametrize("name", ["pet", "trimap"])
def test_labels_that_are_lost_are_rows_of_zeros_and_in_the_ledger(name: str) -> None:
    """A row has as many columns as one that was scored: five for each class that counts, by each rule."""
    target = pets_target(name)
    parts = cast(Parts, SimpleNamespace(target=target))
    lost = Lost("train-000000.tar", "", 0, "damaged", Cause.DATA)
    ledger = Ledger(Count(samples=2))
    scorer = Scorer(parts, Protocol(), cast(ThreadPoolExecutor, None))
    found = scorer.score_native(torch.zeros(2, len(target), 4, 4), [lost, lost], None, ledger)
    assert found.shape == (2, 5 * len(target.counted) * len(target.rules))
    assert not found.any()
    assert ledger.count == Count(samples=2, lost=2, unnamed=2)
    assert ledger.lost == [lost, lost]
    assert set(scores_of(target, found.numpy())) == set(target.rules)


def evaluate(processes: int, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "slurm/accelerate/two_cpu.yaml"]
    command = [*launcher, "--num_processes", str(processes), "-m"] if processes > 1 else ["-m"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command, "petseg.evaluate", str(folder), *flags],
        cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_two_processes_measure_the_same_as_one(whole_shards: Path, tiny: Tiny, tmp_path: Path, fit: str) -> None:
    cache = str(tmp_path / "cache")
    train(tiny(data__shards=str(whole_shards), data__fit=fit, train__epochs=1, data__cache_dir=cache), tmp_path)
    written = []
    for processes in (1, 2):
        done = evaluate(processes, tmp_path, "--tta", "flips", "--pictures", "1")
        assert done.returncode == 0, done.stderr
        written.append(json.loads((tmp_path / "evaluate-test.json").read_text()))
    one, two = written
    assert one.keys() == two.keys()
    assert one["metrics"]["test/native/hd95_px"] > 0
    assert two["metrics"] == pytest.approx(one["metrics"], rel=0.01)  # batches of another size: other last bits
    assert [b["pixels"] for b in two["reliability"]["as_is"]] == pytest.approx(
        [b["pixels"] for b in one["reliability"]["as_is"]], abs=100
    )
    assert two["dice"] == pytest.approx(one["dice"], abs=0.01)
