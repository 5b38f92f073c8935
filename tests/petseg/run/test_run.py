"""When an attempt saves next, and which runs share compiled code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from petseg.config import RunConfig
from petseg.run.run import CurrentAttempt, build_choice


@pytest.mark.parametrize(
    ("every_min", "elapsed_s", "is_due"),
    [
        (0.0, 1e9, False),  # 0 = only at the ends of epochs
        (10.0, 599.0, False),
        (10.0, 600.0, True),
        (0.5, 29.0, False),
        (0.5, 31.0, True),
    ],
)
def test_a_save_is_due_once_its_minutes_have_passed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, every_min: float, elapsed_s: float, is_due: bool
) -> None:
    monkeypatch.setattr("petseg.run.run.time.monotonic", lambda: 5000.0 + elapsed_s)
    assert CurrentAttempt(tmp_path, every_min, saved_at=5000.0).save_due is is_due


def test_steps_share_compiled_code_only_if_they_are_compiled_alike(
    tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run in bf16 would load what one in float32 kept, compile its own, and never keep it."""
    monkeypatch.setattr("petseg.run.run.CompileChoice", lambda compiled, shared, *_: shared.key)

    def key(shapes: dict[int, None], **changes: Any) -> Any:
        compiled = SimpleNamespace(shapes=shapes)
        cpu = torch.device("cpu")
        unused: Any = None
        parts: Any = SimpleNamespace(config=tiny(**changes), compiled=compiled, device=cpu, accelerator=unused)
        return build_choice(parts, unused, unused)

    keys = [
        key({64: None}), key({32: None, 64: None}), key({64: None}, model__width=8),
        key({64: None}, train__mixed_precision="bf16"), key({64: None}, train__channels_last=False),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key({64: None}, train__seed=7) == keys[0]
