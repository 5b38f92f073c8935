"""What a step follows: the gradient of the mean of its samples' losses, however they are cut into passes and ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from petseg.config import RunConfig
from petseg.data.store import open_store
from petseg.run import parts
from petseg.run.batches import batches_at, eval_inputs
from petseg.run.parts import build_parts
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.training.loop import train
from tests.petseg.normless import build_normless
from tests.petseg.test_processes import launch

Weights = dict[str, torch.Tensor]
TRAIN, RATE = 27, 0.2  # pictures of the train split


@pytest.fixture
def step(tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """Configs of one step of plain SGD over the whole train split, or of several; of models without BatchNorm."""
    monkeypatch.setattr(parts, "build_model", build_normless)
    plain = {"optim__name": "sgd", "optim__momentum": 0.0, "optim__lr": RATE, "train__epochs": 1}
    return lambda **changes: tiny(**{"train__batch_size": 30, **plain, **changes})


def trained(config: RunConfig, folder: Path) -> Weights:
    train(config, folder)
    return weights_of(folder)


def weights_of(folder: Path) -> Weights:
    return load_file(list_checkpoints(folder / "checkpoints")[-1].folder / "model.safetensors")


def by_hand(config: RunConfig, folder: Path, views: Sequence[Callable[[torch.Tensor], torch.Tensor]]) -> Weights:
    """The weights after one step along the gradient of the mean, sample by sample and in double precision.

    views: of each picture and its mask, which count alike
    """
    built = build_parts(config, open_store(config.data.shards), folder, splits=["train"])
    model = built.bare_model.double()
    for batch in batches_at(built, "train", range(TRAIN)):
        image, target = eval_inputs(built, batch)
        for view in views:
            (built.loss(model(view(image.double())), view(target)).sum() / (TRAIN * len(views))).backward()
    built.close()
    named = dict(model.named_parameters())
    return {name: (p - RATE * p.grad).detach().float() for name, p in named.items() if p.grad is not None}


def as_it_is(pixels: torch.Tensor) -> torch.Tensor:
    return pixels


def mirrored(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.flip(-1)


def assert_close(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("passes", [1, 2, 5])
@pytest.mark.parametrize("loss", ["ce", "ce_dice"])
def test_a_step_follows_the_mean_of_its_samples(
    step: Callable[..., RunConfig], tmp_path: Path, passes: int, loss: str
) -> None:
    """27 samples in 2 or 5 passes: unequal ones."""
    config = step(train__loss=loss, train__accumulation_steps=passes)
    assert_close(trained(config, tmp_path / "trained"), by_hand(config, tmp_path / "by_hand", [as_it_is]))


def test_a_smaller_last_batch_is_a_step_of_its_own_mean(step: Callable[..., RunConfig], tmp_path: Path) -> None:
    """8, 8, 8 and 3 samples, cut into passes of 4 and of 2 and 1."""
    whole = trained(step(train__batch_size=8), tmp_path / "whole")
    assert_close(trained(step(train__batch_size=8, train__accumulation_steps=2), tmp_path / "halves"), whole)


def test_a_copy_shares_its_samples_weight(step: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Each picture and its mirror image."""
    config = step(augment__policy="flip", augment__p=1.0, augment__mode="add", train__accumulation_steps=2)
    assert_close(trained(config, tmp_path / "trained"), by_hand(config, tmp_path / "by_hand", [as_it_is, mirrored]))


def moved(before: Weights, after: Weights) -> torch.Tensor:
    """The step in all weights together, as one vector."""
    return torch.cat([(after[name] - before[name]).double().flatten() for name in sorted(before)])


def test_a_long_gradient_is_clipped_to_its_limit_and_keeps_its_direction(
    step: Callable[..., RunConfig], tmp_path: Path
) -> None:
    limit = 0.01
    start = trained(step(optim__lr=1e-30), tmp_path / "start")  # a step too small for float32
    free, clipped = (
        moved(start, trained(step(optim__grad_clip=clip), tmp_path / f"clip-{clip}")) for clip in (0.0, limit)
    )
    assert free.norm() > 5 * RATE * limit
    torch.testing.assert_close(clipped, free * (RATE * limit / free.norm()), rtol=2e-3, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "late_batches"), [(2, 1), (3, 1), (2, 2)])
def test_ranks_follow_the_mean_over_all_of_them(
    step: Callable[..., RunConfig],
    pet_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    late_batches: int,
) -> None:
    """Steps of 8, 8, 8 and 3 samples, which neither 2 nor 3 ranks share evenly, against one process."""
    monkeypatch.setenv("NO_NORMS", "1")
    flags = {"optim.name": "sgd", "optim.momentum": 0.0, "optim.lr": RATE, "train.epochs": 1}
    done = launch(processes, pet_shards, tmp_path, **flags, **{"train.late-batches": late_batches})
    assert done.returncode == 0, done.stderr
    one = step(train__batch_size=8, data__shuffle_window_shards=1, train__late_batches=late_batches)
    assert_close(weights_of(tmp_path / "run"), trained(one, tmp_path / "one"))
