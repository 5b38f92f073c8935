"""What optuna draws from is what the sweep's own sampler draws from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.design.space import Distribution
from jobs.design.spec import parse_spec
from jobs.runs.trial import Trial
from jobs.search.journal import ask, clear_away, open_study, peek_study, tell, to_optuna
from jobs.state.trial_status import TrialStatus
from petseg.config.values import trial_id

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


def test_trials_are_recorded_as_they_ended(tmp_path: Path) -> None:
    """A pruned one counts with its Dice at that epoch, and is not taken for a finished one; others stay open."""
    spec = parse_spec({"method": "bayes", "run_cap": 9, "parameters": {"optim.lr": {"min": 0.1, "max": 0.9}}}, "s")
    study = open_study(tmp_path, spec, "h")
    cells = ask(study, spec, "h", 6)
    ended = [("done", 0.5, 3), ("pruned", 0.7, 2), ("failed", 0.6, 1), ("running", 0.4, 1), ("done", None, 0)]
    rows = {}
    for cell, (status, dice, epoch) in zip(cells, ended, strict=False):  # of the sixth nothing is known
        identifier = trial_id(cell.config, "h")
        rows[identifier] = TrialStatus(Trial(identifier, {}, tmp_path), status, epoch=epoch, dice=dice)
    for _ in range(2):  # each look tells again
        tell(study, spec, "h", rows)
        states = [trial.state.name for trial in study.trials]
        assert states == ["COMPLETE", "PRUNED", "RUNNING", "RUNNING", "RUNNING", "RUNNING"]
        assert [trial.value for trial in study.trials] == [0.5, 0.7, None, None, None, None]
        assert [trial.intermediate_values for trial in study.trials][:3] == [{}, {2: 0.7}, {}]
    assert [trial.state.name for trial in peek_study(tmp_path, spec, "h").trials] == states
    assert {cell.config for cell in ask(study, spec, "h", 2)}.isdisjoint(cell.config for cell in cells)


@pytest.mark.parametrize(("left", "kept"), [(b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n"), (b"half", b""), (b"", b"")])
def test_half_a_last_line_of_a_journal_is_removed(tmp_path: Path, left: bytes, kept: bytes) -> None:
    path = tmp_path / "search.journal"
    path.write_bytes(left)
    path.with_name("search.journal.lock").touch()
    clear_away(path)
    assert path.read_bytes() == kept
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()
    clear_away(path)
    assert not path.exists()
