"""A sweep's folder and its trials', read and written without torch.

runs/SWEEP/sweep.json                what the sweep is: axes, shard set, trials in order
           submissions.jsonl         which job ran which trial, and its log
           launch.json               with what resources it was launched last
           logs/                     submitit's
           code/HASH                 the code its jobs run
           trials/ID/config.json ... a run's folder (petseg.run_folder.layout), and state.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.design.early_terminate import hyperband_entry, parse_hyperband
from jobs.design.shard_sets import SHARDS, ShardSet, ShardSets
from jobs.design.spec import Cell, Spec
from jobs.runs.trial_state import TrialState, read_state, write_state
from petseg.run_folder.attempts import Attempt, read_attempts
from petseg.run_folder.layout import PRUNED_NAME, Pruned, Result, load_pruned, load_result, read_metrics, warn_once
from petseg.training.pruning import Hyperband
from shards.command import typed
from shards.files import (
    NotRegular,
    append,
    build,
    parse_json,
    read_bounded,
    read_json_object,
    require_own_folder,
    write_whole,
)

FORMAT_VERSION = 1
SWEEP_NAME = "sweep.json"
LAUNCH_NAME = "launch.json"
SUBMISSIONS_NAME = "submissions.jsonl"
CHAIN_NOTES = "chain/jobs.jsonl"  # of jobs.chain, whose first jobs come before the sweep
WITHDRAWN = "withdrawn"  # key of a line of submissions.jsonl, whose value is an intent
TRIALS_NAME = "trials"
MAX_SUBMISSIONS_BYTES = 256 << 20  # a line has about 300
TRIAL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a folder's name
INTENT = re.compile(r"[a-z]+:[0-9a-f]+")  # names files of logs
JOB_ID = re.compile(r"(\w[\w-]*)?", re.ASCII)  # an argument of squeue and scancel, and no option
WRITTEN_ANEW = "delete it and run the same sweep again, which writes it anew and keeps the trials"


@dataclass(frozen=True)
class Submission:
    """One job that was given one trial, perhaps with others; without job id it was about to be."""

    trial: str
    job_id: str
    cluster: str
    log: str
    intent: str = ""  # the comment of its Slurm array
    place: int = 0  # in that array

    def __post_init__(self) -> None:
        if not (TRIAL_ID.fullmatch(self.trial) and JOB_ID.fullmatch(self.job_id) and self.place >= 0):
            raise ValueError(f"a submission of trial {self.trial!r} as job {self.job_id!r} at {self.place}")
        if self.intent and not INTENT.fullmatch(self.intent):
            raise ValueError(f"a submission with intent {self.intent!r}")


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep."""

    id: str
    axes: dict[str, Any]
    folder: Path
    manifest_hash: str = ""  # of its shard set, where that is another than the sweep's first

    @property
    def label(self) -> str:
        """Its place on the axes, such as `unet none seed=0`."""
        parts = (f"{n.rpartition('.')[2]}={v}" if not isinstance(v, str) else v for n, v in self.axes.items())
        return " ".join(parts)

    def result(self) -> Result | None:
        return load_result(self.folder)

    def pruned(self) -> Pruned | None:
        """Where it was stopped early, if it was."""
        return load_pruned(self.folder)

    def resume_pruned(self) -> None:
        """Turn a trial that was stopped early into an interrupted one, which may resume."""
        if self.pruned():
            self.write_state(replace(self.state(), status="interrupted", error="it was stopped early"))
            (self.folder / PRUNED_NAME).unlink()

    def metrics(self) -> list[dict[str, Any]]:
        """Its rows of metrics.jsonl, one per epoch."""
        return read_metrics(self.folder)

    def attempts(self) -> list[Attempt]:
        """Its starts, oldest first; none where lives.json is damaged, which the log says."""
        try:
            return read_attempts(self.folder)
        except (ValueError, OSError) as error:
            warn_once(f"left out: {error}")
            return []

    def state(self) -> TrialState:
        """The state that a job last wrote."""
        return read_state(self.folder)

    def write_state(self, state: TrialState) -> None:
        write_state(state, self.folder)

    def share(self) -> float:
        """The trial's share of its job's resources while the job trains as many trials as it may at once."""
        return 1 / max(1, self.state().at_once)


