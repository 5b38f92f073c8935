"""The averaged weights: a plain loop says what they are, and they are what is measured, kept and resumed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from petseg.config import RunConfig
from petseg.config.training import OptimConfig
from petseg.optim import build_optimizer
from petseg.optim.ema import Ema, warmed_up
from petseg.run_folder.checkpoint import Learner, list_checkpoints, newest_loadable, save_checkpoint
from petseg.run_folder.layout import load_result, read_metrics
from petseg.run_folder.restore import load_checkpoint
from petseg.training import interrupt
from petseg.training.loop import train
from shards.command import Failure, Interrupted
from tests.petseg.tensors import assert_same_tensors
from tests.petseg.test_processes import launch

Tiny = Callable[..., RunConfig]


def build() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return model.to(memory_format=torch.channels_last)


def moved(model: nn.Module, number: int) -> None:
    """Other weights and other statistics."""
    torch.manual_seed(100 + number)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else tensor + 1)


@settings(max_examples=25)
@given(st.sampled_from([0.5, 0.9, 0.999]), st.integers(1, 30))
def test_the_average_is_that_of_a_plain_loop(decay: float, steps: int) -> None:
    model = build()
    ema, expected = Ema(model), {k: v.double().numpy() for k, v in model.state_dict().items()}
    for t in range(steps):
        moved(model, t)
        ema.update(warmed_up(decay, t))
        d = min(decay, (1 + t) / (10 + t))
        new = model.state_dict()
        expected = {k: d * old + (1 - d) * new[k].double().numpy() for k, old in expected.items()}
    found = ema.state_dict(model)
    assert found.keys() == model.state_dict().keys()
    assert found.pop("1.num_batches_tracked").item() == steps  # a counter is the model's
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-4, atol=1e-6)


def test_the_first_averages_are_not_the_random_weights() -> None:
    model = build()
    ema, start = Ema(model), model[0].weight.detach().clone()
    moved(model, 0)
    ema.update(warmed_up(0.9999, 0))
    torch.testing.assert_close(ema.tensors["0.weight"], 0.1 * start + 0.9 * model[0].weight.detach())


def test_the_model_has_the_averages_meanwhile_and_its_own_afterwards() -> None:
    model = build()
    ema = Ema(model)
    moved(model, 0)
    ema.update(0.1)
    own, averages = ({k: v.clone() for k, v in d.items()} for d in (model.state_dict(), ema.state_dict(model)))

    def holds(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    with contextlib.suppress(KeyboardInterrupt), ema.in_place():
        assert holds(averages, model.state_dict())
        raise KeyboardInterrupt
    assert holds(own, model.state_dict())
    assert holds(averages, ema.state_dict(model))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_statistics_that_lie_elsewhere_are_still_the_models() -> None:
    """A resume, and the mean over the ranks, give the buffers new memory."""
    model = build()
    ema = Ema(model)
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    nn.utils.vector_to_parameters(torch.full((8,), 7.0), buffers)
    for t in range(200):
        ema.update(warmed_up(0.5, t))
    assert torch.equal(ema.tensors["1.running_var"], torch.full((4,), 7.0))
    with ema.in_place():
        assert model[1].running_var.tolist() == [7.0] * 4


def test_a_checkpoint_holds_both_and_names_its_damage(tmp_path: Path) -> None:
    model = build()
    optimizer, ema = build_optimizer(OptimConfig(name="adamw"), model), Ema(model)
    for t in range(3):
        moved(model, t)
        ema.update(warmed_up(0.9, t))
        save_checkpoint(tmp_path, t + 1, Learner(model, optimizer, ema), {"best": {"step": 0}})
    newest = list_checkpoints(tmp_path)[-1]
    names = ["model.safetensors", "optimizer.safetensors", "state.json", "training.safetensors"]
    assert sorted(path.name for path in newest.folder.iterdir()) == names
    other = build()
    restored = Ema(other)
    load_checkpoint(newest, Learner(other, build_optimizer(OptimConfig(name="adamw"), other), restored))
    assert_same_tensors(other.state_dict(), model.state_dict())
    assert_same_tensors(restored.tensors, ema.tensors)
    assert restored.tensors["0.weight"].is_contiguous(memory_format=torch.channels_last)
    os.truncate(newest.folder / "training.safetensors", 100)
    with pytest.raises(Failure, match=r"step-00000003/training\.safetensors is damaged"):
        load_checkpoint(newest, Learner(other, optimizer))
    found = newest_loadable(tmp_path)
    assert found is not None
    assert found.step == 2


def weights_of(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(folder / "checkpoints")[-1].folder / name)


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(folder)]


def test_a_resumed_run_ends_with_the_same_averages(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the averages are what is validated, kept as the best, and measured at the end."""
    config = tiny(train__ema_decay=0.9, train__log_every=1, optim__name="adamw", optim__schedule="one_cycle")
    calm = train(config, tmp_path / "calm")
    for stop in (3, 2):  # within the first epoch, within the second
        asked = iter(range(1, 100))
        with monkeypatch.context() as patch:
            patch.setattr(interrupt, "requested", lambda asked=asked, stop=stop: next(asked) == stop)
            with pytest.raises(Interrupted):
                train(config, tmp_path / "stopped")
    assert train(config, tmp_path / "stopped").metrics == calm.metrics
    for name in ("model.safetensors", "training.safetensors", "optimizer.safetensors"):
        assert_same_tensors(*(weights_of(tmp_path / folder, name) for folder in ("stopped", "calm")))
    assert rows_of(tmp_path / "calm") == rows_of(tmp_path / "stopped")
    assert calm.metrics["val/dice"] == max(row["val/dice"] for row in rows_of(tmp_path / "calm"))
    averages, own = (weights_of(tmp_path / "calm", name) for name in ("model.safetensors", "training.safetensors"))
    assert not torch.equal(averages["segmentation_head.weight"], own["segmentation_head.weight"])
    without = train(tiny(optim__name="adamw", optim__schedule="one_cycle"), tmp_path / "without")
    assert rows_of(tmp_path / "without")[0]["train/loss"] == rows_of(tmp_path / "calm")[0]["train/loss"]
    assert without.metrics["val/loss"] != calm.metrics["val/loss"]
    plain = weights_of(tmp_path / "without", "model.safetensors")
    assert own.keys() <= plain.keys()
    assert [name for name, tensor in own.items() if not torch.equal(plain[name], tensor)] == []  # training is as it was


