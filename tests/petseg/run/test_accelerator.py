"""What is asked of accelerate, and what a launch and a config may not say together."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedDataParallelKwargs

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.footprint.gpus import NodeFault
from petseg.run import accelerator as module
from petseg.run.accelerator import build_accelerator, keep_freed_memory


def config_of(**train: Any) -> RunConfig:
    return with_values(RunConfig(), {f"train.{name}": value for name, value in train.items()})


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What accelerate is asked for, without a GPU; it finds three processes."""
    asked: list[dict[str, Any]] = []
    for name in ("ACCELERATE_MIXED_PRECISION", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def stand_in(**wanted: Any) -> Any:
        asked.append(wanted)
        return SimpleNamespace(num_processes=3)

    monkeypatch.setattr(module, "Accelerator", stand_in)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return asked


def test_without_a_gpu_processes_compute_on_cpus_and_keep_one_layout_of_gradients(built: list[dict[str, Any]]) -> None:
    build_accelerator(config_of(mixed_precision="bf16"), world_size=3)
    (asked,) = built
    (ddp,) = asked.pop("kwargs_handlers")
    assert asked == {"cpu": True, "mixed_precision": "bf16", "step_scheduler_with_optimizer": False}
    assert isinstance(ddp, DistributedDataParallelKwargs)
    assert (ddp.gradient_as_bucket_view, ddp.find_unused_parameters) == (True, True)


def test_with_gpus_they_are_used_and_parameters_are_not_looked_for(
    built: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "set_arithmetic", lambda _: None)
    monkeypatch.setattr(module, "keep_freed_memory", lambda: pytest.fail("malloc does not matter there"))
    build_accelerator(config_of(mixed_precision="fp16"), world_size=3)
    (ddp,) = built[0]["kwargs_handlers"]
    assert (built[0]["cpu"], ddp.find_unused_parameters) == (False, False)


@pytest.mark.parametrize("launcher", ["no", "bf16"])
def test_a_launcher_may_ask_for_the_precision_of_the_run_or_for_none(
    built: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    build_accelerator(config_of(mixed_precision="bf16"), world_size=3)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match=r"asks for mixed precision bf16, the run for no: .* give --train.mixed-pr"):
        build_accelerator(config_of(), world_size=3)
    assert len(built) == 1


def test_the_number_of_processes_is_that_of_the_caller_or_of_the_launcher(
    built: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_accelerator(config_of(), world_size=3)
    for said, world_size in (("", 2), ("2", 0), ("", 0)):
        if said:
            monkeypatch.setenv("WORLD_SIZE", said)
        else:
            monkeypatch.delenv("WORLD_SIZE", raising=False)
        with pytest.raises(
            ValueError, match=rf"^3 processes run together where {world_size or said or 1} were asked for"
        ):
            build_accelerator(config_of(), world_size)
    monkeypatch.setenv("WORLD_SIZE", "3")
    build_accelerator(config_of(), world_size=0)


def test_each_process_gets_a_sample_of_a_batch(built: list[dict[str, Any]]) -> None:
    build_accelerator(config_of(batch_size=3), world_size=3)
    with pytest.raises(ValueError, match=r"^train.batch_size = 2 is the batch of all 3 processes together"):
        build_accelerator(config_of(batch_size=2), world_size=3)


def test_what_this_machine_lacks_is_told_before_processes_meet(
    built: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="needs a GPU: use bf16 here"):
        build_accelerator(config_of(mixed_precision="fp16"), world_size=3)

    def no_gpu() -> None:
        raise NodeFault("the GPU is gone")

    monkeypatch.setattr(module, "require_gpus", no_gpu)
    with pytest.raises(NodeFault, match="the GPU is gone"):
        build_accelerator(config_of(), world_size=3)
    assert built == []


def test_one_process_does_runs_of_several_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    found = [build_accelerator(config_of(mixed_precision=one), 1).mixed_precision for one in ("no", "bf16", "no")]
    assert found == ["no", "bf16", "no"]


def test_malloc_keeps_large_blocks_where_it_can_be_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """By malloc.h of glibc: M_MMAP_THRESHOLD is -3, and M_TRIM_THRESHOLD -1."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *words: told.append(words)))
    keep_freed_memory()
    assert told == [(-3, 32 * 2**20), (-1, 2**31 - 1)]

    def none(_: object) -> Any:
        raise OSError

    for libc in (lambda _: SimpleNamespace(), none):
        monkeypatch.setattr(ctypes, "CDLL", libc)
        keep_freed_memory()
