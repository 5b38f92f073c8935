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
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.design.shard_sets import ShardSet
from jobs.runs.trial_state import TrialState, read_state, write_state
from petseg.run_folder.attempts import Attempt, read_attempts
from petseg.run_folder.layout import (
    PRUNED_NAME,
    RESULT_NAME,
    Pruned,
    Result,
    load_pruned,
    load_result,
    read_metrics,
    warn_once,
)
from petseg.training.pruning import Hyperband
from shards.files import (
    NotRegular,
    append,
    build,
    parse_json,
    read_bounded,
)

SWEEP_NAME = "sweep.json"
LAUNCH_NAME = "launch.json"
SUBMISSIONS_NAME = "submissions.jsonl"
CHAIN_NOTES = "chain/jobs.jsonl"  # of jobs.chain, whose first jobs come before the sweep
WITHDRAWN = "withdrawn"  # key of a line of submissions.jsonl, whose value is an intent
TRIALS_NAME = "trials"
SEED_AXIS = "train.seed"
MAX_SUBMISSIONS_BYTES = 256 << 20  # a line has about 300
TRIAL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a folder's name
INTENT = re.compile(r"[a-z]+:[0-9a-f]+")  # names files of logs
JOB_ID = re.compile(r"(\w[\w-]*)?", re.ASCII)  # an argument of squeue and scancel, and no option


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


def _label(axes: Mapping[str, Any]) -> str:
    return " ".join(v if isinstance(v, str) else f"{n.rpartition('.')[2]}={v}" for n, v in axes.items())


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
        return _label(self.axes)

    @property
    def cell(self) -> str:
        """Its place on all axes but the seed: `unet none`."""
        return _label({name: value for name, value in self.axes.items() if name != SEED_AXIS}) or "all trials"

    @property
    def has_ended(self) -> bool:
        """Whether its folder has a result, or says that it was stopped early; neither file is read."""
        return any((self.folder / name).exists() for name in (RESULT_NAME, PRUNED_NAME))

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
