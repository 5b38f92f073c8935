"""What optuna draws from is what the sweep's own sampler draws from."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.design.space import Distribution
from jobs.search.journal import to_optuna

optuna = pytest.importorskip("optuna.distributions")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Distribution("categorical", ("a", "b")), ("CategoricalDistribution", (["a", "b"],), {})),
        (Distribution("int_uniform", low=2, high=5), ("IntDistribution", (2, 5), {})),
        (Distribution("uniform", low=0.1, high=0.9), ("FloatDistribution", (0.1, 0.9), {})),
        (Distribution("log_uniform_values", low=1e-5, high=1e-1), ("FloatDistribution", (1e-5, 1e-1), {"log": True})),
        # its multiples within the bounds, each as often as the next: without the step, the ends are half as frequent
        (Distribution("q_uniform", low=5, high=63, q=8), ("FloatDistribution", (8, 56), {"step": 8})),
    ],
)
def test_distributions_keep_their_bounds_steps_and_scale(
    ours: Distribution, theirs: tuple[str, tuple[Any, ...], dict[str, Any]]
) -> None:
    name, args, options = theirs
    assert to_optuna(ours) == getattr(optuna, name)(*args, **options)
