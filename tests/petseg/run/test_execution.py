"""torch.compile: when, and for which batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from hypothesis import given
from hypothesis import strategies as st

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.data.plan import Batching, EpochOrder, train_plan
from petseg.run.compiling.forward import why_not_compile
from petseg.run.execution import full_pass_sizes, require_compilable, why_no_choice

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
