"""How exact a GPU's arithmetic is: deterministic or quickest algorithms, TF32 or full float32."""

from __future__ import annotations

import os

import torch

from petseg.config import RunConfig


def set_arithmetic(config: RunConfig) -> None:
    """Set this process's GPU arithmetic as the config wants it; without a GPU there is nothing to set.

    Called before the GPU is used: cuBLAS reads its variable when it is loaded. A layer without a deterministic
    algorithm raises RuntimeError, with torch's name of it, when it runs.
    """
    if not torch.cuda.is_available():
        return
    train, augment = config.train, config.augment
    shapes_vary = augment.mode == "add" and augment.policy != "none"
    torch.backends.cudnn.benchmark = train.cudnn_benchmark and not train.deterministic and not shapes_vary
    torch.backends.cudnn.deterministic = train.deterministic
    torch.backends.cudnn.allow_tf32 = train.tf32
    if train.deterministic:
        # docs.nvidia.com/cuda/cublas: results are reproducible with a workspace of one of two sizes
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(train.deterministic)
    # it guards against reading such memory, at a kernel for each tensor
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
