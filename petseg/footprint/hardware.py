"""What GPUs can do at best, by the name that their driver gives them."""

from __future__ import annotations

from dataclasses import dataclass

CPU = "cpu"  # what the name of a device begins with that is no GPU


@dataclass(frozen=True)
class Gpu:
    """NVIDIA's data sheets: dense, without sparsity, at boost clocks."""

    name: str  # words that its driver's name holds, in any case
    half_tflops: float  # bfloat16 with float32 sums (float16 where there is no bfloat16)
    full_tflops: float  # TensorFloat-32, in which torch computes float32 convolutions (float32 where there is none)
    bandwidth_tb_s: float
    memory_gb: float


# of several that fit, the first counts
GPUS = (
    Gpu("B200", 2250, 1125, 8.0, 180),
    Gpu("GH200", 989, 494, 4.0, 96),
    Gpu("H200", 989, 494, 4.8, 141),
    Gpu("H100 NVL", 835, 417, 3.9, 94),
    Gpu("H100 PCIe", 756, 378, 2.0, 80),
    Gpu("H100", 989, 494, 3.35, 80),
    Gpu("A100 SXM4 40GB", 312, 156, 1.555, 40),
    Gpu("A100 PCIE 40GB", 312, 156, 1.555, 40),
    Gpu("A100 80GB PCIe", 312, 156, 1.935, 80),
    Gpu("A100", 312, 156, 2.039, 80),
    Gpu("L40S", 362, 183, 0.864, 48),
    Gpu("L40", 181, 90.5, 0.864, 48),
    Gpu("L4", 121, 60, 0.3, 24),
    Gpu("A40", 149.7, 74.8, 0.696, 48),
    Gpu("A30", 165, 82, 0.933, 24),
    Gpu("A10", 125, 62.5, 0.6, 24),
    Gpu("RTX 6000 Ada", 364, 182, 0.96, 48),
    Gpu("RTX A6000", 154.8, 77.4, 0.768, 48),
    Gpu("RTX 4090", 165, 82.6, 1.008, 24),
    Gpu("RTX 3090", 71, 35.6, 0.936, 24),
    Gpu("V100 32GB", 125, 15.7, 0.9, 32),
    Gpu("V100", 125, 15.7, 0.9, 16),
    Gpu("T4", 65, 8.1, 0.32, 16),
)


def find_gpu(name: str) -> Gpu | None:
    """The GPU of a driver's name such as "NVIDIA H100 80GB HBM3"; None for a part of one (MIG) and unknown ones."""
    words = name.upper().replace("-", " ").split()
    if "MIG" in words:
        return None
    return next((gpu for gpu in GPUS if set(gpu.name.upper().split()) <= set(words)), None)
