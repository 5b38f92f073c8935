"""A sweep's folder and its trials', read and written without torch.

runs/SWEEP/sweep.json                what the sweep is: axes, shard set, trials in order
           submissions.jsonl         which job ran which trial, and its log
           launch.json               with what resources it was launched last
           logs/                     submitit's
           code/HASH                 the code its jobs run
           trials/ID/config.json ... a run's folder (petseg.run_folder), and state.json
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.spec import Cell, Spec
from petseg.config_values import trial_id
from petseg.pruning import Hyperband, parse_hyperband
from petseg.run_folder import PRUNED_NAME, Pruned, Result, load_pruned, load_result, read_metrics
from shards.manifest import Manifest, write_whole

FORMAT_VERSION = 1
SWEEP_NAME = "sweep.json"
LAUNCH_NAME = "launch.json"
SUBMISSIONS_NAME = "submissions.jsonl"
STATE_NAME = "state.json"


@dataclass(frozen=True)
class Submission:
    """One job that was given one trial, perhaps with others; without job id it was about to be."""

    trial: str
    job_id: str
    cluster: str
    log: str
    intent: str = ""  # the comment of its Slurm array
    place: int = 0  # in that array


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep."""

    id: str
    axes: dict[str, Any]
    folder: Path

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

    def go_on(self) -> None:
        """If it was stopped early, let it be interrupted instead."""
        if self.pruned():
            self.write_state(**self.state() | {"status": "interrupted", "error": "it was stopped early"})
            (self.folder / PRUNED_NAME).unlink()

    def metrics(self) -> list[dict[str, Any]]:
        """Its rows of metrics.jsonl, one per epoch."""
        return read_metrics(self.folder)

    def state(self) -> dict[str, Any]:
        """What it last said: status running, done, pruned, failed, interrupted; host, job_id, error. {} = not begun."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.folder / STATE_NAME).read_text())
        return {}

    def share(self) -> float:
        """Of its job's resources, while as many trials train there as may at once."""
        return 1 / int(self.state().get("at_once", 1))

    def write_state(self, **state: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / STATE_NAME, json.dumps({**state, "time": time.time()}, indent=2) + "\n")


@dataclass(frozen=True)
class Sweep:
    """A sweep as its folder says."""

    folder: Path
    name: str
    axes: dict[str, list[Any]]
    manifest_hash: str
    shards: str
    trials: tuple[Trial, ...]
    early: Hyperband | None = None  # when its trials are stopped early
    method: str = "grid"  # that chose its trials

    def submissions(self) -> dict[str, Submission]:
        """The last job of each trial."""
        return {submission.trial: submission for submission in self.all_submissions()}

    def all_submissions(self) -> list[Submission]:
        """Every job that a trial was given, oldest first."""
        found: list[Submission] = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / SUBMISSIONS_NAME).read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    found.append(Submission(**json.loads(line)))
        return found

    def add_submissions(self, submissions: Iterable[Submission]) -> None:
        """Note them all at once: on a network file system each fsync can take as long as a job takes to start."""
        with (self.folder / SUBMISSIONS_NAME).open("a") as file:
            file.write("".join(json.dumps(asdict(submission)) + "\n" for submission in submissions))
            file.flush()
            os.fsync(file.fileno())  # a launcher that is killed, or its machine, must not forget it


def plan_sweep(spec: Spec, cells: Sequence[Cell], manifest: Manifest, shards: str, folder: Path) -> Sweep:
    """The sweep of these cells, joined with the trials that its folder already holds; writes nothing.

    Raises ValueError if the folder holds a sweep on another shard set, or a grid beside a search.
    """
    trials = {}
    for cell in cells:
        identifier = trial_id(cell.config, manifest.hash)
        trials[identifier] = Trial(identifier, cell.axes, folder / "trials" / identifier)
    axes = {name: list(dict.fromkeys(cell.axes[name] for cell in cells)) for name in spec.names}
    if (folder / SWEEP_NAME).exists():
        old = load_sweep(folder)
        if old.manifest_hash != manifest.hash:
            raise ValueError(
                f"{folder} is a sweep on another shard set ({old.shards}, {old.manifest_hash[:10]}): give this one "
                "another --name"
            )
        if (old.method == "grid") != (spec.method == "grid"):
            raise ValueError(
                f"{folder} holds a sweep by method {old.method}, and a search is no grid's neighbour, whose cells are "
                "compared: give this one another --name"
            )
        trials = {trial.id: trial for trial in old.trials} | trials
        axes = {n: list(dict.fromkeys([*old.axes.get(n, []), *axes.get(n, [])])) for n in {**old.axes, **axes}}
    return Sweep(folder, folder.name, axes, manifest.hash, shards, tuple(trials.values()), spec.early, spec.method)


def save_sweep(sweep: Sweep) -> None:
    sweep.folder.mkdir(parents=True, exist_ok=True)
    content = {
        "format_version": FORMAT_VERSION,
        "name": sweep.name,
        "axes": sweep.axes,
        "manifest_hash": sweep.manifest_hash,
        "shards": sweep.shards,
        "trials": [{"id": trial.id, "axes": trial.axes} for trial in sweep.trials],
        "method": sweep.method,
        **({"early_terminate": sweep.early.to_dict()} if sweep.early else {}),
    }
    write_whole(sweep.folder / SWEEP_NAME, json.dumps(content, indent=2) + "\n")


def load_sweep(folder: Path) -> Sweep:
    """Read sweep.json; raises ValueError if there is none or its format is another."""
    try:
        content = json.loads((folder / SWEEP_NAME).read_text())
    except FileNotFoundError:
        raise ValueError(f"no sweep in {folder}: start one with `python jobs/sweep.py`{_neighbours(folder)}") from None
    if content["format_version"] != FORMAT_VERSION:
        raise ValueError(f"{folder / SWEEP_NAME} has format {content['format_version']}, not {FORMAT_VERSION}")
    trials = (Trial(entry["id"], entry["axes"], folder / "trials" / entry["id"]) for entry in content["trials"])
    return Sweep(
        folder,
        content["name"],
        content["axes"],
        content["manifest_hash"],
        content["shards"],
        tuple(trials),
        parse_hyperband(content["early_terminate"]) if "early_terminate" in content else None,
        content.get("method", "grid"),
    )


def find_sweep(name: str, runs_dir: Path) -> Sweep:
    """The sweep of that name, or in that folder."""
    path = Path(name)
    return load_sweep(path if (path / SWEEP_NAME).exists() else runs_dir / name)


def _neighbours(folder: Path) -> str:
    names = sorted(path.parent.name for path in folder.parent.glob(f"*/{SWEEP_NAME}"))
    return f", or name one of {', '.join(names)}" if names else ""
