import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from petseg.config import ModelConfig
from petseg.config.training import OptimConfig
from petseg.footprint.operations import OpCounter
from petseg.models.build import build_model
from petseg.models.encoders import encoder_parameters
from petseg.optim import build_optimizer, learning_rate, set_learning_rate
from petseg.optim.muon import Muon, hidden_weights, orthogonal

SCHEDULES = ("constant", "cosine", "one_cycle", "poly")
OPTIMIZERS = ("adam", "adamw", "sgd", "muon")


def rates_of(total: int, **settings: object) -> list[float]:
    config = OptimConfig(lr=1.0, **settings)  # type: ignore[arg-type]
    return [learning_rate(config, step, total) for step in range(total)]


def test_rates_by_hand() -> None:
    assert rates_of(10) == [1.0] * 10
    cosine = rates_of(10, schedule="cosine", warmup=0.2)
    assert cosine[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert cosine[6] == pytest.approx(0.5)
    assert cosine[2:] == sorted(cosine[2:], reverse=True)
    assert 0 < cosine[9] < 0.05
    poly = rates_of(10, schedule="poly")
    assert poly[0] == 1.0
    assert poly[5] == pytest.approx(0.5**0.9)
    one_cycle = rates_of(20, schedule="one_cycle")  # 6 steps up, 14 down
    assert one_cycle[2] == pytest.approx((1 / 25 + 1) / 2)
    assert one_cycle[5] == one_cycle[6] == 1.0
    assert one_cycle[13] == pytest.approx(0.5)


settings_of_schedules = {
    "schedule": st.sampled_from(SCHEDULES),
    "warmup": st.sampled_from([0.0, 0.01, 0.1, 0.5]),
}


@given(total=st.integers(1, 3000), **settings_of_schedules)
def test_every_schedule_rises_once_reaches_its_peak_and_falls_to_zero(total: int, schedule: str, warmup: float) -> None:
    rates = rates_of(total, schedule=schedule, warmup=warmup)
    peak = rates.index(max(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == pytest.approx(1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    share = warmup or (0.3 if schedule == "one_cycle" else 0.0)
    assert peak + 1 == max(1, math.ceil(share * total))
    if schedule != "constant" and math.ceil(share * total) < total:
        beyond = learning_rate(OptimConfig(lr=1.0, schedule=schedule, warmup=warmup), total, total)  # type: ignore[arg-type]
        assert beyond == pytest.approx(0, abs=1e-12)


@given(total=st.integers(50, 3000), **settings_of_schedules)
def test_no_schedule_jumps(total: int, schedule: str, warmup: float) -> None:
    rates = rates_of(total, schedule=schedule, warmup=warmup)
    rise, fall = math.ceil((warmup or 0.3) * total), total - math.ceil(warmup * total)
    steepest_fall = (1 / fall) ** 0.9 if schedule == "poly" else math.pi / fall
    steepest = max(math.pi / 2 / rise, steepest_fall) * 1.5  # a cosine of one_cycle has less room than `fall`
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) <= steepest


def test_the_one_cycle_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    # its cycle ends with the last step, ours with the one after
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, 1001, final_div_factor=1e12)
    theirs = []
    for _ in range(1000):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates_of(1000, schedule="one_cycle") == pytest.approx(theirs, abs=0.007)


def layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
    )


def test_decoupled_decay_spares_vectors() -> None:
    for name, sizes in (("adamw", [3, 7]), ("muon", [1, 2, 7])):
        groups = build_optimizer(OptimConfig(name=name, weight_decay=0.1), layers()).param_groups  # type: ignore[arg-type]
        assert [len(g["params"]) for g in groups] == sizes
        assert [g["weight_decay"] for g in groups] == [0.1] * (len(sizes) - 1) + [0.0]
    linear = nn.Linear(3, 2)
    decayed, spared = build_optimizer(OptimConfig(name="adamw", weight_decay=0.1), linear).param_groups
    assert (decayed["params"], spared["params"]) == ([linear.weight], [linear.bias])
    for name in ("adam", "sgd"):
        (group,) = build_optimizer(OptimConfig(name=name, weight_decay=0.1), layers()).param_groups  # type: ignore[arg-type]
        assert group["weight_decay"] == 0.1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_encoder_has_a_rate_of_its_own(name: str) -> None:
    model = build_model(ModelConfig(arch="resnet34_unet", width=4))
    optimizer = build_optimizer(OptimConfig(name=name, encoder_lr_factor=0.1), model)  # type: ignore[arg-type]
    set_learning_rate(optimizer, 0.5)
    encoder = {id(p) for p in encoder_parameters(model)}
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate) == len(list(model.parameters())) == sum(len(g["params"]) for g in optimizer.param_groups)
    assert all(r == pytest.approx(0.05 if i in encoder else 0.5) for i, r in rate.items())
    with pytest.raises(ValueError, match=r"optim.encoder_lr_factor = 0.1: this model.arch has no encoder apart"):
        build_optimizer(OptimConfig(encoder_lr_factor=0.1), build_model(ModelConfig(width=4)))


