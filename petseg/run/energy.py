"""The energy that a GPU takes, by its driver's counter (NVML, Volta and newer): unknown, NaN, where there is none."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)


class EnergyMeter:
    """The energy of one GPU, whatever runs on it, since `begin`."""

    def __init__(self, read_j: Callable[[], float]) -> None:
        """read_j: the counter, in joules"""
        self._read_j, self._begun_j = read_j, math.nan

    def begin(self) -> None:
        self._begun_j = self._read_j()

    def joules(self) -> float:
        return self._read_j() - self._begun_j


def open_meter(device: torch.device) -> EnergyMeter:
    """Of a CUDA device; NaN for any other, for a part of a GPU (MIG), and without NVML."""
    if device.type != "cuda":
        return EnergyMeter(lambda: math.nan)
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except Exception as error:  # what it measures is not worth a run
        logger.info("energy is not measured: %s: %s", type(error).__name__, error)
        return EnergyMeter(lambda: math.nan)

    def read_j() -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000  # it is in millijoules
        except pynvml.NVMLError:
            return math.nan

    return EnergyMeter(read_j)
