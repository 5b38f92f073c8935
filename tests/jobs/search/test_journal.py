"""What optuna draws from is what the sweep's own sampler draws from."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from jobs.design.expansion import STARTUP, Cell, cell_of, draws
from jobs.design.space import Distribution
from jobs.design.spec import Spec, parse_spec
from jobs.runs.trial import Trial
from jobs.search import journal
from jobs.search.journal import (
    STUDY_NAME,
    TRIES,
    ask,
    cells_of,
    clear_away,
    open_study,
    peek_study,
    sample,
    seed_of,
    tell,
    to_optuna,
)
from jobs.state.trial_status import TrialStatus
from petseg.config import RunConfig
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


def spec_of(run_cap: int = 20, **top: Any) -> Spec:
    parameters = top.pop("parameters", {"optim.lr": {"min": 0.1, "max": 0.9}, "train.seed": {"min": 0, "max": 3}})
    return parse_spec({"method": "bayes", "run_cap": run_cap, "parameters": parameters, **top}, "s")


def test_a_search_is_that_of_its_space_its_fixed_values_and_its_set(tmp_path: Path) -> None:
    spec = spec_of()
    study = open_study(tmp_path, spec, "h")
    assert study.user_attrs["search"] == {
        "space": {name: one.to_dict() for name, one in spec.space.items()},
        "fixed": trial_id(cell_of(spec, RunConfig(), {"optim.lr": 0.5, "train.seed": 2}).config, "h"),
    }
    assert study.direction.name == "MAXIMIZE"
    assert open_study(tmp_path, spec_of(run_cap=99, seed=7), "h").study_name == STUDY_NAME  # may go on longer
    wider = spec_of(parameters={"optim.lr": {"min": 0.1, "max": 1.0}, "train.seed": {"min": 0, "max": 3}})
    fixed = spec.changed({}, {"train.epochs": 7})
    for other, manifest_hash in ((wider, "h"), (fixed, "h"), (spec, "another")):
        for opened in (open_study, peek_study):
            with pytest.raises(ValueError, match=f"^{tmp_path} holds a search with other parameters, fixed values or"):
                opened(tmp_path, other, manifest_hash)


def test_a_look_at_a_search_is_no_part_of_it(tmp_path: Path) -> None:
    spec = spec_of()
    assert peek_study(tmp_path, spec, "h").trials == []
    assert list(tmp_path.iterdir()) == []
    cells = ask(open_study(tmp_path, spec, "h"), spec, "h", 2)
    copy = peek_study(tmp_path, spec, "h")
    assert cells_of(copy, spec) == cells
    assert ask(copy, spec, "h", 1) != []
    assert len(open_study(tmp_path, spec, "h").trials) == 2


def test_a_proposal_is_noted_with_its_trial_and_no_more_than_there_are(tmp_path: Path) -> None:
    spec = spec_of(parameters={"train.seed": {"min": 0, "max": 2}})
    study = open_study(tmp_path, spec, "h")
    cells = [*ask(study, spec, "h", 1), *ask(study, spec, "h", 9)]
    assert sorted(cell.config.train.seed for cell in cells) == [0, 1, 2]
    assert [trial.user_attrs for trial in study.trials] == [{"trial_id": trial_id(c.config, "h")} for c in cells]
    assert [trial.params for trial in study.trials] == [cell.drawn for cell in cells]
    assert ask(study, spec, "h", 0) == ask(study, spec, "h", -1) == ask(study, spec, "h", 1) == []


def finish_all(study: Any, spec: Spec, cells: list[Cell]) -> None:
    rows = {}
    for cell in cells:
        identifier = trial_id(cell.config, "h")
        rows[identifier] = TrialStatus(Trial(identifier, {}, Path()), "done", epoch=1, dice=cell.config.optim.lr)
    tell(study, spec, "h", rows)


def test_after_the_first_draws_the_model_proposes_and_never_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first two proposals exist already."""
    spec = spec_of(seed=5)
    study = open_study(tmp_path, spec, "h")
    cells = ask(study, spec, "h", STARTUP)
    assert cells == list(islice(draws(spec, RunConfig()), STARTUP))
    seeds: list[int] = []

    def sample(study: Any, space: Any, seed: int) -> dict[str, Any]:
        seeds.append(seed)
        return dict(cells[0].drawn) if len(seeds) < 3 else {"optim.lr": 0.123456789, "train.seed": 1}

    monkeypatch.setattr(journal, "sample", sample)
    following = list(islice(draws(spec, RunConfig()), STARTUP + 1))[-1]
    assert ask(study, spec, "h", 1) == [following]  # while none has ended
    finish_all(study, spec, cells[:1])
    (cell,) = ask(study, spec, "h", 1)
    assert cell.drawn == {"optim.lr": 0.123457, "train.seed": 1}
    assert seeds == [seed_of(5, STARTUP + 1, attempt) for attempt in range(3)]
    seeds[:] = []
    monkeypatch.setattr(journal, "sample", lambda study, space, seed: seeds.append(seed) or dict(cells[0].drawn))
    assert ask(study, spec, "h", 1) != []  # by chance in the end
    assert len(seeds) == TRIES


def test_a_proposal_depends_on_the_seed_and_the_trials_alone(tmp_path: Path) -> None:
    spec = spec_of()
    study = open_study(tmp_path, spec, "h")
    cells = ask(study, spec, "h", 6)
    finish_all(study, spec, cells[:5])
    space = {name: to_optuna(distribution) for name, distribution in spec.space.items()}
    first = sample(study, space, 1)
    assert sample(study, space, 1) == first != sample(study, space, 2)
    assert len(study.trials) == 6
    assert seed_of(1, 2) == seed_of(1, 2) != seed_of(2, 1)
    assert seed_of(0, 0, 0) == 0x0431DE49  # the first digits of its sha256, for ever: a search can be done again
