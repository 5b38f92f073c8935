"""Training passes as graphs, with a stand-in for CUDA that repeats the work on the memory of the capture."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.models.unet import UNet
from petseg.run import graphs
from petseg.run.graphs import MAX_GRAPHS, WARM_UP_PASSES, PassGraphs, PassInputs, why_no_graphs
from petseg.run_folder.layout import read_metrics
from petseg.training.loop import train
from tests.petseg.tensors import assert_same_tensors

Tiny = Callable[..., RunConfig]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Repeater:
    """As torch.cuda.graph, what it returns reads and overwrites the memory of the capture."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.captures, self.forgotten = 0, 0

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        self.captures += 1
        adds = self.parameters[0].grad is not None
        assert all((p.grad is not None) == adds for p in self.parameters)
        result = work()
        gradients = [p.grad for p in self.parameters]

        def replay() -> None:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient if adds else None
            result.copy_(work())
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                gradient.copy_(parameter.grad)

        return replay, result

    def forget(self) -> None:
        self.forgotten += 1


class Refusal:
    """A capture that fails after gradients and statistics were touched."""

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")

    def forget(self) -> None:
        raise AssertionError


class Passes:
    """A model, its plain pass, and how often that ran."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = UNet(width=4).double()
        self.count = 0

    def plain(self, inputs: PassInputs) -> torch.Tensor:
        self.count += 1
        losses = self.model(inputs.image).mean(dim=(1, 2, 3))
        ((losses * inputs.weight).sum() * inputs.scale).backward()
        return torch.stack([losses.detach().sum()] * 4)

    def gradients(self) -> dict[str, torch.Tensor]:
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


def inputs_of(batch: int, seed: int = 0) -> PassInputs:
    draw = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, 32, 32, dtype=torch.float64, generator=draw)
    weight = torch.rand(batch, dtype=torch.float64, generator=draw)
    return PassInputs(image, torch.zeros(batch, 32, 32, dtype=torch.int64), weight, torch.tensor(1 / batch))


def test_each_pass_gives_what_the_plain_one_gives() -> None:
    """Sums, gradients and BatchNorm's statistics, over two shapes in turns, with gradients dropped between."""
    graphed, expected = Passes(), Passes()
    capture = Repeater(graphed.model)
    runner = PassGraphs(graphed.model, capture)
    for seed, batch in enumerate([4, 3, 4, 4, 3]):
        inputs = inputs_of(batch, seed)
        sums, plain_sums = runner.run(graphed.plain, inputs).clone(), expected.plain(inputs)
        assert torch.equal(sums, plain_sums)
        assert_same_tensors(graphed.gradients(), expected.gradients())
        assert_same_tensors(dict(graphed.model.named_buffers()), dict(expected.model.named_buffers()))
        for passes in (graphed, expected):
            passes.model.zero_grad()
    assert capture.captures == 2
    assert graphed.count == 2 * (WARM_UP_PASSES + 1) + 5  # the stand-in works when it records


