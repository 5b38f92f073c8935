"""The doctor on training that is broken in each way that it looks for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jobs import doctor
from jobs.checks import setup, training
from jobs.checks.setup import Finding
from petseg.augment import batch, draws
from petseg.losses import LOSSES, cross_entropy
from petseg.optim.eager import Eager
from petseg.run_folder.layout import write_metrics
from petseg.training import interrupt
from shards.command.flags import parse

Doctor = Callable[..., dict[str, Finding]]


ONE_MODEL = ("--axis", "model.arch=unet", "--set", "train.mixed_precision=no")


def test_a_loss_with_the_wrong_sign(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It falls and falls; the masks say that it is not the right one."""
    monkeypatch.setattr(training, "FIT_STEPS", 4)
    monkeypatch.setitem(LOSSES, "ce", lambda logits, target: -cross_entropy(logits, target))
    finding = ask("overfit", *ONE_MODEL)["overfit"]
    assert finding.status == "FAIL"
    assert "unet, ce does not learn one batch: loss -" in finding.detail


def test_a_target_that_has_nothing_to_do_with_the_picture(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    from petseg.run import batches

    monkeypatch.setattr(training, "FIT_STEPS", 4)
    monkeypatch.setattr(batches, "to_classes", lambda labels, *_: torch.randint(0, 2, labels.shape))
    assert ask("overfit", *ONE_MODEL)["overfit"].status == "FAIL"


@pytest.mark.parametrize("rate", ["1e-7", "1e30"])
def test_a_learning_rate_that_is_out_of_range(ask: Doctor, monkeypatch: pytest.MonkeyPatch, rate: str) -> None:
    monkeypatch.setattr(training, "FIT_STEPS", 15)
    finding = ask("overfit", *ONE_MODEL, "--set", f"optim.lr={rate}")["overfit"]
    assert finding.status == "warn"
    assert finding.advice == f"is optim.lr = {float(rate):g} right?"


def moving_the_picture_only(before: Callable) -> Callable:
    return lambda draws, image, trimap, config: (before(draws, image, trimap, config)[0], trimap)


def blurring_the_mask(before: Callable) -> Callable:
    def apply(draws: object, image: torch.Tensor, trimap: torch.Tensor, config: object) -> tuple:
        image, trimap = before(draws, image, trimap, config)
        return image, nn.functional.avg_pool2d(trimap.float().unsqueeze(1), 3, 1, 1).squeeze(1) * 2

    return apply


def never_the_same(before: Callable) -> Callable:
    def apply(*args: object) -> tuple:
        image, trimap = before(*args)
        return image + torch.rand_like(image), trimap

    return apply


@pytest.mark.parametrize(
    ("broken", "detail"),
    [
        (moving_the_picture_only, "elastic: picture and mask agree on "),
        (blurring_the_mask, "elastic: the mask has values ["),
        (never_the_same, "elastic: two calls with the same seed, epoch and sample differ"),
        (lambda before: lambda draws, image, trimap, config: (image, trimap), "it leaves pictures as they are"),
    ],
)
def test_broken_augmentations(
    ask: Doctor, monkeypatch: pytest.MonkeyPatch, broken: Callable[[Callable], Callable], detail: str
) -> None:
    monkeypatch.setattr(batch, "apply", broken(batch.apply))
    finding = ask("transforms")["transforms"]
    assert finding.status == "FAIL"
    assert detail in finding.detail


def test_draws_that_do_not_depend_on_the_epoch(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = draws.draw
    monkeypatch.setattr(draws, "draw", lambda config, ids, seed, epoch, size: draw(config, ids, seed, 1, size))
    assert "all epochs have the same draws" in ask("transforms")["transforms"].detail
    monkeypatch.undo()
    assert ask("transforms", "--set", "augment.p=0")["transforms"].status == "warn"


def test_batchnorm_that_moves_in_evaluation(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "eval", lambda self: self)
    finding = ask("batchnorm", *ONE_MODEL)["batchnorm"]
    assert finding.status == "FAIL"
    assert "after 1 epochs of 3 micro-batches it has counted 4: evaluation moves it" in finding.detail


def test_batchnorm_that_stands_still_after_the_first_evaluation(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the lab's first code."""
    train = nn.Module.train
    monkeypatch.setattr(nn.Module, "train", lambda self, mode=True: self if mode else train(self, mode))
    finding = ask("batchnorm", *ONE_MODEL)["batchnorm"]
    assert "after 2 epochs of 3 micro-batches it has counted 3: training leaves it in evaluation mode" in finding.detail


def test_a_resume_without_the_optimizers_moments(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Eager, "load_state_dict", lambda self, state: None)
    finding = ask("resume", *ONE_MODEL)["resume"]
    assert finding.status == "FAIL"
    assert "it has another final model and final optimizer and metrics.jsonl" in finding.detail


def test_updates_of_many_batches_leave_points_at_which_a_run_can_stop(ask: Doctor) -> None:
    late = ("--set", "train.late_batches=50", "--set", "train.late_batches_from=0")
    finding = ask("resume", *ONE_MODEL, *late)["resume"]
    assert finding.status == "ok", finding
    assert re.search(r"stopped [12] times within 2 epochs, same weights bit for bit", finding.detail)


def test_a_run_that_does_not_listen(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = type("Deaf", (), {"requested": lambda: False, "requeue_requested": lambda: False})
    monkeypatch.setattr("petseg.training.epoch.interrupt", deaf)
    assert "ignores the signal to stop" in ask("resume", *ONE_MODEL)["resume"].detail
    assert interrupt.requested() is False


@pytest.mark.slow
def test_with_a_gpu_the_resume_is_tried_on_the_cpu(
    pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--set", f"data.shards={pet_shards}", "--set", f"data.cache_dir={tmp_path}", *ONE_MODEL]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    command = parse(doctor.Command, flags, None)
    finding = training.check_resume(setup.Setup(command, tmp_path, tuple(flags)))
    assert finding.status == "ok", finding


def test_runs_differ_by_values_and_by_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = ("step-00000001", "step-00000002")
    monkeypatch.setattr(
        training, "list_checkpoints", lambda path: [SimpleNamespace(folder=path / one) for one in steps]
    )
    both = {"a": torch.zeros(2), "b": torch.ones(1)}
    runs = {
        "calm": both,
        "same": {name: one.clone() for name, one in both.items()},
        "other value": both | {"b": torch.zeros(1)},
        "less": {"a": torch.zeros(2)},
        "more": both | {"c": torch.zeros(1)},
    }
    for name, tensors in runs.items():
        newest = tmp_path / name / "checkpoints" / steps[-1]
        newest.mkdir(parents=True)
        save_file(tensors, newest / "model.safetensors")
        save_file(both, newest / "optimizer.safetensors")
        write_metrics([{"epoch": 1, "val/dice": 0.5, "perf/seconds": len(name)}], tmp_path / name)
    found = {name: training._differences(tmp_path / "calm", tmp_path / name) for name in runs}
    assert found == {"calm": [], "same": [], **{key: ["final model"] for key in ("other value", "less", "more")}}
    write_metrics([{"epoch": 1, "val/dice": 0.6}], tmp_path / "same")
    assert training._differences(tmp_path / "calm", tmp_path / "same") == ["metrics.jsonl"]
