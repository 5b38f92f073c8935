"""Convolutions as matrix products, against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from petseg.models import layers
from petseg.models.layers import ReflectConv2d
from petseg.models.small_maps import MIN_CHANNELS, convolve_as_product, is_quicker_as_product


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_values_and_gradients_are_torchs(size: int, stride: int) -> None:
    torch.manual_seed(0)
    padded, weight = (random(2, 3, 9, 12).requires_grad_(), random(4, 3, size, size).requires_grad_())
    ours, theirs = convolve_as_product(padded, weight, stride), F.conv2d(padded, weight, stride=stride)
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    upstream = random(*theirs.shape)
    for a, b in zip(*(torch.autograd.grad(out, (padded, weight), upstream) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    """The first layer's input needs none, and neither does a frozen weight."""
    torch.manual_seed(0)
    for needs_input, needs_weight in ((True, False), (False, True)):
        padded, weight = random(2, 3, 5, 5).requires_grad_(needs_input), random(4, 3, 3, 3).requires_grad_(needs_weight)
        convolve_as_product(padded, weight, 1).sum().backward()
        assert (padded.grad is not None, weight.grad is not None) == (needs_input, needs_weight)


def test_which_convolutions_are_quicker_so() -> None:
    weight = torch.empty(256, 128, 3, 3).contiguous(memory_format=torch.channels_last)
    assert is_quicker_as_product(weight, 256)
    assert not is_quicker_as_product(weight, 257)
    assert not is_quicker_as_product(weight.contiguous(), 256)
    for shape in ((MIN_CHANNELS, MIN_CHANNELS - 1, 3, 3), (MIN_CHANNELS - 1, MIN_CHANNELS, 3, 3)):
        assert not is_quicker_as_product(torch.empty(shape).contiguous(memory_format=torch.channels_last), 1)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_layer_counts_its_output_pixels(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(layers, "is_quicker_as_product", lambda weight, pixels: bool(asked.append(pixels)))
    layer = ReflectConv2d(4, 8, 3, stride)
    out = layer(torch.zeros(2, 4, 7, 10))
    assert asked == [len(out) * out.shape[2] * out.shape[3]]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_layer_is_the_same_function_in_training_as_in_evaluation(stride: int, bf16: bool) -> None:
    """Evaluation convolves. In bf16 both are compared with float64, and neither is much further from it."""
    torch.manual_seed(0)
    layer = ReflectConv2d(128, 128, 3, stride).to(memory_format=torch.channels_last)
    x, exact = random(2, 128, 4, 4, dtype=torch.float32), copy.deepcopy(layer).double()
    results = []
    for module, image in ((layer.train(), x), (layer.eval(), x), (exact.eval(), x.double())):
        module.train(module is layer and not results)
        image = image.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and module is layer):
            out = module(image)
        assert ("Product" in type(out.grad_fn).__name__) == (not results)
        torch.manual_seed(1)
        module.zero_grad()
        out.backward(torch.randn(out.shape).to(out.dtype))
        assert image.grad is not None
        assert module.weight.grad is not None
        assert module.weight.grad.dtype == module.weight.dtype
        results.append([t.detach().double() for t in (out, image.grad, module.weight.grad)])
    for ours, theirs, truth in zip(*results, strict=True):
        if not bf16:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert (ours - truth).norm() <= max(1.5 * (theirs - truth).norm(), 1e-5 * truth.norm())


def test_a_layer_with_a_bias_convolves() -> None:
    layer = ReflectConv2d(128, 128, 3, bias=True).to(memory_format=torch.channels_last)
    nn.init.ones_(layer.bias)  # type: ignore[arg-type]
    nn.init.zeros_(layer.weight)
    assert torch.equal(layer(torch.zeros(1, 128, 4, 4)), torch.ones(1, 128, 4, 4))


@pytest.mark.slow
def test_a_compiled_layer_is_the_same() -> None:
    torch.manual_seed(0)
    layer = ReflectConv2d(128, 128, 3).to(memory_format=torch.channels_last)
    x = random(2, 128, 4, 4, dtype=torch.float32).requires_grad_()
    gradients = []
    for module in (layer, torch.compile(layer)):
        out = module(x)
        gradients.append(torch.autograd.grad(out.square().sum(), (x, layer.weight)))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
