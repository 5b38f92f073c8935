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
    samples_per_micro_batch,
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
