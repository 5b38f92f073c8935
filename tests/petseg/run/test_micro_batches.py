"""Passes that the device's memory decides: settled once, noted, and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator

from jobs.launch.retry import more_accumulation
from petseg.config import RunConfig
from petseg.config.values import trial_id, with_values
from petseg.footprint.memory import footprint
from petseg.models.build import build_model
from petseg.run import micro_batches
from petseg.run.execution import fit_for_training
from petseg.run.micro_batches import (
    RESERVE_BYTES,
    SLACK,
    fewest_micro_batches,
    fits,
    free_bytes,
    samples_per_micro_batch,
    settle_accumulation_steps,
    usable_bytes,
)
from petseg.run_folder.layout import load_overrides, read_metrics, save_overrides
from petseg.training.loop import train

Tiny = Callable[..., RunConfig]


def memory_for(config: RunConfig, samples: int) -> int:
    """Memory of a CPU that holds a micro-batch of so many samples, and no more."""
    peak = footprint(with_values(config, {"train.accumulation_steps": 2}), samples, "cpu").peak_bytes
    return int(SLACK * peak) + RESERVE_BYTES + 1


def test_usable_bytes_are_the_largest_that_fit() -> None:
    memory = 4 * 2**30
    assert fits(usable_bytes(memory), memory)
    assert not fits(usable_bytes(memory) + 2, memory)
    assert usable_bytes(1000) == 0


@pytest.mark.slow
def test_the_largest_micro_batch_that_fits_is_chosen(tiny: Tiny) -> None:
    config = tiny(train__accumulation_steps=0, train__batch_size=24)
    assert fewest_micro_batches(config, "cpu", 2**40, world_size=1) == 1
    for samples, wanted in ((12, 2), (7, 4), (4, 6)):
        assert fewest_micro_batches(config, "cpu", memory_for(config, samples), world_size=1) == wanted
    assert fewest_micro_batches(config, "cpu", memory_for(config, 4), world_size=3) == 2
    assert fewest_micro_batches(config, "cpu", RESERVE_BYTES, world_size=1) is None


def test_a_micro_batch_includes_copies(tiny: Tiny) -> None:
    assert samples_per_micro_batch(tiny(train__batch_size=10), 2, 3) == 2
    grown = tiny(train__batch_size=10, augment__mode="add", augment__policy="flip", augment__p=1.0)
    assert samples_per_micro_batch(grown, 2, 3) == 4


@pytest.mark.slow
def test_the_number_is_noted_and_every_attempt_keeps_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is that of the number, bit for bit, also where it goes on with more memory."""
    config = tiny(train__accumulation_steps=0)
    with monkeypatch.context() as patch:
        patch.setattr(micro_batches, "free_bytes", lambda device: memory_for(config, 4))
        patch.setattr("petseg.training.interrupt.requested", lambda: True)
        with pytest.raises(Exception, match="is saved up to epoch 0 and 2 steps"):
            train(config, tmp_path / "auto")
    assert load_overrides(tmp_path / "auto") == {"train.accumulation_steps": 2}
    train(config, tmp_path / "auto")
    fixed = tiny(train__accumulation_steps=2)
    train(fixed, tmp_path / "fixed")
    losses = [[row["train/loss"] for row in read_metrics(tmp_path / name)] for name in ("auto", "fixed")]
    assert losses[0] == losses[1]
    assert trial_id(config, "") != trial_id(fixed, "")  # it says how it was asked


def test_other_overrides_stay(tiny: Tiny, tmp_path: Path) -> None:
    save_overrides({"train.grad_checkpointing": True}, tmp_path)
    train(tiny(train__accumulation_steps=0, train__epochs=1), tmp_path)
    assert load_overrides(tmp_path) == {"train.grad_checkpointing": True, "train.accumulation_steps": 1}


def test_an_error_says_that_nothing_fits(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batches, "free_bytes", lambda device: RESERVE_BYTES)
    with pytest.raises(ValueError, match=r"not even a micro-batch of one sample fits in 1.0 GiB, by prediction"):
        train(tiny(train__accumulation_steps=0), tmp_path)
    assert load_overrides(tmp_path) == {}


def test_memory_that_runs_out_even_so_doubles_the_noted_number(tmp_path: Path) -> None:
    tree = {"config": {"train": {"batch_size": 8, "accumulation_steps": 0}}}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert more_accumulation(tmp_path) == 2
    save_overrides({"train.accumulation_steps": 2}, tmp_path)
    assert more_accumulation(tmp_path) == 4


def two_processes(device: str) -> Accelerator:
    parts: dict[str, Any] = {
        "device": torch.device(device), "process_index": 0, "num_processes": 2, "ddp_handler": SimpleNamespace(),
    }  # fmt: skip
    return cast(Accelerator, SimpleNamespace(**parts))