@pytest.mark.parametrize("capture", ["always", "never", "first shape"])
def test_passes_of_a_step_add_up(capture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of three passes, shapes that come first in the middle of a step, and one that is not captured."""
    graphed, expected = Passes(), Passes()
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 1 if capture == "first shape" else 16)
    repeater = Repeater(graphed.model)
    runner = PassGraphs(graphed.model, Refusal() if capture == "never" else repeater, accumulates=True)
    for step, batches in enumerate([(4, 4, 3), (3, 4, 4), (3, 3, 2)]):
        for number, batch in enumerate(batches):
            inputs = inputs_of(batch, 10 * step + number)
            assert torch.equal(runner.run(graphed.plain, inputs), expected.plain(inputs))
        assert_same_tensors(graphed.gradients(), expected.gradients())
        assert_same_tensors(dict(graphed.model.named_buffers()), dict(expected.model.named_buffers()))
        for passes in (graphed, expected):
            passes.model.zero_grad()
    assert repeater.captures == {"always": 3, "never": 0, "first shape": 1}[capture]


def test_a_parameter_that_is_not_used_gets_no_gradient() -> None:
    passes = Passes()
    passes.model.unused = nn.Parameter(torch.ones(1))
    runner = PassGraphs(passes.model, UnusedAside(passes.model), accumulates=True)
    runner.run(passes.plain, inputs_of(2))
    assert passes.model.unused.grad is None
    assert passes.gradients()


class UnusedAside(Repeater):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.parameters = [p for p in self.parameters if p is not model.unused]


def test_graphs_of_another_way_are_captured_anew() -> None:
    passes = Passes()
    capture = Repeater(passes.model)
    runner = PassGraphs(passes.model, capture)
    for _ in range(2):
        runner.run(passes.plain, inputs_of(2))
        passes.model.zero_grad()
        runner.forget()
    assert (capture.captures, capture.forgotten) == (2, 2)


def test_a_pass_that_cannot_be_captured_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    graphed, expected = Passes(), Passes()

    runner = PassGraphs(graphed.model, Refusal())
    with caplog.at_level(logging.WARNING):
        for seed in range(2):
            inputs = inputs_of(4, seed)
            assert torch.equal(runner.run(graphed.plain, inputs), expected.plain(inputs))
    assert_same_tensors(graphed.gradients(), expected.gradients())
    assert_same_tensors(dict(graphed.model.named_buffers()), dict(expected.model.named_buffers()))
    message = "capturing (4, 3, 32, 32) failed: operation not permitted when stream is capturing"
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [message]


def test_shapes_beyond_the_limit_are_not_captured() -> None:
    passes = Passes()
    capture = Repeater(passes.model)
    runner = PassGraphs(passes.model, capture)
    for batch in range(1, MAX_GRAPHS + 4):
        runner.run(passes.plain, inputs_of(batch + 1))
        passes.model.zero_grad()
    assert capture.captures == MAX_GRAPHS
    assert runner.take_share() == pytest.approx(MAX_GRAPHS / (MAX_GRAPHS + 3))
    assert math.isnan(runner.take_share())  # no pass since


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_run_with_graphs_ends_with_the_same_weights(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation_steps: int
) -> None:
    """With a smaller last batch, progressive resizing, averages, clipping and augmentation."""
    config = tiny(
        train__start_size_px=32, train__ema_decay=0.9, optim__grad_clip=1.0,
        augment__policy="strong", train__accumulation_steps=accumulation_steps,
    )  # fmt: skip
    train(config, tmp_path / "plain")
    captures = []

    def with_stand_in(config: RunConfig, model: nn.Module, device: torch.device, world_size: int) -> PassGraphs:
        captures.append(Repeater(model))
        return PassGraphs(model, captures[-1], accumulates=accumulation_steps > 1)

    monkeypatch.setattr("petseg.run.run.build_pass_graphs", with_stand_in)
    train(config, tmp_path / "graphed")
    # two sizes, each with full batches and a last one of 3, which two passes share as 2 and 1
    assert captures[0].captures == (4 if accumulation_steps == 1 else 6)
    kept = [next((tmp_path / name).rglob("model.safetensors")) for name in ("plain", "graphed")]
    assert_same_tensors(*(load_file(path) for path in kept))
    plain, graphed = (read_metrics(tmp_path / name)[-1] for name in ("plain", "graphed"))
    for name in ("train/loss", "train/dice", "val/loss", "val/dice"):
        assert graphed[name] == plain[name]


@pytest.mark.parametrize(
    ("changes", "world_size", "reason"),
    [
        ({}, 1, None),
        ({"train.mixed_precision": "bf16", "train.compile": "always", "optim.name": "muon"}, 1, None),
        ({"augment.mode": "add"}, 1, None),  # without a policy there are no copies
        ({"augment.mode": "add", "augment.policy": "flip"}, 1, "augment.mode = add"),
        ({"train.cuda_graphs": False}, 1, "train.cuda_graphs is off"),
        ({"train.accumulation_steps": 2}, 1, None),
        ({"train.mixed_precision": "fp16"}, 1, "fp16"),
        ({"train.grad_checkpointing": True}, 1, "train.grad_checkpointing"),
        ({}, 2, None),
        ({"train.sync_batchnorm": True}, 2, "train.sync_batchnorm"),
        ({}, 4, "between nodes"),
    ],
)
def test_what_cannot_be_captured_is_named(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], world_size: int, reason: str | None
) -> None:
    """With two processes on each node."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(min(world_size, 2)))
    config = with_values(tiny(), changes)
    named = why_no_graphs(config, GPU, world_size)
    assert named is None if reason is None else reason in str(named)
    assert why_no_graphs(config, CPU, world_size)


def test_nothing_is_captured_without_a_gpu(tiny: Tiny) -> None:
    passes = Passes()
    runner = graphs.build_pass_graphs(tiny(), passes.model, CPU, 1)
    runner.run(passes.plain, inputs_of(2))
    assert passes.count == 1
