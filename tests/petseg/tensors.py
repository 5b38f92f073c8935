"""Comparing weights by name, where none at all would be a fault too."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def assert_same_tensors(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert expected
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []
