"""What is set for a GPU's arithmetic, with a driver that is only said to be there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from petseg.config import RunConfig
from petseg.run.determinism import set_arithmetic

Tiny = Callable[..., RunConfig]
CUDNN = torch.backends.cudnn


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = CUDNN.benchmark, CUDNN.deterministic, CUDNN.allow_tf32
    yield
    CUDNN.benchmark, CUDNN.deterministic, CUDNN.allow_tf32 = before
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize(
    ("changes", "benchmark"),
    [
        ({}, True),
        ({"train__cudnn_benchmark": False}, False),
        ({"train__deterministic": True}, False),
        ({"augment__mode": "add", "augment__policy": "flip"}, False),
        ({"augment__mode": "add"}, True),  # without a policy there are no copies
    ],
)
def test_cudnn_tries_its_algorithms_where_shapes_repeat_and_exactness_is_not_asked_for(
    tiny: Tiny, changes: dict[str, Any], benchmark: bool
) -> None:
    set_arithmetic(tiny(**changes))
    assert CUDNN.benchmark is benchmark
    assert CUDNN.allow_tf32


def test_deterministic_is_set_for_one_run_and_taken_back_for_the_next(tiny: Tiny) -> None:
    set_arithmetic(tiny(train__deterministic=True, train__tf32=False))
    assert torch.are_deterministic_algorithms_enabled()
    assert CUDNN.deterministic
    assert not CUDNN.allow_tf32
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_arithmetic(tiny())
    assert not torch.are_deterministic_algorithms_enabled()
    assert not CUDNN.deterministic


def test_nothing_is_set_without_a_gpu(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    CUDNN.benchmark = False
    set_arithmetic(tiny(train__deterministic=True))
    assert not CUDNN.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