def give_gradients(model: nn.Module, number: int) -> None:
    """Every model of a kind gets equal gradients, in the parameters' memory format, as autograd does."""
    torch.manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape))


def torchs(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """Build torch's own optimizer, which loops over the parameters one by one."""
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), 1e-2, 0.9, weight_decay=0.1, nesterov=True, foreach=False)
    if name == "adam":
        return torch.optim.Adam(model.parameters(), 1e-2, weight_decay=0.1, foreach=False)
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, 1e-2, foreach=False)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_is_torchs_own_loop(name: str) -> None:
    """Fused kernels take memory as it lies: here that is NHWC. muon is AdamW to what is not hidden."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(width=4)).to(memory_format=torch.channels_last)
    other = copy.deepcopy(model)
    ours = build_optimizer(OptimConfig(name=name, lr=1e-2, weight_decay=0.1), model)  # type: ignore[arg-type]
    theirs = torchs(name, other)
    for number in range(3):
        for one, optimizer in ((model, ours), (other, theirs)):
            give_gradients(one, number)
            optimizer.step()
    hidden = {id(p) for p in hidden_weights(model)} if name == "muon" else set()
    assert len(hidden) == (17 if name == "muon" else 0)
    assert {id(p) for group in ours.param_groups if group.get("muon") for p in group["params"]} == hidden
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        if id(a) not in hidden:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        else:
            assert not torch.allclose(a, b, rtol=1e-2)


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (4, 16, 3, 3), (64, 4, 2, 2), (16, 16)])
def test_muon_is_torchs_on_matrices(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape)
    weight = nn.Parameter(start.clone(memory_format=torch.channels_last if len(shape) == 4 else torch.preserve_format))
    matrix = nn.Parameter(start.flatten(1).clone())
    ours = Muon([{"params": [weight], "weight_decay": 0.1, "muon": True}], 1e-2, fused=False)
    theirs = torch.optim.Muon([matrix], 1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(shape)
        weight.grad, matrix.grad = torch.empty_like(weight).copy_(gradient), gradient.flatten(1)
        ours.step()
        theirs.step()
    update = (matrix - start.flatten(1)).square().mean().sqrt().item()
    torch.testing.assert_close(weight.flatten(1), matrix, rtol=0, atol=0.1 * update)  # theirs is in bfloat16


def test_muons_operations_grow_with_the_shapes_and_not_with_the_layers() -> None:
    """Six layers of two shapes: the same updates as each alone, in as many operations as two layers."""
    torch.manual_seed(0)
    starts = [torch.randn(8, 4, 3, 3) for _ in range(3)] + [torch.randn(4, 8, 3, 3) for _ in range(3)]
    gradients = [torch.randn_like(start) for start in starts]
    stepped: dict[str, list[nn.Parameter]] = {}
    counts: dict[str, int] = {}
    for name, chosen in (("all", range(6)), ("first", (0, 3)), ("second", (1, 4)), ("third", (2, 5))):
        weights = [nn.Parameter(starts[i].clone(memory_format=torch.channels_last)) for i in chosen]
        optimizer = Muon([{"params": weights, "weight_decay": 0.1, "muon": True}], 1e-2, fused=False)
        for _ in range(2):
            for weight, i in zip(weights, chosen, strict=True):
                weight.grad = gradients[i].clone(memory_format=torch.channels_last)
            with OpCounter() as counter:
                optimizer.step()
        stepped[name], counts[name] = weights, len(counter.ops)
    assert counts["all"] == counts["first"]
    alone = [stepped[name][kind] for kind in (0, 1) for name in ("first", "second", "third")]
    for a, b in zip(stepped["all"], alone, strict=True):
        torch.testing.assert_close(a, b)


def test_muon_steps_the_right_numbers_in_any_layout() -> None:
    """Weights and gradients may lie in memory in different orders."""
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    stepped = []
    for layouts in itertools.product((torch.contiguous_format, torch.channels_last), repeat=2):
        weight = nn.Parameter(start.clone(memory_format=layouts[0]))
        weight.grad = gradient.clone(memory_format=layouts[1])
        Muon([{"params": [weight], "muon": True}], 1e-2, fused=False).step()
        stepped.append(weight)
    for other in stepped[1:]:
        torch.testing.assert_close(other, stepped[0])


@pytest.mark.parametrize("shape", [(8, 8), (4, 36), (64, 9)])
def test_an_orthogonal_update_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.T @ orthogonal(torch.stack([torch.ones(shape), matrix]))[1] @ right.T
    kept = values > 0.1 * values[0]
    assert ((found.diagonal()[kept] > 0.6) & (found.diagonal()[kept] < 1.3)).all()
    torch.testing.assert_close(found - found.diagonal().diag(), torch.zeros_like(found), atol=1e-4, rtol=0)


def test_muon_updates_all_layers_but_the_first_and_the_last() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2),
        nn.Linear(4, 4), nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    model[4].bias.requires_grad_(False)
    assert [p.shape for p in hidden_weights(model)] == [model[3].weight.shape, model[4].weight.shape]
    optimizer = build_optimizer(OptimConfig(name="muon"), model)
    assert isinstance(optimizer, Muon)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_weight_that_stands_still(name: str) -> None:
    """encoder_lr_factor 0: neither the gradient nor the decay moves it."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(arch="resnet34_unet", width=4))
    before = [p.detach().clone() for p in encoder_parameters(model)]
    optimizer = build_optimizer(OptimConfig(name=name, weight_decay=0.1, encoder_lr_factor=0.0), model)  # type: ignore[arg-type]
    set_learning_rate(optimizer, 1e-2)
    for number in range(2):
        give_gradients(model, number)
        optimizer.step()
    assert len(before) == len(list(model.encoder.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, encoder_parameters(model), strict=True))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_weights_in_channels_last_are_stepped_without_copies(name: str) -> None:
    """To the bits of torch's own kernel, which copies them."""
    torchs_own = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    stepped, copied = [], []
    for ours in (True, False):
        torch.manual_seed(0)
        model = build_model(ModelConfig(width=4)).to(memory_format=torch.channels_last)
        config = OptimConfig(name=name, lr=1e-2)  # type: ignore[arg-type]
        optimizer = (
            build_optimizer(config, model)
            if ours
            else torchs_own(model.parameters(), 1e-2, weight_decay=0.0, fused=True)
        )
        for number in range(3):
            give_gradients(model, number)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                optimizer.step()
        copied.append(any(event.name == "aten::clone" for event in profile.events() or ()))
        stepped.append(list(model.parameters()))
    assert copied == [False, True]
    for a, b in zip(*stepped, strict=True):
        assert torch.equal(a, b)
