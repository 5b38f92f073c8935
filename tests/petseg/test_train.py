"""Real runs on drawn pets: what is learnt, what is written, and what happens after a kill."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from petseg import interrupt
from petseg import train as train_module
from petseg.checkpoint import list_checkpoints
from petseg.config import RunConfig
from petseg.optim import learning_rate
from petseg.run import Run
from petseg.run_folder import load_config, load_result, read_metrics
from petseg.train import main, train
from shards.command import INTERRUPTED, Failure, Interrupted, run_command
from shards.manifest import load_index, load_manifest

Tiny = Callable[..., RunConfig]
REPOSITORY = Path(__file__).parents[2]


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(folder / "checkpoints")[-1].folder / "model.safetensors")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def without_clock(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(folder)]


def test_a_run_learns_and_writes_what_the_contract_says(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(
        train__epochs=12, train__batch_size=4, train__loss="ce_dice", train__test=True, optim__lr=3e-3, model__width=8
    )
    result = train(config, tmp_path)
    rows = read_metrics(tmp_path)
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert rows[-1]["train/loss"] < 0.75 * rows[0]["train/loss"]
    assert {"val/loss", "val/dice", "val/iou", "train/dice", "train/iou"} <= rows[0].keys()
    assert result == load_result(tmp_path)
    assert result.metrics["val/dice"] == max(row["val/dice"] for row in rows)
    assert result.metrics["test/dice"] > result.metrics["test/all_pet_dice"] + 0.02
    per_image = np.load(tmp_path / "per_image.npz", allow_pickle=False)
    assert len(per_image["val/keys"]) == 3
    assert len(per_image["test/counts"]) == 30
    assert len(list((tmp_path / "overlays").glob("*.png"))) == 2
    assert load_config(tmp_path)["config"]["model"]["width"] == 8


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


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_killed_run_ends_with_the_same_numbers(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    config = tiny(
        train__epochs=3, optim__schedule="cosine", augment__policy="elastic_crop", augment__p=0.5,
        train__mixed_precision=precision,
    )  # fmt: skip
    calm = train(config, tmp_path / "calm")

    validate, calls = train_module.validate, []

    def killed_in_epoch_two(run: Run) -> dict[str, float]:
        calls.append(run.epoch)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(run)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "validate", killed_in_epoch_two)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "killed")
    assert len(read_metrics(tmp_path / "killed")) == 1
    resumed = train(config, tmp_path / "killed")
    assert same(final_weights(tmp_path / "calm"), final_weights(tmp_path / "killed"))
    assert without_clock(tmp_path / "calm") == without_clock(tmp_path / "killed")
    assert resumed.metrics == calm.metrics


def test_the_same_command_again_is_a_no_op(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tiny(), tmp_path)
    monkeypatch.setattr(train_module, "build_run", lambda *_: pytest.fail("it trained again"))
    assert train(tiny(), tmp_path) == first


def test_a_fresh_run_never_continues_from_an_old_file(tiny: Tiny, tmp_path: Path) -> None:
    """In the lab a run silently went on from whatever weights lay in its folder."""
    train(tiny(train__epochs=1), tmp_path)
    with pytest.raises(ValueError, match=r"holds another run \(train.seed 0 -> 1\): choose another folder"):
        train(tiny(train__epochs=1, train__seed=1), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has checkpoints but no config\.json"):
        train(tiny(train__epochs=1), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batches(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"not finite in steps \d-\d of epoch 1: try a lower optim.lr"):
        train(tiny(optim__lr=1e30), tmp_path)
    keys = json.loads((tmp_path / "not_finite.json").read_text())["keys_by_step"]
    assert all(len(batch) in (8, 3) for batch in keys.values())
    assert load_result(tmp_path) is None
    assert list_checkpoints(tmp_path / "checkpoints") == []


def test_a_sample_weighs_the_same_in_any_cut_of_its_batch(tiny: Tiny, tmp_path: Path) -> None:
    """Two passes of 4 and one of 8 give the same loss up to BatchNorm's statistics, which they take by pass."""
    whole = train_rows(tiny(train__epochs=1, optim__lr=1e-9), tmp_path / "a")
    halves = train_rows(tiny(train__epochs=1, optim__lr=1e-9, train__accumulation_steps=2), tmp_path / "b")
    assert whole[0]["train/loss"] == pytest.approx(halves[0]["train/loss"], rel=0.05)
    assert whole[0]["step"] == halves[0]["step"] == 4


def train_rows(config: RunConfig, folder: Path) -> list[dict[str, float]]:
    train(config, folder)
    return read_metrics(folder)


