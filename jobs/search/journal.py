"""The record of a search that learns: optuna's journal in the sweep's folder, and the sampler that builds on it.

runs/SWEEP/search.journal has one line for each trial that was proposed and one for its end. A proposal is written whole
before anything is done with it; from then on it is a trial like any other. Only the launcher that holds the sweep's
lock writes here: what a killed one left (half a line, the journal's own lock) is cleared away. Optuna's tools can read
the file, as `optuna-dashboard runs/SWEEP/search.journal` does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.design.space import Distribution
from jobs.design.spec import STARTUP, Cell, Spec, cell_of, draws
from jobs.state.trial_status import TrialStatus
from petseg.config import RunConfig
from petseg.config.values import trial_id

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

JOURNAL_NAME = "search.journal"
STUDY_NAME = "petseg"
TRIES = 20  # proposals of the model in place of one that there is already, before chance decides


def require_optuna() -> Any:
    """The package; raises ValueError that says how to get it."""
    try:
        import optuna
    except ImportError:
        raise ValueError("method bayes needs optuna: pip install 'petseg[search]', or use method random") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(folder: Path, spec: Spec, manifest_hash: str) -> Study:
    """The search of a sweep's folder, begun if there is none; the caller holds the sweep's lock.

    Raises ValueError if it is another search: what was found in one space says little of another.
    """
    optuna = require_optuna()
    path = folder / JOURNAL_NAME
    clear_away(path)
    storage = _storage(path)
    try:
        study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
    except KeyError:
        study = optuna.create_study(study_name=STUDY_NAME, storage=storage, direction="maximize")
    wanted = _what_is_searched(study, folder, spec, manifest_hash)
    if "search" not in study.user_attrs:
        study.set_user_attr("search", wanted)
    return study


def peek_study(folder: Path, spec: Spec, manifest_hash: str) -> Study:
    """A copy in memory of what the folder's search has so far; nothing is written."""
    optuna = require_optuna()
    copy = optuna.create_study(direction="maximize")
    if (path := folder / JOURNAL_NAME).exists():
        found = optuna.load_study(study_name=STUDY_NAME, storage=_storage(path))
        _what_is_searched(found, folder, spec, manifest_hash)
        copy.add_trials(found.trials)
    return copy


def _what_is_searched(study: Study, folder: Path, spec: Spec, manifest_hash: str) -> dict[str, Any]:
    """Raises ValueError if the study searches something else."""
    wanted = {
        "space": {name: found.to_dict() for name, found in spec.space.items()},
        "fixed": trial_id(_middle(spec), manifest_hash),
    }
    if study.user_attrs.get("search", wanted) != wanted:
        raise ValueError(
            f"{folder} holds a search with other parameters, fixed values or shards, from which this one cannot learn: "
            "give it another --name"
        )
    return wanted


def _storage(path: Path) -> Any:
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

    lock = JournalFileOpenLock(str(path))  # O_EXCL, which NFS has too
    return JournalStorage(JournalFileBackend(str(path), lock))


def clear_away(path: Path) -> None:
    """What a killed launcher may have left: half a last line, which optuna cannot read past, and its lock."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _middle(spec: Spec) -> RunConfig:
    """The middle of the space, which stands for what is fixed beside it."""
    return cell_of(spec, RunConfig(), {name: found.at(0.5) for name, found in spec.space.items()}).config


def cells_of(study: Study, spec: Spec) -> list[Cell]:
    """What was proposed so far, in order."""
    return [cell_of(spec, RunConfig(), trial.params) for trial in study.trials]


def tell(study: Study, spec: Spec, manifest_hash: str, rows: Mapping[str, TrialStatus]) -> None:
    """Note the ends of trials. One that has failed stays open: it may be tried again, and until then counts as bad.

    rows: by trial id.
    """
    from optuna.trial import TrialState

    storage = study._storage
    for trial, cell in zip(study.trials, cells_of(study, spec), strict=True):
        row = rows.get(trial_id(cell.config, manifest_hash))
        if trial.state != TrialState.RUNNING or row is None or row.dice is None:
            continue
        if row.status == "done":
            study.tell(trial.number, row.dice)
        elif row.status == "pruned":
            if not trial.intermediate_values:
                storage.set_trial_intermediate_value(trial._trial_id, row.epoch, row.dice)
            study.tell(trial.number, state=TrialState.PRUNED)


def ask(study: Study, spec: Spec, manifest_hash: str, count: int) -> list[Cell]:
    """Propose so many further trials, or fewer if the space has no more, and record them."""
    from optuna.trial import TrialState, create_trial

    space = {name: to_optuna(found) for name, found in spec.space.items()}
    taken = {cell.config for cell in cells_of(study, spec)}
    cells: list[Cell] = []
    for _ in range(count):
        cell = _next(study, spec, space, taken)
        if cell is None:
            break
        taken.add(cell.config)
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=cell.drawn,
                distributions=space,
                user_attrs={"trial_id": trial_id(cell.config, manifest_hash)},
            )
        )
        cells.append(cell)
    return cells


def _next(study: Study, spec: Spec, space: dict[str, BaseDistribution], taken: set[RunConfig]) -> Cell | None:
    """By chance at first, then where the model of the results expects most; none that there is already."""
    if len(taken) >= STARTUP and any(trial.state.is_finished() for trial in study.trials):
        for attempt in range(TRIES):
            drawn = sample(study, space, seed_of(spec.seed, len(taken), attempt))
            values = {name: found.settle(drawn[name]) for name, found in spec.space.items()}
            cell = cell_of(spec, RunConfig(), values)
            if cell.config not in taken:
                return cell
    return next((cell for cell in draws(spec, RunConfig()) if cell.config not in taken), None)


def sample(study: Study, space: dict[str, BaseDistribution], seed: int) -> dict[str, Any]:
    """What a tree-structured Parzen estimator proposes (Bergstra et al. 2011; all fields together, as optuna has it).

    Trials that run count as bad ones (constant_liar), or several proposals at a time would be nearly the same. On a
    copy of the study, so that it depends on the seed and the trials alone and a proposal is recorded as a whole.
    """
    optuna = require_optuna()
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=1)
    copy = optuna.create_study(direction="maximize", sampler=sampler)
    copy.add_trials(study.trials)
    return copy.ask(space).params


def seed_of(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def to_optuna(found: Distribution) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if found.kind == "categorical":
        return CategoricalDistribution(found.values)
    if found.kind == "int_uniform":
        return IntDistribution(int(found.low), int(found.high))
    if found.kind == "q_uniform":
        first, last = found.at(0.0), found.at(1 - 2**-53)
        return FloatDistribution(first, last, step=found.q)
    return FloatDistribution(found.low, found.high, log=found.kind == "log_uniform_values")
