"""What each parameter group is stepped with: its rate, its decay and its momentum, also where an encoder is apart."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from petseg.config import ModelConfig
from petseg.config.training import OptimConfig
from petseg.models.build import build_model
from petseg.models.encoders import encoder_parameters
from petseg.optim import build_optimizer, learning_rate, set_learning_rate
from petseg.optim.eager import SGD
from petseg.optim.ema import Ema, warmed_up
from petseg.optim.exchange import GradientExchange
from petseg.optim.muon import Muon, hidden_weights


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 2, 1))


def built(name: str, model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    return build_optimizer(OptimConfig(name=name, lr=0.01, **settings), model)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_encoder_apart_keeps_the_decay_of_its_weights_and_vectors(name: str) -> None:
    model = build_model(ModelConfig(arch="resnet34_unet", width=4))
    encoder, hidden = ({id(p) for p in some} for some in (encoder_parameters(model), hidden_weights(model)))
    groups = built(name, model, weight_decay=0.1, encoder_lr_factor=0.25).param_groups
    assert len(groups) == (4 if name == "adamw" else 6)
    for group in groups:
        for parameter in group["params"]:
            assert group["lr_factor"] == (0.25 if id(parameter) in encoder else 1.0)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
            if name == "muon":
                assert group["muon"] == (id(parameter) in hidden)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, True)])
def test_sgd_has_nesterovs_momentum_where_it_has_any(momentum: float, nesterov: bool) -> None:
    (group,) = built("sgd", layers(), momentum=momentum, weight_decay=0.1).param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.01, momentum, nesterov, 0.1)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_steps_are_fused_and_begin_with_the_configs_rate(name: str) -> None:
    for group in built(name, layers()).param_groups:
        assert (group["lr"], group["fused"]) == (0.01, True)
        assert group.get("betas", (0.9, 0.999)) == (0.9, 0.999)
        assert group.get("eps", 1e-8) == 1e-8


def test_a_rate_is_set_in_each_group_times_its_factor() -> None:
    factors: list[dict[str, float]] = [{"lr_factor": 0.5}, {}, {"lr_factor": 0.0}]
    optimizer = SGD([{"params": [nn.Parameter(torch.ones(2))], **factor} for factor in factors], lr=1.0)
    set_learning_rate(optimizer, 0.2)
    set_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1, 0.0]


@pytest.mark.parametrize(
    ("schedule", "warmup", "rates"),
    [
        ("constant", 0.0, [2, 2, 2, 2, 2]),
        ("constant", 0.4, [1, 2, 2, 2, 2]),
        ("constant", 0.41, [2 / 3, 4 / 3, 2, 2, 2]),  # a part of a step is one
        ("poly", 0.2, [2, 2, 2 * 0.75**0.9, 2 * 0.5**0.9, 2 * 0.25**0.9]),
        ("cosine", 0.2, [2, 2, 1 + math.cos(math.pi / 4), 1, 1 - math.cos(math.pi / 4)]),
        ("one_cycle", 0.0, [1.04, 2, 2, 1.5, 0.5]),
        ("one_cycle", 0.2, [2, 2, 1 + math.cos(math.pi / 4), 1, 1 - math.cos(math.pi / 4)]),
    ],
)
def test_rates_of_five_steps(schedule: str, warmup: float, rates: list[float]) -> None:
    config = OptimConfig(lr=2.0, schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    assert [learning_rate(config, step, 5) for step in range(5)] == pytest.approx(rates)


def test_a_run_of_one_step_has_the_whole_rate() -> None:
    for schedule in ("constant", "poly", "cosine", "one_cycle"):
        assert learning_rate(OptimConfig(lr=2.0, schedule=schedule), 0, 1) == 2.0  # type: ignore[arg-type]


def test_weights_without_a_gradient_stand_still() -> None:
    """Those of a layer that a pass did not use; they have no state either."""
    for name in ("adam", "adamw", "sgd", "muon"):
        model = layers()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = built(name, model, weight_decay=0.5)
        for parameter in list(model.parameters())[::2]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
        assert moved == [i % 2 == 0 for i in range(len(before))], name
        assert set(optimizer.state) <= set(list(model.parameters())[::2])


def test_muon_decays_by_the_rate_apart_from_its_update() -> None:
    weight = nn.Parameter(torch.full((4, 6), 8.0))
    optimizer = Muon([{"params": [weight], "weight_decay": 0.5, "muon": True}], 0.25, fused=False)
    weight.grad = torch.zeros(4, 6)
    optimizer.step()
    assert weight.tolist() == [[7.0] * 6] * 4  # 8 (1 - 0.25 x 0.5), and no update
    optimizer.step()
    assert weight.tolist() == [[6.125] * 6] * 4


@pytest.mark.parametrize("shape", [(4, 16), (16, 4), (8, 2, 3, 3)])
def test_an_update_of_muon_is_as_large_as_one_of_adam(shape: tuple[int, ...]) -> None:
    """0.2 of a weight, by root mean square, times the rate: 0.2 sqrt(longer side) of a matrix of singular values 1."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape)
    Muon([{"params": [weight], "muon": True}], 0.01, fused=False).step()
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.15)
    assert (weight.detach() * weight.grad).sum() < 0


