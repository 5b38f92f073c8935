"""Which pictures stand in the gallery, and who stands beside whom."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.reporting.sections import gallery as gallery_module
from jobs.reporting.sections.gallery import EACH, pick


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40))
def test_best_median_and_worst_are_apart(dice: list[float]) -> None:
    rows = dict(pick(np.array(dice)))
    chosen = [i for row in rows.values() for i in row]
    assert len(chosen) == len(set(chosen)) == min(len(dice), 3 * EACH)
    values = [dice[i] for i in chosen]
    assert values == sorted(values, reverse=True)
    if len(dice) >= 3 * EACH:
        below, above = min(dice[i] for i in rows["Median"]), max(dice[i] for i in rows["Median"])
        assert below <= np.median(dice) <= above


def test_a_disputed_picture_shows_the_cell_first_and_its_rival_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_module, "_prediction", lambda kept, position, sample: (kept.name, position))
    one: Any = SimpleNamespace(name="cell", keys=["a", "b"])
    other: Any = SimpleNamespace(name="rival", keys=["c", "d"])
    found = gallery_module._disputed(one, other, 1, 0.5, None)
    assert (found.key, found.agreement, found.predictions) == ("b", 0.5, (("cell", 1), ("rival", 1)))