def test_the_warm_up_counts_the_steps_of_the_run(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of an epoch or of an attempt."""
    decays: list[float] = []
    update = Ema.update
    monkeypatch.setattr(Ema, "update", lambda ema, decay: (decays.append(decay), update(ema, decay)))
    config = tiny(train__ema_decay=0.9, train__log_every=1)
    asked = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: next(asked) == 2)
        with pytest.raises(Interrupted):
            train(config, tmp_path)
    train(config, tmp_path)
    assert decays == [(1 + step) / (10 + step) for step in range(8)]  # two epochs of four steps


@pytest.mark.slow
def test_two_resumed_processes_end_with_the_same_averages(pet_shards: Path, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("calm", "stopped")}
    for folder in folders.values():
        folder.mkdir()
    flags = {"train.ema-decay": 0.9, "optim.name": "sgd", "train.border-weight": 2.0, "train.loss": "focal"}
    calm = launch(2, pet_shards, folders["calm"], **flags)
    assert calm.returncode == 0, calm.stderr
    stopped = launch(2, pet_shards, folders["stopped"], stop="SIGTERM:1:1:2", **flags)
    assert "saved up to epoch 0 and 3 steps" in stopped.stderr
    resumed = launch(2, pet_shards, folders["stopped"], **flags)
    assert resumed.returncode == 0, resumed.stderr
    runs = [folder / "run" for folder in folders.values()]
    for name in ("model.safetensors", "training.safetensors"):
        ours, theirs = (weights_of(run, name) for run in runs)
        apart = {k: (ours[k] - theirs[k]).abs().max().item() for k in theirs if not torch.equal(ours[k], theirs[k])}
        assert not apart, f"{name}\n{stopped.stderr}\n{resumed.stderr}"
    assert rows_of(runs[0]) == rows_of(runs[1])
    results = [load_result(run) for run in runs]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0].metrics == results[1].metrics
