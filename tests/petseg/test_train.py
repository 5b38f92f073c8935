"""Real runs on drawn pets: what is learnt, what is written, and how the command is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from petseg.config import RunConfig
from petseg.data.consent import is_known
from petseg.data.plan import EpochOrder
from petseg.data.store import open_store
from petseg.data.tars import TarReader
from petseg.optim import learning_rate
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import Result, load_config, load_result, read_metrics
from petseg.run_folder.new_folder import missing_folders, removed_unless_started
from petseg.train import main, show_result
from petseg.training import epoch as epoch_module
from petseg.training import step as step_module
from petseg.training.loop import train
from shards.command import Failure, run_command

Tiny = Callable[..., RunConfig]
REPOSITORY = Path(__file__).parents[2]


def test_a_run_learns_and_writes_all_files(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(
        train__epochs=12, train__batch_size=4, train__loss="ce_dice", train__test=True, train__seed=2, model__width=8,
        optim__lr=3e-3, optim__schedule="one_cycle",
    )  # fmt: skip
    result = train(config, tmp_path)
    rows = read_metrics(tmp_path)
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert rows[-1]["train/loss"] < 0.75 * rows[0]["train/loss"]
    assert {"val/loss", "val/dice", "val/iou", "train/dice", "train/iou"} <= rows[0].keys()
    for split in (
        "train",
        "val",
    ):  # of a picture IoU = Dice / (2 - Dice); of means that is the least, since it is convex
        for row in rows:
            dice, iou = row[f"{split}/dice"], row[f"{split}/iou"]
            assert dice / (2 - dice) - 1e-6 <= iou <= dice
    assert result == load_result(tmp_path)
    assert result.metrics["val/dice"] == max(row["val/dice"] for row in rows)
    # on train: what 84 steps reach on a few other pictures depends on the last bits of a CPU's arithmetic
    assert rows[-1]["train/dice"] > rows[0]["train/dice"] + 0.05
    assert 0 < result.metrics["test/dice"] < 1
    assert 0 < result.metrics["test/all_pet_dice"] < 1
    per_image = np.load(tmp_path / "per_image.npz", allow_pickle=False)
    assert len(per_image["val/keys"]) == 3
    assert len(per_image["test/counts"]) == 30
    assert len(list((tmp_path / "overlays").glob("*.png"))) == 2
    assert load_config(tmp_path)["config"]["model"]["width"] == 8


def test_an_epochs_row_has_the_learning_rate_of_its_last_step(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(optim__schedule="cosine")
    train(config, tmp_path)
    assert [row["lr"] for row in read_metrics(tmp_path)] == [learning_rate(config.optim, step, 8) for step in (3, 7)]


def test_a_run_ends_with_the_numbers_of_each_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = ("dice", "iou", "dice_dataset", "iou_dataset", "loss", "all_pet_dice")
    metrics = {f"{split}/{name}": value for split, value in (("val", 0.25), ("test", 0.75)) for name in fields}
    for named, shown in ((metrics, "0.7500"), ({n: v for n, v in metrics.items() if n.startswith("val")}, "")):
        show_result(Result("0123456789", named, 1, 2, 31, 1, "node1", "cpu", 60.0, 83.0, 0.01, 84.0), tmp_path)
        out = capsys.readouterr().out
        assert "best weights: epoch 1 of 2" in out
        assert "0.2500" in out
        assert ("0.7500" in out) == ("test" in out.rpartition("split")[2]) == bool(shown)


def test_each_step_has_its_own_rate_and_each_epoch_its_own_augmentation(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, epochs = list[float](), list[int]()
    set_rate, augment = step_module.set_learning_rate, step_module.augment_batch

    def note_rate(optimizer: Any, rate: float) -> None:
        rates.append(rate)
        set_rate(optimizer, rate)

    def note_epoch(config: RunConfig, ids: Any, epoch: int, *rest: Any) -> Any:
        epochs.append(epoch)
        return augment(config, ids, epoch, *rest)

    monkeypatch.setattr(step_module, "set_learning_rate", note_rate)
    monkeypatch.setattr(step_module, "augment_batch", note_epoch)
    config = tiny(optim__schedule="cosine")
    train(config, tmp_path)
    assert rates == [learning_rate(config.optim, step, 8) for step in range(8)]
    assert epochs == [1] * 4 + [2] * 4


def test_an_epochs_seconds_are_those_of_all_its_steps(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a step takes a second, and all else no time."""
    now, step = [0.0], step_module.train_step

    def one_second(*args: Any) -> None:
        now[0] += 1.0
        step(*args)

    monkeypatch.setattr(step_module, "train_step", one_second)
    monkeypatch.setattr(epoch_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    train(tiny(train__log_every=2), tmp_path)
    rows = read_metrics(tmp_path)
    assert [row["perf/seconds"] for row in rows] == [4.0, 4.0]
    assert [row["perf/images_per_s"] for row in rows] == [27 / 4, 27 / 4]
    assert [row["perf/data_wait"] for row in rows] == [0.0, 0.0]


def test_batchnorm_moves_in_every_epoch(tiny: Tiny, tmp_path: Path) -> None:
    """The lab never left evaluation mode after the first epoch: its BatchNorm stood still from then on."""
    train(tiny(train__epochs=3), tmp_path)
    steps = -(-27 // 8)
    counters = {
        c.state["epoch"]: load_file(c.folder / "model.safetensors")["stem.1.num_batches_tracked"].item()
        for c in list_checkpoints(tmp_path / "checkpoints")
    }
    assert counters
    assert counters == {epoch: epoch * steps for epoch in counters}


def planned_keys(config: RunConfig) -> list[str]:
    """The keys of the first epoch, straight from the plan."""
    reader = TarReader(open_store(config.data.shards), "train", config.data.image_size_px)
    order = EpochOrder(reader.shard_sizes, config.data.shuffle_window_shards, config.train.seed, 1)
    keys = [reader.key(int(i)) for i in order.ids(0, len(order))]
    reader.close()
    return keys


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batches(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"NaN or infinite in steps \d-\d of epoch 1: try a lower optim.lr"):
        train(tiny(optim__lr=1e30), tmp_path)
    keys = json.loads((tmp_path / "not_finite.json").read_text())["keys_by_step"]
    order = planned_keys(tiny())
    assert keys == {"0": order[:8], "1": order[8:16]}  # the first step spoils the weights, the second sees it
    assert load_result(tmp_path) is None
    assert list_checkpoints(tmp_path / "checkpoints") == []


def test_evaluation_does_not_depend_on_the_batch(tiny: Tiny, tmp_path: Path) -> None:
    """The lab averaged batches, so that a picture's weight hung on its neighbours."""
    from petseg.evaluation.measure import measure
    from petseg.run.parts import build_parts

    tables = []
    for batch_size in (1, 7, 30):
        config = tiny(train__batch_size=batch_size)
        parts = build_parts(config, open_store(config.data.shards), tmp_path, splits=["test"])
        tables.append(measure(parts, "test"))
        assert not any(p.requires_grad and p.grad is not None for p in parts.bare_model.parameters())
        parts.close()
    for table in tables[1:]:
        np.testing.assert_allclose(table.loss, tables[0].loss, rtol=1e-4)
        np.testing.assert_allclose(table.dice, tables[0].dice, atol=0.02)


def test_the_command_line(tiny: Tiny, tmp_path: Path, pet_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data.shards", str(pet_shards), "--data.image-size-px", "64", "--model.width", "4"]
    flags += ["--train.epochs", "1", "--train.batch-size", "16", "--train.no-test"]
    assert run_command(main, [*flags, "--out", str(tmp_path)]) == 0
    assert "best weights: epoch 1 of 1" in capsys.readouterr().out
    assert run_command(main, ["--data.shards", str(tmp_path / "none")]) == 2
    assert ": `python -m shards.pack --download" in capsys.readouterr().err
    assert run_command(main, [*flags, "--out", str(tmp_path / "w"), "--world-size", "2"]) == 2
    assert "1 processes run together where 2 were asked for" in capsys.readouterr().err


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` with two processes on the CPU, as a user would."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "slurm/accelerate/two_cpu.yaml"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "petseg/train.py", *arguments],
        cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [["--data.image-size-px", "64"], ["--data.image-size-px", "32x64", "--data.fit", "crop"]]
)
def test_two_processes_train_one_model_and_see_each_picture_once(
    pet_shards: Path, tmp_path: Path, shape: list[str]
) -> None:
    flags = ["--data.shards", str(pet_shards), *shape, "--model.width", "4"]
    # 27 samples in batches of 13: the last has one sample, which one of the two ranks has to do without
    flags += ["--train.epochs", "2", "--train.batch-size", "13", "--train.accumulation-steps", "1"]
    flags += ["--out", str(tmp_path), "--world-size", "2", "--augment.policy", "elastic"]
    done = launch(*flags)
    assert done.returncode == 0, done.stderr
    result = load_result(tmp_path)
    assert result is not None
    assert result.world_size == 2
    assert [row["step"] for row in read_metrics(tmp_path)] == [3, 6]
    per_image = np.load(tmp_path / "per_image.npz", allow_pickle=False)
    assert len(set(per_image["test/keys"])) == 30
    again = launch(*flags)
    assert again.returncode == 0
    assert "is finished" in again.stderr


def test_a_result_of_another_version_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"trial_id": "0123456789", "magic": 1}')
    with pytest.raises(ValueError, match=r"result\.json was written by another version"):
        load_result(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train.mixed-precision", "fp16"], "'fp16' needs a GPU"),
        (["--world-size", "2"], "1 processes run together where 2 were asked for"),
        (["--train.start-size-px", "32", "--model.arch", "dpt"], "does not work on pictures"),
    ],
)
def test_a_run_that_cannot_begin_leaves_no_folder(
    pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    flags: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = ["--data.shards", str(pet_shards), "--data.image-size-px", "64", "--data.cache", "none", *flags]
    for out in ([], ["--out", "a/b/run"]):
        assert run_command(main, [*words, *out]) == 2
        assert message in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


def test_work_that_did_not_start_removes_only_its_own_folders(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    folder = tmp_path / "kept" / "new" / "run"

    def work(begun: bool) -> None:
        with removed_unless_started(missing_folders(folder), lambda error: begun):
            (folder / "deep").mkdir(parents=True, exist_ok=True)
            raise KeyboardInterrupt

    def attempt(begun: bool) -> None:
        with pytest.raises(KeyboardInterrupt):
            work(begun)

    attempt(begun=False)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert list((tmp_path / "kept").iterdir()) == []
    attempt(begun=True)
    (folder / "deep").rmdir()
    attempt(begun=False)  # it was there before
    assert (folder / "deep").is_dir()


def test_shards_that_the_command_line_names_are_known_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noted before the run begins, so that a retry from its folder may fetch them."""
    location = "pipe:cat /mnt/pets/{}"

    def begin(config: RunConfig, folder: Path, terms: Any) -> None:
        assert (config.data.shards, is_known(location)) == (location, True)
        raise Failure("far enough")

    monkeypatch.setattr("petseg.training.loop.train", begin)
    assert not is_known(location)
    with pytest.raises(Failure, match="far enough"):
        main(["--data.shards", location, "--out", str(tmp_path / "run")])
    assert is_known(location)
    assert not is_known("pipe:cat /mnt/other/{}")
