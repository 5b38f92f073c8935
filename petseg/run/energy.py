"""The energy that a GPU uses, from its driver's counter (NVML, Volta and newer); NaN where there is none."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)


class EnergyMeter:
    """The energy that one GPU has used since `start`, whatever ran on it."""

    def __init__(self, read_j: Callable[[], float]) -> None:
        """read_j: reads the counter, in joules"""
        self._read_j, self._start_j = read_j, math.nan

    def start(self) -> None:
        self._start_j = self._read_j()

    def joules(self) -> float:
        return self._read_j() - self._start_j


def open_meter(device: torch.device) -> EnergyMeter:
    """The meter of a CUDA device; it reads NaN for other devices, for a part of a GPU (MIG), and without NVML."""
    if device.type != "cuda":
        return EnergyMeter(lambda: math.nan)
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except Exception as error:  # a run must not end for this
        logger.info("energy is not measured: %s: %s", type(error).__name__, error)
        return EnergyMeter(lambda: math.nan)

    def read_j() -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000  # the counter is in millijoules
        except pynvml.NVMLError:
            return math.nan

    return EnergyMeter(read_j)
