"""Cells that have become trials: each has an id and a folder, and belongs to a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.design.cells import Cells
from jobs.design.expansion import Cell
from jobs.design.shard_sets import SHARDS, ShardSet, ShardSets
from jobs.design.spec import Spec
from jobs.runs.sweep_file import load_sweep, save_sweep
from jobs.runs.trial import SWEEP_NAME, TRIALS_NAME, Sweep, Trial
from petseg.config import RunConfig
from petseg.config.values import weights_files, with_values
from petseg.data.store import is_remote
from petseg.run_folder.layout import claim_folder


@dataclass(frozen=True)
class Trials:
    """The trials of a sweep that the command concerns."""

    sweep: Sweep
    cells: Mapping[str, Cell]  # by trial id
    sets: ShardSets

    def __iter__(self) -> Iterator[Trial]:
        return iter([trial for trial in self.sweep.trials if trial.id in self.cells])

    def only(self, trials: Iterable[Trial]) -> Trials:
        """Some of them."""
        return replace(self, cells={trial.id: self.cells[trial.id] for trial in trials})


def plan_trials(cells: Cells, folder: Path, meant: Iterable[Cell] | None = None) -> Trials:
    """The trials of the cells in the sweep's folder; writes nothing, and raises ValueError as `plan_sweep`.

    meant: those that may be submitted now, by default all
    """
    sweep = plan_sweep(cells.spec, cells.cells, cells.sets, folder)
    return Trials(sweep, cells.sets.by_id(cells.cells if meant is None else meant), cells.sets)


def write_trials(trials: Trials) -> None:
    """Write sweep.json, and the config.json of each chosen trial; trials that were stopped early may resume.

    Raises ValueError for a folder that holds another run.
    """
    sweep = trials.sweep
    save_sweep(sweep)
    for trial in trials:
        if sweep.early_stopping is None:
            trial.resume_pruned()
        claim_folder(with_absolute_paths(trials.cells[trial.id].config), sweep.hash_of(trial), trial.folder)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Name shards and weights by absolute paths: a job starts in another folder, that of its snapshot of the code."""
    paths = weights_files(config)
    if not is_remote(config.data.shards):
        paths |= {"data.shards": config.data.shards}
    return with_values(config, {name: str(Path(path).absolute()) for name, path in paths.items()})


def plan_sweep(spec: Spec, cells: Sequence[Cell], sets: ShardSets, folder: Path) -> Sweep:
    """The sweep of these cells, joined with the trials that its folder already holds; writes nothing.

    Raises ValueError if the folder holds a sweep on another shard set (unless data.shards is an axis), or a grid
    beside a search, and if cells that differ are the same trial.
    """
    shards, manifest = sets.first
    trials = {
        identifier: Trial(identifier, cell.axes, folder / TRIALS_NAME / identifier, sets.of(cell.config).hash)
        for identifier, cell in sets.by_id(cells).items()
    }
    axes = {name: list(dict.fromkeys(cell.axes[name] for cell in cells)) for name in spec.names}
    first, notes = manifest.hash, {one.hash: one for one in sets.notes}
    if (folder / SWEEP_NAME).exists():
        old = load_sweep(folder)
        _require_same_sets(old, sets, spec)
        if (old.method == "grid") != (spec.method == "grid"):
            raise ValueError(
                f"{folder} holds a sweep by method {old.method}, and a search is no grid's neighbour, whose cells are "
                "compared: give this one another --name"
            )
        kept = (replace(trial, manifest_hash=old.hash_of(trial)) for trial in old.trials)
        trials = {trial.id: trial for trial in kept} | trials
        axes = {n: list(dict.fromkeys([*old.axes.get(n, []), *axes.get(n, [])])) for n in {**old.axes, **axes}}
        notes = {one.hash: one for one in old.shard_sets} | notes
        if old.manifest_hash != first:
            first, shards = old.manifest_hash, old.shards
    if len(notes) > 1:
        trials = {i: _on_the_axis(trial, notes) for i, trial in trials.items()}
        axes[SHARDS] = list(dict.fromkeys(trial.axes[SHARDS] for trial in trials.values()))
    chosen = (replace(t, manifest_hash="") if t.manifest_hash == first else t for t in trials.values())
    sets_noted = tuple(notes.values())
    return Sweep(folder, folder.name, axes, first, shards, tuple(chosen), spec.early_stopping, spec.method, sets_noted)


def _require_same_sets(old: Sweep, sets: ShardSets, spec: Spec) -> None:
    """Raises ValueError for a set that the folder's sweep does not have, unless data.shards is an axis."""
    for location, manifest in sets.manifests.items():
        if manifest.hash in old.hashes:
            continue
        replaced = next((one for one in old.shard_sets if one.location == location), None)
        if replaced or SHARDS not in spec.names:
            known = replaced or ShardSet(old.manifest_hash, old.shards)
            raise ValueError(
                f"{old.folder} is a sweep on another shard set ({known.location}, {known.hash[:10]}): give this "
                "one another --name"
            )


def _on_the_axis(trial: Trial, notes: Mapping[str, ShardSet]) -> Trial:
    """The trial with its shard set among its axes, which it lacks if the sweep had only one set at first."""
    if SHARDS in trial.axes:
        return trial
    noted = notes.get(trial.manifest_hash)
    return replace(trial, axes={**trial.axes, SHARDS: noted.location if noted else trial.manifest_hash})