def test_evaluation_does_not_depend_on_the_batch(tiny: Tiny, tmp_path: Path) -> None:
    """The lab averaged batches, so that a picture's weight hung on its neighbours."""
    from petseg.data.store import open_store
    from petseg.evaluate import measure
    from petseg.run import build_run

    tables = []
    for batch_size in (1, 7, 30):
        config = tiny(train__batch_size=batch_size)
        run = build_run(config, open_store(config.data.shards), tmp_path, splits=["test"])
        tables.append(measure(run, "test"))
        assert not any(p.requires_grad and p.grad is not None for p in run.bare_model.parameters())
        run.close()
    for table in tables[1:]:
        np.testing.assert_allclose(table.loss, tables[0].loss, rtol=1e-4)
        np.testing.assert_allclose(table.dice, tables[0].dice, atol=0.02)


@pytest.fixture
def broken(pet_shards: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A set with two unreadable train samples, and their keys."""
    folder = Path(shutil.copytree(pet_shards, tmp_path / "broken"))
    shard = load_manifest(folder).of_split("train")[0]
    samples = load_index(folder, shard.name)[3:5]
    for sample in samples:
        with (folder / shard.name).open("r+b") as file:
            file.seek(sample.jpg.offset)
            file.write(b"\0" * 64)
    return folder, [sample.key for sample in samples]


@pytest.mark.parametrize("cache", ["none", "auto"])
def test_damaged_pictures_stop_training_and_are_named(
    tiny: Tiny, broken: tuple[Path, list[str]], tmp_path: Path, cache: str
) -> None:
    folder, keys = broken
    changes = {"data__cache": cache, "data__cache_dir": str(tmp_path / "cache"), "train__log_every": 4}
    with pytest.raises(
        Failure, match=r"2 samples of split train cannot be read \(data.max_lost_samples allows 0\)"
    ) as error:
        train(tiny(data__shards=str(folder), **changes), tmp_path / "run")
    for key in keys:
        assert f"{key} at byte " in str(error.value)
    assert "of train-000000.tar: the bytes of" in str(error.value)
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


def test_damaged_pictures_within_the_budget_are_counted(
    tiny: Tiny, broken: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, _ = broken
    config = tiny(data__shards=str(folder), data__max_lost_samples=2, data__cache_dir=str(tmp_path / "cache"))
    train(config, tmp_path / "run")
    assert [row["data/coverage"] for row in read_metrics(tmp_path / "run")] == [pytest.approx(25 / 27)] * 2


def test_a_damaged_picture_of_an_evaluation_is_never_passed_over(tiny: Tiny, pet_shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pet_shards, tmp_path / "broken"))
    (folder / "val-000000.tar").unlink()
    config = tiny(data__shards=str(folder), data__max_lost_samples=9, data__cache_dir=str(tmp_path / "cache"))
    with pytest.raises(Failure, match=r"3 samples of split val cannot be read \(an evaluation must be complete\)"):
        train(config, tmp_path / "run")


def stop_when(patch: pytest.MonkeyPatch, *calls: int) -> None:
    """Interrupts are asked for at the boundaries of these numbers, from 1."""
    asked = itertools.count(1)
    patch.setattr(interrupt, "requested", lambda: next(asked) in calls)


def test_an_interrupt_loses_no_step_and_the_numbers_stay_the_same(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(train__log_every=1, optim__schedule="cosine", augment__policy="elastic_crop", augment__p=0.5)
    calm = train(config, tmp_path / "calm")
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_when(patch, 3, 4)  # in the third of the four steps, and at once when it goes on
        with pytest.raises(Interrupted, match="saved up to epoch 0 and 3 steps: run the same command to go on"):
            train(config, folder)
    with monkeypatch.context() as patch:
        stop_when(patch, 1)  # in the last step of the epoch: it is ended first
        with pytest.raises(Interrupted, match="saved up to epoch 1: run the same command"):
            train(config, folder)
    with monkeypatch.context() as patch:
        stop_when(patch, 2)
        assert run_command(lambda _: train(config, folder) and 0, []) == INTERRUPTED
    assert "interrupted:" in capsys.readouterr().err
    assert train(config, folder).metrics == calm.metrics
    assert same(final_weights(tmp_path / "calm"), final_weights(folder))
    assert without_clock(tmp_path / "calm") == without_clock(folder)


def test_a_budget_of_steps_ends_within_an_epoch_and_its_ledger_closes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(train__budget_steps=10, train__log_every=1, optim__schedule="poly", optim__lr=1e-2)  # 4 in an epoch
    calm = train(config, tmp_path / "calm")
    rows = read_metrics(tmp_path / "calm")
    assert [row["step"] for row in rows] == [4, 8, 10]
    assert [row["data/coverage"] for row in rows] == [1.0] * 3
    assert [row["lr"] for row in rows] == [pytest.approx(1e-2 * (1 - step / 10) ** 0.9) for step in (3, 7, 9)]
    assert calm.epochs == 3
    with monkeypatch.context() as patch:
        stop_when(patch, 9)  # in the first of the last epoch's two steps
        with pytest.raises(Interrupted, match="saved up to epoch 2 and 1 steps"):
            train(config, tmp_path / "stopped")
    assert train(config, tmp_path / "stopped").metrics == calm.metrics
    assert [c.step for c in list_checkpoints(tmp_path / "stopped" / "checkpoints")][-1] == 10
    assert same(final_weights(tmp_path / "calm"), final_weights(tmp_path / "stopped"))
    assert without_clock(tmp_path / "calm") == without_clock(tmp_path / "stopped")


def test_a_budget_may_be_less_than_an_epoch(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(train__budget_steps=3), tmp_path)
    assert [(row["epoch"], row["step"]) for row in read_metrics(tmp_path)] == [(1, 3)]


def test_a_budget_of_whole_epochs_is_that_many_epochs(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(train__budget_steps=8, optim__schedule="cosine"), tmp_path / "steps")
    train(tiny(train__epochs=2, optim__schedule="cosine"), tmp_path / "epochs")
    assert without_clock(tmp_path / "steps") == without_clock(tmp_path / "epochs")


def test_a_budget_of_minutes_is_settled_once(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many steps it has is measured in the first epoch, and a later life takes them as they are."""
    config = tiny(train__budget_min=1000.0, train__log_every=1, optim__schedule="one_cycle")
    totals = []
    for stop in (2, 6, 1):  # in the first epoch, in the third, and at once
        with monkeypatch.context() as patch:
            stop_when(patch, stop)
            with pytest.raises(Interrupted):
                train(config, tmp_path)
        totals.append(list_checkpoints(tmp_path / "checkpoints")[-1].state["total_steps"])
    assert totals[1] == totals[2] > 1000
    assert totals[0] > 1000
    for row in read_metrics(tmp_path)[1:]:
        assert row["lr"] == learning_rate(config.optim, int(row["step"]) - 1, totals[2])


def test_a_run_of_some_minutes_ends_by_itself(tiny: Tiny, tmp_path: Path) -> None:
    result = train(tiny(train__budget_min=0.03, optim__schedule="cosine", train__ema_decay=0.9), tmp_path)
    rows, state = read_metrics(tmp_path), list_checkpoints(tmp_path / "checkpoints")[-1].state
    assert rows[-1]["step"] == state["total_steps"]
    assert result.epochs == len(rows) == -(-state["total_steps"] // 4)
    assert {row["data/coverage"] for row in rows} == {1.0}


def test_a_budget_that_is_less_than_the_first_steps_ends_with_them(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(train__budget_min=1e-9, train__log_every=3), tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path)] == [3]
    with pytest.raises(ValueError, match=r"train.budget_min = 1.0: leave it out, or train.budget_steps"):
        tiny(train__budget_min=1.0, train__budget_steps=5)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_every_optimizer_goes_on_with_the_same_bits(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = tiny(
        model__arch="resnet34_unet", optim__name=name, optim__encoder_lr_factor=0.1, optim__grad_clip=1.0,
        train__log_every=1, train__loss="lovasz", train__border_weight=2.0,
    )  # fmt: skip
    train(config, tmp_path / "calm")
    with monkeypatch.context() as patch:
        stop_when(patch, 3)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped")
    assert same(final_weights(tmp_path / "calm"), final_weights(tmp_path / "stopped"))
    assert without_clock(tmp_path / "calm") == without_clock(tmp_path / "stopped")


def test_the_command_line(tiny: Tiny, tmp_path: Path, pet_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data.shards", str(pet_shards), "--data.image-size-px", "64", "--model.width", "4"]
    flags += ["--train.epochs", "1", "--train.batch-size", "16", "--train.no-test"]
    assert run_command(main, [*flags, "--out", str(tmp_path)]) == 0
    assert "best weights: epoch 1 of 1" in capsys.readouterr().out
    assert run_command(main, ["--data.shards", str(tmp_path / "none")]) == 2
    assert "pack one with `python -m shards.pack" in capsys.readouterr().err
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
def test_two_processes_train_one_model_and_see_each_picture_once(pet_shards: Path, tmp_path: Path) -> None:
    flags = ["--data.shards", str(pet_shards), "--data.image-size-px", "64", "--model.width", "4"]
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
