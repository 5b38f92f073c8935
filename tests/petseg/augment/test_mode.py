"""Copies that join their originals: what a picture weighs, on any number of processes, and after an interrupt."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from petseg.augment import __main__ as sheet
from petseg.augment.batch import augment_batch
from petseg.augment.draws import draw
from petseg.config import RunConfig
from petseg.data.plan import Batching, train_plan
from petseg.data.store import open_store
from petseg.run.batches import batches_at, epoch_order, eval_inputs, take_step, to_device, to_inputs, train_batches
from petseg.run.parts import Parts, build_parts
from petseg.run.run import new_run
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import read_metrics
from petseg.training import interrupt
from petseg.training.loop import train
from petseg.training.step import train_step
from shards.command import OK, WRONG_USE, Interrupted, run_command
from tests.petseg.tensors import assert_same_tensors

Tiny = Callable[..., RunConfig]
ADD = {"augment__policy": "strong", "augment__mode": "add", "augment__strong_p": 0.5}


@pytest.fixture
def parts(tiny: Tiny, pet_shards: Path, tmp_path: Path) -> Iterator[Parts]:
    parts = build_parts(tiny(**ADD), open_store(str(pet_shards)), tmp_path, splits=["train"])
    yield parts
    parts.close()


def weights_of_step(parts: Parts, accumulation_steps: int, world_size: int, step: int) -> Counter[bytes]:
    """What each distinct picture of a step weighs, over all ranks and passes; fillers weigh nothing."""
    weights: Counter[bytes] = Counter()
    for rank in range(world_size):
        plan = train_plan(epoch_order(parts, 1), Batching(8, accumulation_steps, rank, world_size))
        for batch in parts.splits["train"].batches(part for part in plan if part.step == step):
            image, trimap = to_device(parts, batch)
            image, trimap, weight = augment_batch(parts.config, batch.plan.ids, 1, image, trimap, batch.weight)
            image, target = to_inputs(parts, image, trimap)
            assert len(image) == len(target) == len(weight)
            for i in range(len(image)):
                pixels = image[i].contiguous().numpy().tobytes() + target[i].numpy().tobytes()
                weights[pixels] += weight[i].item()
    return weights


@pytest.mark.parametrize("step", [0, 3])  # of 8 samples, of 3
def test_pictures_and_weights_are_the_same_on_any_number_of_processes(parts: Parts, step: int) -> None:
    alone = weights_of_step(parts, 1, 1, step)
    samples = 8 if step < 3 else 3
    assert len(alone) > samples
    assert set(alone.values()) == {0.5, 1.0}
    assert sum(alone.values()) == samples
    for world_size, accumulation_steps in itertools.product((1, 2, 3, 5), (1, 2)):
        found = weights_of_step(parts, accumulation_steps, world_size, step)
        assert +found == alone, (world_size, accumulation_steps)


def test_an_epochs_sums_count_each_picture_once(parts: Parts) -> None:
    run, batches, sums = new_run(parts), train_batches(parts, 1), torch.zeros(4, dtype=torch.float64)
    for step in range(run.progress.steps_per_epoch):
        train_step(run, 1, step, take_step(batches), sums)
    assert sums[0] == 27


def test_both_modes_have_the_same_steps_and_draws(tiny: Tiny, tmp_path: Path) -> None:
    rows = {}
    for mode in ("replace", "add"):
        config = tiny(train__epochs=1, augment__policy="elastic_crop", augment__p=0.5, augment__mode=mode)
        train(config, tmp_path / mode)
        (rows[mode],) = read_metrics(tmp_path / mode)
        rows[mode]["drawn"] = len(draw(config.augment, range(27), 0, 1, 64))
    assert rows["replace"]["step"] == rows["add"]["step"] == 4
    assert rows["replace"]["data/coverage"] == rows["add"]["data/coverage"] == 1.0
    assert rows["replace"]["drawn"] == rows["add"]["drawn"] > 5
    assert rows["replace"]["train/loss"] != rows["add"]["train/loss"]


def test_evaluation_sees_pictures_as_they_are(parts: Parts) -> None:
    (batch,) = batches_at(parts, "train", [3])
    image, target = eval_inputs(parts, batch)
    assert len(image) == len(target) == 1
    assert torch.equal(image, eval_inputs(parts, batch)[0])


def test_an_interrupted_run_with_copies_ends_with_the_same_numbers(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(train__log_every=1, **ADD)
    train(config, tmp_path / "calm")
    with monkeypatch.context() as patch:
        asked = itertools.count(1)
        patch.setattr(interrupt, "requested", lambda: next(asked) == 2)
        with pytest.raises(Interrupted, match="saved up to epoch 0 and 2 steps"):
            train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped")
    ours, theirs = (load_file(newest(tmp_path / name) / "model.safetensors") for name in ("calm", "stopped"))
    assert_same_tensors(theirs, ours)
    rows = [
        [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(tmp_path / name)]
        for name in ("calm", "stopped")
    ]
    assert rows[0] == rows[1]


def newest(folder: Path) -> Path:
    return list_checkpoints(folder / "checkpoints")[-1].folder


def test_the_sheet(pet_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    out = tmp_path / "sheet.png"
    flags = ["--shards", str(pet_shards), "--image-size-px", "64", "--pictures", "2", "--epochs", "3"]
    assert run_command(sheet.main, [*flags, "--policy", "strong", "--out", str(out)]) == OK
    with Image.open(out) as image:
        assert image.size == (4 * 64, 2 * (64 + 16))
    assert run_command(sheet.main, [*flags, "--pictures", "0"]) == WRONG_USE
    assert "--pictures = 0: must be at least 1" in capsys.readouterr().err