def test_muon_remembers_gradients_with_a_momentum_of_19_in_20() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    optimizer = Muon([{"params": [weight], "muon": True}], 0.01, fused=False)
    for gradient in (1.0, 3.0):
        weight.grad = torch.full((2, 3), gradient)
        optimizer.step()
    momentum = optimizer.state[weight]["momentum_buffer"].flatten().tolist()
    assert momentum == pytest.approx([0.05 * 0.95 + 0.15] * 6)
    with pytest.raises(AssertionError, match="nobody here evaluates the model again"):
        optimizer.step(lambda: 0.0)


def test_an_average_keeps_what_a_checkpoint_lacks() -> None:
    model = nn.BatchNorm2d(2)
    ema = Ema(model)
    ema.load({"weight": torch.tensor([3.0, 4.0]), "unknown": torch.ones(1)})
    assert {name: tensor.tolist() for name, tensor in ema.tensors.items()} == {
        "weight": [3.0, 4.0], "bias": [0.0, 0.0], "running_mean": [0.0, 0.0], "running_var": [1.0, 1.0],
    }  # fmt: skip
    assert model.weight.tolist() == [1.0, 1.0]
    ema.buffers()[1].fill_(7.0)
    assert ema.tensors["running_var"].tolist() == [7.0, 7.0]
    assert len(ema.buffers()) == 2


def test_the_decay_grows_to_what_was_asked_for() -> None:
    assert [warmed_up(0.99, step) for step in (0, 8, 890, 891, 10**6)] == pytest.approx([0.1, 0.5, 0.99, 0.99, 0.99])
    assert warmed_up(0.99, 889) == 890 / 899 < 0.99


def test_statistics_are_those_of_the_first_process_even_where_others_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent is what the first process has, tensor by tensor."""
    sent: list[tuple[list[float], int]] = []
    monkeypatch.setattr(
        "petseg.optim.exchange.dist.broadcast", lambda memory, src: sent.append((memory.tolist(), src)) or memory.neg_()
    )
    model = nn.BatchNorm2d(2)
    model.running_mean.copy_(torch.tensor([1.0, 2.0]))
    model.running_var.copy_(torch.tensor([3.0, 4.0]))
    GradientExchange(model, world_size=4).send_statistics()
    assert sent == [([1.0, 2.0, 3.0, 4.0], 0)]
    assert (model.running_mean.tolist(), model.running_var.tolist()) == ([-1.0, -2.0], [-3.0, -4.0])


def test_gradients_of_frozen_weights_are_not_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layers()
    model[2].requires_grad_(False)
    exchanged: list[int] = []
    monkeypatch.setattr("petseg.optim.exchange.dist.all_reduce", lambda memory: exchanged.append(memory.numel()))
    exchange = GradientExchange(model, world_size=4)
    for size in (8.0, 16.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, size)
        exchange.average_gradients()
        assert {p.grad.mean().item() for p in model.parameters() if p.requires_grad} == {size / 4}
        assert {p.grad.mean().item() for p in model[2].parameters()} == {size}
    model[0].bias.grad = None  # other gradients than before: the memory is laid out anew
    exchange.average_gradients()
    whole = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert exchanged == [whole, whole, whole - 4]
    assert model[0].bias.grad is None
