"""The layers' way on a GPU, without one: the numbers on a CPU, and the operations of a step on meta tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from petseg.models import reflect
from petseg.models.resnet34_unet import ResNet34UNet
from petseg.models.unet import UNet
from petseg.models.upsample import interpolation_matrix, upsample_by_products

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def float_map(size: tuple[int, int], channels_last: bool, channels: int = 3) -> torch.Tensor:
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def run(function: Callable[..., Any], x: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """What a function of a map returns, and the map's gradient for a random gradient of the result."""
    leaf = x.clone().requires_grad_()
    out = function(leaf)
    out.backward(torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(seed)))
    assert leaf.grad is not None
    return out, leaf.grad


@given(SIZES, st.sampled_from([1, 2, 3]), st.booleans())
def test_padding_by_slices_is_torchs_padding_forward_and_backward(
    size: tuple[int, int], margin: int, channels_last: bool
) -> None:
    x, reflects = float_map(size, channels_last), min(size) > margin
    mode = "reflect" if reflects else "replicate"
    expected, expected_grad = run(lambda x: F.pad(x, (margin,) * 4, mode=mode), x)
    padded, grad = run(lambda x: reflect._ReflectPad.apply(x, margin, reflects), x)
    assert torch.equal(padded, expected)
    torch.testing.assert_close(grad, expected_grad, **EXACT)


@given(SIZES, st.sampled_from([1, 2, 3]))
def test_both_ways_of_folding_the_padding_agree(size: tuple[int, int], margin: int) -> None:
    grad, reflects = float_map((size[0] + 2 * margin, size[1] + 2 * margin), True), min(size) > margin
    folded = reflect.fold_by_slices(grad, margin, reflects)
    torch.testing.assert_close(reflect._fold_as_sum(grad, margin, reflects), folded, **EXACT)


@given(SIZES, st.booleans(), st.sampled_from([1, 4]))
def test_upsampling_by_products_is_torchs_interpolation_forward_and_backward(
    size: tuple[int, int], channels_last: bool, channels: int
) -> None:
    x = float_map(size, channels_last, channels)
    expected = run(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True), x)
    for ours, torchs in zip(run(upsample_by_products, x), expected, strict=True):
        torch.testing.assert_close(ours, torchs, **EXACT)


@pytest.mark.parametrize("channels_last", [True, False])
def test_padding_and_upsampling_keep_the_layout(channels_last: bool) -> None:
    x = float_map((5, 7), channels_last)
    for out in (reflect._ReflectPad.apply(x, 1, True), upsample_by_products(x)):
        assert out.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_interpolation_leaves_a_flat_map_as_it_is_in_every_precision(dtype: torch.dtype) -> None:
    """Rounding both weights of a row would make it brighter or darker by up to 0.4 % in bfloat16."""
    for size in (1, 2, 16, 33, 128):
        assert (interpolation_matrix(size, dtype, torch.device("cpu")).double().sum(1) == 1).all()


@pytest.mark.parametrize("margin", [1, 3])
def test_a_compiler_traces_padding_and_upsampling_whole(margin: int) -> None:
    def layers(x: torch.Tensor) -> torch.Tensor:
        return upsample_by_products(reflect._ReflectPad.apply(x, margin, True))

    compiled = torch.compile(layers, backend="aot_eager", fullgraph=True)
    x = float_map((6, 5), True)
    for ours, expected in zip(run(compiled, x), run(layers, x), strict=True):
        torch.testing.assert_close(ours, expected, **EXACT)


class SlowPaths(TorchDispatchMode):
    """Collects what a step on a GPU should not do: atomics, layers without channels_last, and copies of a layout.

    torch's shape functions of convolutions return NCHW on the device meta; cuDNN keeps channels_last, and so does this.
    """

    SLOW = ("reflection_pad", "replication_pad", "upsample_bilinear", "index_put", "index_add", "scatter")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        if func is torch.ops.aten.convolution.default and is_channels_last(args[0]):
            out = out.contiguous(memory_format=torch.channels_last)
        if func is torch.ops.aten.convolution_backward.default and out[0] is not None and is_channels_last(args[0]):
            out = (out[0].contiguous(memory_format=torch.channels_last), *out[1:])
        if func.is_view:
            return out
        self.launches += 1
        if any(slow in name for slow in self.SLOW):
            self.seen.append(name)
        if any(is_map(t) and not is_channels_last(t) for t in tree_leaves(out)):
            self.seen.append(f"{name} leaves channels_last")
        return out


def is_map(leaf: Any) -> bool:
    """Activations, not weights of convolutions: those have other batch sizes."""
    return isinstance(leaf, torch.Tensor) and leaf.ndim == 4 and len(leaf) == BATCH and min(leaf.shape[1:]) > 1


def is_channels_last(x: torch.Tensor) -> bool:
    """Also of a part of a map: its channels lie side by side."""
    return x.stride(1) == 1


BATCH = 7  # no width of a layer


def slow_paths(model: torch.nn.Module) -> SlowPaths:
    model = model.to("meta").to(memory_format=torch.channels_last).train()
    image = torch.empty(BATCH, 3, 64, 64, device="meta").contiguous(memory_format=torch.channels_last)
    with SlowPaths() as record:
        logits = model(image)
        # a loss's gradient comes in the layout of the logits
        logits.backward(torch.empty_like(logits))
    return record


@pytest.mark.parametrize("build", [lambda: UNet(width=16), lambda: ResNet34UNet(width=16)], ids=["unet", "resnet34"])
def test_a_step_on_a_gpu_has_no_slow_path(build: Callable[[], torch.nn.Module]) -> None:
    record = slow_paths(build())
    assert record.seen == []
    assert record.launches > 100  # it did record the step


def test_the_record_notices_torchs_own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petseg.models.layers.reflect_pad", lambda x, b: F.pad(x, (b,) * 4, mode="reflect"))
    monkeypatch.setattr(
        "petseg.models.layers.upsample_bilinear",
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    )
    seen = " ".join(slow_paths(UNet(width=16)).seen)
    assert "reflection_pad2d_backward" in seen
    assert "upsample_bilinear2d_backward" in seen
