"""How much of a device a run uses, with GPUs that are only said to be there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.footprint import utilization
from petseg.footprint.utilization import device_name, mfu_row, peak_memory_mb

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of the second GPU, as the only element."""
    names = ["NVIDIA H100 80GB HBM3"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[0] if device == GPU else "another")
    monkeypatch.setattr(utilization, "flops_per_image", lambda config: 1e12 * config.model.width)
    return names


@pytest.mark.parametrize(("precision", "tflops"), [("no", 494), ("bf16", 989)])
def test_the_share_is_of_what_all_gpus_can_do_in_the_runs_precision(
    name: list[str], precision: str, tflops: float
) -> None:
    config = with_values(RunConfig(), {"model.width": 4, "train.mixed_precision": precision})
    assert mfu_row(config, 50.0, GPU, world_size=2) == {"perf/mfu": pytest.approx(4 * 50 / (2 * tflops))}


def test_a_device_whose_best_is_not_known_has_no_share(name: list[str]) -> None:
    assert mfu_row(RunConfig(), 50.0, CPU, 1) == {}
    name[0] = "Some GPU"
    assert mfu_row(RunConfig(), 50.0, GPU, 1) == {}


def test_a_device_is_named_for_people(name: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_name(GPU) == "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert device_name(CPU) == "cpu, 7 threads"


def test_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel counts a process's memory in KiB."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3_000_000 if device == GPU else 0)
    monkeypatch.setattr(utilization.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=2000))
    assert (peak_memory_mb(GPU), peak_memory_mb(CPU)) == (3.0, 2.048)
