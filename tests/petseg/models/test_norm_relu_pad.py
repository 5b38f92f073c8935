"""BatchNorm, ReLU and padding in one operator: its numbers by Triton's interpreter, and its code for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from petseg.models.norm_relu_pad import composed, norm_relu_pad, why_composed

triton = pytest.importorskip("triton")
REPOSITORY = Path(__file__).parents[3]

POINTERS = {
    "moments_kernel": {"x": "*bf16", "means": "*fp32", "squares": "*fp32"},
    "pad_kernel": {"x": "*bf16", "residual": "*bf16", "channels": "*fp32", "padded": "*bf16"},
    "fold_kernel": {
        "grad": "*bf16", "x": "*bf16", "residual": "*bf16", "channels": "*fp32", "folded": "*bf16", "sums": "*fp32",
        "products": "*fp32",
    },
    "input_gradient_kernel": {
        "folded": "*bf16", "x": "*bf16", "channels": "*fp32", "means": "*fp32", "grad_x": "*bf16",
    },
}  # fmt: skip


@pytest.mark.slow
def test_numbers_and_gradients_are_those_of_the_layers() -> None:
    script = Path(__file__).with_name("interpreted_kernels.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("margin", [0, 1])
@pytest.mark.parametrize("name", POINTERS)
def test_a_kernel_compiles_for_a_gpu(name: str, margin: int) -> None:
    """For an H100, without one: the interpreter also runs what Triton's compiler refuses."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from petseg.models import norm_kernels

    kernel = getattr(norm_kernels, name)
    constants = {"MARGIN": margin, "HAS_RESIDUAL": True, "BLOCK_R": 64, "BLOCK_C": 64}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature = {key: POINTERS[name].get(key, "constexpr" if key in constants else "i32") for key in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert ".target sm_90" in compiled.asm["ptx"]


def test_without_triton_or_a_gpu_the_layers_run(monkeypatch: pytest.MonkeyPatch) -> None:
    x, norm = torch.randn(2, 3, 5, 5), nn.BatchNorm2d(3)
    assert why_composed(x, norm, 1) == "Triton needs a GPU"
    assert torch.equal(norm_relu_pad(x, norm, 1, x), composed(x, nn.BatchNorm2d(3), 1, x))
    monkeypatch.setattr("petseg.models.norm_relu_pad._can_run", lambda device_type: True)
    x = x.contiguous(memory_format=torch.channels_last)
    assert why_composed(x, norm, 1) is None
    for odd, reason in (
        (nn.SyncBatchNorm(3), "SyncBatchNorm"),
        (nn.BatchNorm2d(3).eval(), "training alone"),
        (nn.BatchNorm2d(3, momentum=None), "a momentum"),
    ):
        assert reason in str(why_composed(x, odd, 1))
    assert "no larger than its margin" in str(why_composed(x, norm, 5))
    assert "channels_last" in str(why_composed(x.contiguous(), norm, 1))
