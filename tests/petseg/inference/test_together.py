"""Which weights files can be used together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from petseg.inference import predictor
from petseg.inference.predictor import load_predictor, rule_of
from petseg.models.networks import Ensemble
from shards.classes import ClassEntry
from tests.petseg.inference.test_export import header_of

OTHERS: list[dict[str, Any]] = [
    {"image_size_px": 32},
    {"fit": "letterbox"},
    {"classes": header_of().classes[:2]},
    {"classes": (*header_of().classes[:2], ClassEntry("horse", 2, (0, 0, 0)))},
]


def stand_in(monkeypatch: pytest.MonkeyPatch, **headers: Any) -> list[Path]:
    """Files by name, each with its header and a model."""
    monkeypatch.setattr(predictor, "load_file", lambda path: (headers[path.name], nn.Identity()))
    return [Path(name) for name in headers]


@pytest.mark.parametrize("change", OTHERS)
def test_files_of_other_classes_or_pictures_are_not_mixed(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    one, other = header_of(), header_of(**change)
    files = stand_in(monkeypatch, a=one, b=one, c=other)
    with pytest.raises(ValueError, match=f"^a and c do not fit together: {rule_of(one)} and {rule_of(other)}$"):
        load_predictor(files, "cpu")
    assert load_predictor(files[2:], "cpu").header == other


def test_files_of_one_rule_are_an_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    files = stand_in(monkeypatch, a=header_of(), b=header_of(mixed_precision="bf16"))
    both = load_predictor(files, "cpu")
    assert isinstance(both.model, Ensemble)
    assert both.precision == "no"  # that of the first
    assert load_predictor(files[1:], "cpu").precision == "bf16"
    assert not isinstance(load_predictor(files[:1], "cpu").model, Ensemble)
    assert load_predictor(files, "cpu", "bf16").precision == "bf16"


def test_what_cannot_be_loaded_is_told_before_any_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"name a weights file: make one with"):
        load_predictor([])
    with pytest.raises(ValueError, match=r"precision 'int8': choose one of"):
        load_predictor([Path("none")], precision="int8")
    files = stand_in(monkeypatch, a=header_of())
    with pytest.raises(ValueError, match="precision fp16 needs a GPU"):
        load_predictor(files, "cpu", "fp16")
    assert load_predictor(files, "cpu").device == torch.device("cpu")