@dataclass(frozen=True)
class Sweep:
    """A sweep as its folder says."""

    folder: Path
    name: str
    axes: dict[str, list[Any]]
    manifest_hash: str  # of its first shard set, and the only one unless data.shards is an axis
    shards: str
    trials: tuple[Trial, ...]
    early_stopping: Hyperband | None = None  # when its trials are stopped early
    method: str = "grid"  # that chose its trials
    shard_sets: tuple[ShardSet, ...] = ()

    def hash_of(self, trial: Trial) -> str:
        """The manifest hash of the shard set that a trial is measured on."""
        return trial.manifest_hash or self.manifest_hash

    @property
    def hashes(self) -> tuple[str, ...]:
        """The manifest hash of each of its shard sets."""
        return tuple(dict.fromkeys([self.manifest_hash, *(one.hash for one in self.shard_sets)]))

    def submissions(self) -> dict[str, Submission]:
        """The last job of each trial."""
        return {submission.trial: submission for submission in self.all_submissions()}

    def all_submissions(self) -> list[Submission]:
        """Every job of every trial, oldest first; skips damaged lines, such as half a line after a kill.

        A job's log is looked for by its name in the sweep's own folder of logs, whatever folder a line names.
        """
        path, logs = self.folder / SUBMISSIONS_NAME, self.folder.absolute() / "logs"
        try:
            lines = read_bounded(path, MAX_SUBMISSIONS_BYTES).splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except NotRegular as error:
            raise ValueError(str(error)) from None
        submissions: list[Submission] = []
        for number, line in enumerate(lines, start=1):
            try:
                row = parse_json(line, path)
                if isinstance(row, dict) and WITHDRAWN in row:
                    submissions = [one for one in submissions if one.job_id or one.intent != row[WITHDRAWN]]
                    continue
                one = build(Submission, row)
                submissions.append(replace(one, log=str(logs / Path(one.log).name)) if Path(one.log).name else one)
            except (ValueError, TypeError) as error:
                if number < len(lines) or len(lines) == 1:  # else a kill may have cut the last one short
                    warn_once(f"{path}:{number} is damaged ({error}), and left out")
        return submissions

    def add_submissions(self, submissions: Iterable[Submission]) -> None:
        """Record them in one write: on a network file system each fsync can take as long as a job takes to start."""
        self._note("".join(json.dumps(asdict(submission)) + "\n" for submission in submissions))

    def withdraw_intent(self, intent: str) -> None:
        """Record that sbatch refused the jobs with this comment: there are none."""
        self._note(json.dumps({WITHDRAWN: intent}) + "\n")

    def _note(self, lines: str) -> None:
        append(self.folder / SUBMISSIONS_NAME, lines)  # a killed launcher, or its machine, must not forget it


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


def save_sweep(sweep: Sweep) -> None:
    sweep.folder.mkdir(parents=True, exist_ok=True)
    content = {
        "format_version": FORMAT_VERSION,
        "name": sweep.name,
        "axes": sweep.axes,
        "manifest_hash": sweep.manifest_hash,
        "shards": sweep.shards,
        "trials": [_trial_entry(trial) for trial in sweep.trials],
        "method": sweep.method,
        **({"early_terminate": hyperband_entry(sweep.early_stopping)} if sweep.early_stopping else {}),
        **({"shard_sets": [one.content() for one in sweep.shard_sets]} if sweep.shard_sets else {}),
    }
    write_whole(sweep.folder / SWEEP_NAME, json.dumps(content, indent=2) + "\n")


def _trial_entry(trial: Trial) -> dict[str, Any]:
    of_its_own = {"manifest_hash": trial.manifest_hash} if trial.manifest_hash else {}
    return {"id": trial.id, "axes": trial.axes, **of_its_own}


def load_sweep(folder: Path) -> Sweep:
    """Read sweep.json; raises ValueError if there is none, if it is damaged, or if its format is another.

    The folder can be a stranger's: a trial is a folder of its own in `trials`, and nothing else.
    """
    path = folder / SWEEP_NAME
    try:
        content = read_json_object(path, WRITTEN_ANEW)
    except (FileNotFoundError, NotADirectoryError):
        if (folder / CHAIN_NOTES).is_file():
            look = typed("jobs/status.py", folder)
            raise ValueError(f"no trials in {folder} yet: `{look}` says where its chain stands") from None
        raise ValueError(
            f"no sweep in {folder.absolute()}: start one with `python jobs/sweep.py`{_neighbours(folder)}"
        ) from None
    except NotRegular as error:
        raise ValueError(str(error)) from None
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format {version!r}, not {FORMAT_VERSION}: open it with the petseg that wrote it")
    try:
        return _sweep_of(folder, content)
    except (KeyError, TypeError, AttributeError, ValueError, NotRegular) as error:
        raise ValueError(f"{path} is damaged ({error!r}): {WRITTEN_ANEW}") from None


def _sweep_of(folder: Path, content: Mapping[str, Any]) -> Sweep:
    """The sweep of a sweep.json; raises KeyError, TypeError, AttributeError or ValueError for damaged content."""
    require_own_folder(folder / TRIALS_NAME)
    noted = content.get("shard_sets") or [{"hash": content["manifest_hash"], "location": content["shards"]}]
    return Sweep(
        folder,
        _text(content["name"]),
        {name: [_value(one) for one in values] for name, values in content["axes"].items()},
        _text(content["manifest_hash"]),
        _text(content["shards"]),
        tuple(_trial_of(folder, **entry) for entry in content["trials"]),
        parse_hyperband(content["early_terminate"]) if "early_terminate" in content else None,
        _text(content.get("method", "grid")),
        tuple(build(ShardSet, one) for one in noted),
    )


def _trial_of(folder: Path, id: str, axes: dict[str, Any], manifest_hash: str = "") -> Trial:
    if not TRIAL_ID.fullmatch(id):
        raise ValueError(f"a trial has the id {id!r}: it must match {TRIAL_ID.pattern}")
    own_folder = folder / TRIALS_NAME / id
    require_own_folder(own_folder)
    return Trial(id, {name: _value(one) for name, one in axes.items()}, own_folder, _text(manifest_hash))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    return value


def _value(value: Any) -> Any:
    """A value of an axis, by which trials are distinguished and sorted."""
    if not isinstance(value, str | float | bool | None) and not (type(value) is int and abs(value) < 2**63):
        raise TypeError(f"{value!r:.80} is no value of an axis")
    return value


def find_sweep(name: str, runs_dir: Path) -> Sweep:
    """The sweep of that name, or in that folder."""
    path = Path(name)
    return load_sweep(path if (path / SWEEP_NAME).exists() else runs_dir / name)


def _neighbours(folder: Path) -> str:
    names = sorted(path.parent.name for path in folder.parent.glob(f"*/{SWEEP_NAME}"))
    return f", or name one of {', '.join(names)}" if names else ""
