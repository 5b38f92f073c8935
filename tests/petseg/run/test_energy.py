"""The energy that a training's GPUs take: by their counters where there are any, and never at the cost of a run."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from petseg.config import RunConfig
from petseg.run import run
from petseg.run.energy import EnergyMeter, open_meter
from petseg.run_folder.layout import read_metrics
from petseg.training.loop import train


def test_no_gpu_no_energy(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    assert math.isnan(open_meter(torch.device("cpu")).joules())
    train(tiny(), tmp_path)
    assert not any("perf/energy_j" in row for row in read_metrics(tmp_path))


def test_no_driver_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library on a machine without the driver's, or with a GPU that it does not know."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="0"))
    meter = open_meter(torch.device("cuda", 0))
    meter.start()
    assert math.isnan(meter.joules())


def test_an_epochs_row_has_the_energy_of_its_training(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = itertools.count(1000.0, 250.0)
    monkeypatch.setattr(run, "open_meter", lambda _: EnergyMeter(lambda: next(counter)))
    train(tiny(), tmp_path)
    assert [row["perf/energy_j"] for row in read_metrics(tmp_path)] == [250.0, 250.0]


def test_the_counter_of_the_runs_own_gpu_is_read_in_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts millijoules; a driver that stops answering costs the number alone."""
    counter = iter([5_000, 12_500])
    asked: list[str] = []

    class Nvml(SimpleNamespace):
        class NVMLError(Exception): ...

        def nvmlInit(self) -> None:
            asked.append("init")

        def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
            asked.append(uuid)
            return "handle"

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
            assert handle == "handle"
            if (reading := next(counter, None)) is None:
                raise self.NVMLError
            return reading

    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"of {device}"))
    meter = open_meter(torch.device("cuda", 1))
    assert asked == ["init", "GPU-of cuda:1"]
    assert math.isnan(EnergyMeter(lambda: 1.0).joules())  # before a start
    meter.start()
    assert meter.joules() == 7.5
    assert math.isnan(meter.joules())
