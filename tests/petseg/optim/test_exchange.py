"""Gradients averaged after the backward pass: by value, in their layouts, and with one collective.

tests/petseg/test_processes.py compares two real processes with DDP.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from petseg.models.unet import UNet
from petseg.optim import exchange
from petseg.optim.exchange import GradientExchange


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = UNet(width=4).to(memory_format=torch.channels_last).train()
    model.unused = nn.Parameter(torch.ones(3))
    return model


def test_gradients_become_means_in_one_collective(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean is taken with the gradients of another process, which are 1 everywhere."""
    collectives = []

    def all_reduce(memory: torch.Tensor) -> None:
        collectives.append(memory.numel())
        memory += 1 / 2

    monkeypatch.setattr(exchange.dist, "all_reduce", all_reduce)
    exchanged = GradientExchange(model, world_size=2)
    for _ in range(2):
        model.zero_grad()
        model(torch.randn(2, 3, 32, 32)).mean().backward()
        own = {name: p.grad.clone(memory_format=torch.preserve_format) for name, p in used(model).items()}
        exchanged.average_gradients()
        for name, parameter in used(model).items():
            assert torch.equal(parameter.grad, own[name] / 2 + 1 / 2)
            assert parameter.grad.stride() == own[name].stride()
    assert model.unused.grad is None
    assert collectives == [sum(p.numel() for p in used(model).values())] * 2


def test_all_get_the_statistics_of_the_first(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange.dist, "broadcast", lambda memory, src: memory.fill_(7.0 + src))
    GradientExchange(model, world_size=2).send_statistics()
    for name, buffer in model.named_buffers():
        assert (buffer == (7.0 if buffer.is_floating_point() else 0)).all(), name


def test_a_model_without_statistics_sends_none() -> None:
    GradientExchange(nn.Conv2d(3, 4, 1), world_size=2).send_statistics()


def used(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if name != "unused"}
