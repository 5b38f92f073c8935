"""The GPUs of this machine, as far as a process may use them; asked without torch."""

from __future__ import annotations

import os
import subprocess


def visible_gpus() -> list[int]:
    """Indices of the GPUs that this process may use."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        words = [word.strip() for word in allowed.split(",") if word.strip()]
        if not all(word.isdecimal() for word in words):
            raise ValueError(f"CUDA_VISIBLE_DEVICES={allowed}: submitit takes indices only, such as 0,1")
        return [int(word) for word in words]
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return list(range(sum(line.startswith("GPU ") for line in done.stdout.splitlines())))
