"""The kernels of petseg.models.norm_relu_pad on CPU tensors, by Triton's interpreter: run with TRITON_INTERPRET=1."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn

from petseg.models.norm_relu_pad import composed, norm_relu_pad, why_composed

SIZES = [(2, 3, 4, 5), (3, 70, 5, 4), (1, 8, 11, 13)]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


def norm_of(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, momentum=0.3)
    with torch.no_grad():
        norm.weight.uniform_(-1.5, 1.5)
        norm.bias.uniform_(-1, 1)
    return norm


def random_map(size: tuple[int, ...], dtype: torch.dtype, offset: float = 0.0) -> torch.Tensor:
    return (torch.randn(size) + offset).to(dtype).contiguous(memory_format=torch.channels_last)


def close(ours: torch.Tensor | None, expected: torch.Tensor | None, tolerance: float) -> None:
    assert ours is not None
    assert expected is not None
    scale = expected.abs().max().item() + 1e-6
    assert (ours.double() - expected.double()).abs().max().item() <= tolerance * scale


def compare(size: tuple[int, ...], margin: int, with_residual: bool, dtype: torch.dtype) -> None:
    """Result, gradients and running statistics, in two steps, beside the layers in float64."""
    ours, expected = norm_of(size[1]), nn.BatchNorm2d(size[1])
    expected = copy.deepcopy(ours).double()
    for _ in range(2):
        x = random_map(size, dtype, offset=5.0).requires_grad_()
        residual = random_map(size, dtype).requires_grad_() if with_residual else None
        exact_x = x.detach().double().requires_grad_()
        exact_residual = None if residual is None else residual.detach().double().requires_grad_()
        assert why_composed(x, ours, margin) is None
        out = norm_relu_pad(x, ours, margin, residual)
        exact = composed(exact_x, expected, margin, exact_residual)
        assert out.dtype == dtype
        assert out.is_contiguous(memory_format=torch.channels_last)
        close(out, exact, TOLERANCE[dtype])
        grad = random_map(tuple(out.shape), dtype)
        out.backward(grad)
        exact.backward(grad.double())
        close(x.grad, exact_x.grad, 2 * TOLERANCE[dtype])
        if residual is not None and exact_residual is not None:
            close(residual.grad, exact_residual.grad, TOLERANCE[dtype])
        for name in ("weight", "bias"):
            close(getattr(ours, name).grad, getattr(expected, name).grad, TOLERANCE[dtype])
        for name in ("running_mean", "running_var"):
            close(getattr(ours, name), getattr(expected, name), 1e-6)
        assert ours.num_batches_tracked == expected.num_batches_tracked


def compiled_and_checked() -> None:
    """A compiler traces the operator whole, and torch's own check of operators finds nothing."""
    norm, x = norm_of(4), random_map((2, 4, 4, 5), torch.float32).requires_grad_()
    twin, twin_x = copy.deepcopy(norm), x.detach().clone().requires_grad_()
    traced = torch.compile(norm_relu_pad, backend="aot_eager", fullgraph=True)
    ours, expected = traced(x, norm, 1), norm_relu_pad(twin_x, twin, 1)
    assert torch.equal(ours, expected)
    ours.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(x.grad, twin_x.grad)
    assert torch.equal(norm.running_var, twin.running_var)
    affine = torch.ones(2, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.petseg.norm_relu_pad, (x.detach().requires_grad_(), None, affine, 1e-5, 1))


def nan_stays() -> None:
    x = random_map((2, 3, 4, 4), torch.float32)
    x[0, 1, 2, 2] = torch.nan
    out = norm_relu_pad(x, norm_of(3), 1)
    assert out[:, 1].isnan().all()
    assert not out[:, [0, 2]].isnan().any()


def main() -> None:
    torch.manual_seed(0)
    for size, margin, with_residual in itertools.product(SIZES, (0, 1, 3), (False, True)):
        compare(size, margin, with_residual, torch.float32)
    for with_residual in (False, True):
        compare(SIZES[2], 1, with_residual, torch.bfloat16)
    compiled_and_checked()
    nan_stays()


if __name__ == "__main__":
    main()
