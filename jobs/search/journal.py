"""The journal of a Bayesian search in the sweep's folder, written by optuna, and the sampler that uses it.

runs/SWEEP/search.journal has one line for each proposed trial and one for its end. A proposal is written as a whole
before it is used; from then on it is a trial like any other. Only the launcher that holds the sweep's lock writes here,
and it removes what a killed launcher left (half a line, the journal's own lock). Optuna's tools can read the file, such
as `optuna-dashboard runs/SWEEP/search.journal`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.design.expansion import STARTUP, Cell, cell_of, draws
from jobs.design.space import Distribution
from jobs.design.spec import Spec
from jobs.state.trial_status import TrialStatus
from petseg.config import RunConfig
from petseg.config.values import trial_id

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

JOURNAL_NAME = "search.journal"
STUDY_NAME = "petseg"
TRIES = 20  # proposals of the model that exist already, before a random trial is taken


def require_optuna() -> Any:
    """The package optuna; raises ValueError with the command that installs it."""
    try:
        import optuna
    except ImportError:
        raise ValueError("method bayes needs optuna: pip install 'petseg[search]', or use method random") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(folder: Path, spec: Spec, manifest_hash: str) -> Study:
    """Open the search of a sweep's folder, or create it; the caller holds the sweep's lock.

    Raises ValueError if the folder holds another search, because results do not carry over to another space.
    """
    optuna = require_optuna()
    path = folder / JOURNAL_NAME
    clear_away(path)
    storage = _storage(path)
    try:
        study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
    except KeyError:
        study = optuna.create_study(study_name=STUDY_NAME, storage=storage, direction="maximize")
    wanted = require_same_search(study, folder, spec, manifest_hash)
    if "search" not in study.user_attrs:
        study.set_user_attr("search", wanted)
    return study


def peek_study(folder: Path, spec: Spec, manifest_hash: str) -> Study:
    """A copy in memory of the folder's search; nothing is written."""
    optuna = require_optuna()
    copy = optuna.create_study(direction="maximize")
    if (path := folder / JOURNAL_NAME).exists():
        study = optuna.load_study(study_name=STUDY_NAME, storage=_storage(path))
        require_same_search(study, folder, spec, manifest_hash)
        copy.add_trials(study.trials)
    return copy


def require_same_search(study: Study, folder: Path, spec: Spec, manifest_hash: str) -> dict[str, Any]:
    """A description of the search; raises ValueError if the study has another one."""
    wanted = {
        "space": {name: distribution.to_dict() for name, distribution in spec.space.items()},
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
    """Remove what a killed launcher may have left: half a last line, which stops optuna, and the journal's lock."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _middle(spec: Spec) -> RunConfig:
    """The config in the middle of the space, which identifies the fixed values."""
    return cell_of(spec, RunConfig(), {name: distribution.at(0.5) for name, distribution in spec.space.items()}).config


def cells_of(study: Study, spec: Spec) -> list[Cell]:
    """The proposed trials, in order."""
    return [cell_of(spec, RunConfig(), trial.params) for trial in study.trials]


def tell(study: Study, spec: Spec, manifest_hash: str, rows: Mapping[str, TrialStatus]) -> None:
    """Record the ends of trials. A failed trial stays open, since it may be retried, and counts as bad until then.

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
    """Propose `count` further trials, or fewer if the space has no more, and record them."""
    from optuna.trial import TrialState, create_trial

    space = {name: to_optuna(distribution) for name, distribution in spec.space.items()}
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
    """The next new trial: random at first, then the one of which the model expects most."""
    if len(taken) >= STARTUP and any(trial.state.is_finished() for trial in study.trials):
        for attempt in range(TRIES):
            drawn = sample(study, space, seed_of(spec.seed, len(taken), attempt))
            values = {name: distribution.settle(drawn[name]) for name, distribution in spec.space.items()}
            cell = cell_of(spec, RunConfig(), values)
            if cell.config not in taken:
                return cell
    return next((cell for cell in draws(spec, RunConfig()) if cell.config not in taken), None)


def sample(study: Study, space: dict[str, BaseDistribution], seed: int) -> dict[str, Any]:
    """A proposal of optuna's multivariate tree-structured Parzen estimator (Bergstra et al. 2011).

    Running trials count as bad (constant_liar), because several proposals at a time would otherwise be nearly the same.
    The sampler works on a copy of the study, so that a proposal depends only on the seed and the trials.
    """
    optuna = require_optuna()
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=1)
    copy = optuna.create_study(direction="maximize", sampler=sampler)
    copy.add_trials(study.trials)
    return copy.ask(space).params


def seed_of(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def to_optuna(distribution: Distribution) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if distribution.kind == "categorical":
        return CategoricalDistribution(distribution.values)
    if distribution.kind == "int_uniform":
        return IntDistribution(int(distribution.low), int(distribution.high))
    if distribution.kind == "q_uniform":
        first, last = distribution.at(0.0), distribution.at(1 - 2**-53)
        return FloatDistribution(first, last, step=distribution.q)
    return FloatDistribution(distribution.low, distribution.high, log=distribution.kind == "log_uniform_values")