def test_batchnorm_over_processes_needs_gpus(tiny: Tiny) -> None:
    config = tiny(train__sync_batchnorm=True)
    with pytest.raises(ValueError, match="works on GPUs only, and these 2 processes have none: leave it out"):
        fit_for_training(config, build_model(config.model), two_processes("cpu"))
    accelerator = two_processes("cuda")
    plain = build_model(config.model)
    fitted = fit_for_training(config, plain, accelerator)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in fitted.modules())
    assert list(fitted.state_dict()) == list(build_model(config.model).state_dict())
    assert accelerator.ddp_handler.static_graph
    fit_for_training(tiny(train__accumulation_steps=2), plain, accelerator)
    assert not accelerator.ddp_handler.static_graph


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Of which configs the memory is predicted: 1 GiB for each sample."""
    found: list[tuple[Any, ...]] = []

    def predicted(config: RunConfig, samples: int, *rest: Any) -> Any:
        found.append((config.train.accumulation_steps, samples, *rest))
        return SimpleNamespace(peak_bytes=samples * 2**30)

    monkeypatch.setattr("petseg.footprint.memory.footprint", predicted)
    return found


def room_for(samples: float) -> int:
    return int(SLACK * samples * 2**30) + RESERVE_BYTES + 1


def test_divisors_of_the_batch_are_tried_until_one_fits(tiny: Tiny, asked: list[tuple[Any, ...]]) -> None:
    """Three ranks have 8 of 24 samples each; what would be no smaller is not asked again."""
    config = tiny(train__accumulation_steps=0, train__batch_size=24)
    assert fewest_micro_batches(config, "cuda", room_for(2), 3, num_classes=5) == 4
    assert asked == [(count, samples, "cuda", 3, 5) for count, samples in ((1, 8), (2, 4), (3, 3), (4, 2))]
    asked.clear()
    assert fewest_micro_batches(config, "cpu", room_for(0.9), 3) is None
    assert [(count, samples) for count, samples, *_ in asked] == [(1, 8), (2, 4), (3, 3), (4, 2), (8, 1)]


class Together:
    """Accelerate of two ranks, the other of which has 3 GiB."""

    def __init__(self, is_main: bool) -> None:
        self.device, self.is_main_process, self.num_processes = torch.device("cpu"), is_main, 2

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, torch.tensor([3 * 2**30])])


@pytest.mark.parametrize("noted", [{}, {"train.grad_checkpointing": True, "train.accumulation_steps": 8}])
def test_the_main_process_settles_the_number_by_the_least_memory_of_all(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: dict[str, Any]
) -> None:
    asked: list[tuple[Any, ...]] = []

    def fewest(config: RunConfig, *what: Any) -> int:
        asked.append(what)
        return 4

    if noted:
        (tmp_path / "run").mkdir()
        save_overrides(noted, tmp_path / "run")
    monkeypatch.setattr(micro_batches, "fewest_micro_batches", fewest)
    monkeypatch.setattr(micro_batches, "free_bytes", lambda _: 5 * 2**30)
    monkeypatch.setattr(micro_batches, "broadcast_object_list", lambda own: own)
    together = cast(Accelerator, Together(is_main=True))
    settled = settle_accumulation_steps(tiny(train__accumulation_steps=0), tmp_path / "run", together, 5)
    steps = noted.get("train.accumulation_steps", 4)
    assert settled == tiny(train__accumulation_steps=steps)
    assert asked == ([] if noted else [("cpu", 3 * 2**30, 2, 5)])
    assert load_overrides(tmp_path / "run") == (noted or {"train.accumulation_steps": 4})


def test_other_processes_take_over_the_number_and_write_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro_batches, "broadcast_object_list", lambda own: [2] if own == [None] else own)
    together = cast(Accelerator, Together(is_main=False))
    config = tiny(train__accumulation_steps=0)
    assert settle_accumulation_steps(config, tmp_path / "run", together).train.accumulation_steps == 2
    assert not (tmp_path / "run").exists()
    given = tiny(train__accumulation_steps=4)
    assert settle_accumulation_steps(given, tmp_path / "run", cast(Accelerator, None)) is given
    monkeypatch.setattr(micro_batches, "broadcast_object_list", lambda own: own)
    with pytest.raises(ValueError, match=r"^not even a micro-batch of one sample fits in 3\.0 GiB, by prediction"):
        settle_accumulation_steps(config, tmp_path / "run", together)


def test_processes_of_a_host_share_half_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(micro_batches.os, "sysconf", facts.__getitem__)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert free_bytes(torch.device("cpu")) == 2_048_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(torch.device("cpu")) == 512_000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (7, 9))
    assert free_bytes(torch.device("cuda")) == 7
