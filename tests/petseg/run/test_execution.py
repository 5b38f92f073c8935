"""torch.compile: when, and for which batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch._inductor.config
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.data.plan import Batching, EpochOrder, train_plan
from petseg.run import execution
from petseg.run.compiling.forward import why_not_compile
from petseg.run.execution import (
    compile_for_training,
    fit_for_training,
    full_pass_sizes,
    require_compilable,
    why_no_choice,
)

Tiny = Callable[..., RunConfig]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 6))
def test_the_sizes_are_those_of_the_plan(batch_size: int, passes: int, world_size: int) -> None:
    order = EpochOrder([batch_size], 1, 0, 1)
    for rank in range(min(world_size, batch_size)):
        planned = {
            len(p.ids) for p in train_plan(order, Batching(batch_size, passes, rank, world_size)) if not p.filler
        }
        sizes = full_pass_sizes(batch_size, passes, rank, world_size)
        assert planned == sizes
        assert len(sizes) <= 2


@pytest.mark.parametrize(
    ("changes", "device", "reason"),
    [
        ({}, GPU, why_not_compile(GPU)),
        ({}, CPU, "there is no GPU"),
        ({"train.deterministic": True}, GPU, "a clock would decide"),
        ({"train.budget_min": 5.0}, GPU, "train.budget_min"),
        ({"augment.mode": "add", "augment.policy": "flip"}, GPU, "augment.mode = add"),
    ],
)
def test_what_auto_does_not_measure_is_named(
    tiny: Tiny, changes: dict[str, object], device: torch.device, reason: str | None
) -> None:
    named = why_no_choice(with_values(tiny(train__compile="auto"), changes), device)
    assert named == reason if reason is None else reason in str(named)


def test_always_refuses_batches_of_any_size(tiny: Tiny) -> None:
    grows = {"augment.mode": "add", "augment.policy": "flip"}
    with pytest.raises(ValueError, match=r"augment.mode = add makes batches of any size"):
        require_compilable(with_values(tiny(train__compile="always"), grows), CPU)


def test_a_missing_compiler_is_named(tiny: Tiny, tmp_path: Path) -> None:
    message = r"train.compile = always: there is no C\+\+ compiler here.*install g\+\+"
    nowhere = {"cpp.cxx": (str(tmp_path / "g++"),)}
    with torch._inductor.config.patch(nowhere), pytest.raises(ValueError, match=message):
        require_compilable(tiny(train__compile="always"), CPU)


def test_compilation_and_checkpointing_exclude_each_other(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"train.compile = 'auto': leave it out with train.grad_checkpointing"):
        tiny(train__compile="auto", train__grad_checkpointing=True)


def accelerator_of(rank: int = 0, world_size: int = 1) -> Accelerator:
    return cast(Accelerator, SimpleNamespace(device=CPU, process_index=rank, num_processes=world_size))


def test_a_run_is_prepared_to_be_compiled_only_if_it_is_to_be(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The third of three ranks has 3 of 10 samples in two passes: of 2 and of 1."""
    asked: list[Any] = []
    caplog.set_level("INFO")
    monkeypatch.setattr(execution, "compile_forward", lambda *what, **how: asked.append((what, how)) or "compiled")
    model = torch.nn.Identity()
    assert compile_for_training(tiny(), model, accelerator_of()) is None
    assert not caplog.records
    assert compile_for_training(tiny(train__compile="auto"), model, accelerator_of()) is None
    said = "train.compile = auto: the run is not compiled: there is no GPU, and on CPUs compiling was slower"
    assert [record.getMessage() for record in caplog.records] == [said]
    monkeypatch.setattr(execution, "why_not_compile", lambda _: None)
    changes = {"train__batch_size": 10, "train__accumulation_steps": 2, "data__image_size_px": "32x64"}
    config = tiny(train__compile="always", data__cache_dir="cache", **changes)
    assert compile_for_training(config, model, accelerator_of(2, 3)) == "compiled"
    assert asked == [((model, {(2, 3, 32, 64), (1, 3, 32, 64)}, "cache"), {"enabled": False})]


def test_passes_are_checkpointed_only_where_that_is_asked_for(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[torch.nn.Module] = []
    monkeypatch.setattr(execution, "checkpoint_stages", fitted.append)
    model = torch.nn.BatchNorm2d(2)
    alone = cast(Accelerator, SimpleNamespace(device=CPU, num_processes=1, ddp_handler=None))
    assert fit_for_training(tiny(train__sync_batchnorm=True), model, alone) is model  # of one process
    assert fitted == []
    assert fit_for_training(tiny(train__grad_checkpointing=True), model, alone) is model
    assert fitted == [model]
