"""What people type after jobs/sweep.py, and before the steps of jobs/chain.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jobs.cost.budget import parse_budget
from jobs.design.spec import DEFAULT_SWEEP, Spec, require_name
from jobs.runs.launch import Launch, require_shareable
from slurm.resources import Resources

SEARCH_JOBS = 8  # of a search on Slurm at a time
PACK_FLAG = "--pack"


@dataclass(frozen=True)
class Options:
    """Run a sweep: one job per trial, and only for trials that have no result yet."""

    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)
    sweep: Path = DEFAULT_SWEEP
    """Sweep file in wandb's form: method, metric, parameters."""
    recipe: str = ""
    """Values for all trials: lab, fast, best, or a TOML file of config fields. They replace what the sweep file fixes;
    axes, --axis and --set stay as they are."""
    axis: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further axis, or another one's values, as NAME=VALUE,VALUE; can be repeated."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A fixed value for all trials, as NAME=VALUE; can be repeated."""
    name: str = ""
    """Name of the sweep's folder; by default the file's `name`."""
    dry_run: bool = False
    """Show the trials, what they will cost and the scripts that sbatch would get, and do nothing."""
    all: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With --dry-run: every trial, cell and script, not only the first ones of many."""
    allow_pipe: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With --dry-run: fetch manifests from the addresses, or by the commands, that the sweep file names, although you
    have never submitted them. A sweep that is submitted needs no leave."""
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """slurm submits and returns; local runs processes on this machine until all have ended; debug runs right here."""
    profile: str | None = None
    """What jobs ask for on a cluster, by a name of ~/.config/petseg/profiles.toml; other flags override it."""
    max_parallel: int = 0
    """Jobs of the sweep at a time; 0 = one per GPU or 1 with --cluster local, no limit on slurm. On slurm, jobs that
    would be too many beside those of earlier submissions start when all of those have ended."""
    trials_per_job: int = 1
    """Trials that one job runs one after the other: imports, decoded caches and the wait in the queue are paid once."""
    trials_at_once: int = 1
    """How many of them train side by side, sharing the job's GPU and its CPU cores: small models leave most of a GPU
    idle. The job's memory must fit them all."""
    budget: str = ""
    """Refuse to submit trials that will cost more, such as 20gpuh or 8cpuh."""
    no_probe: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Estimate the cost from earlier trials only, not from a few training steps on this machine."""
    batch: int = 0
    """Trials that a search (method bayes) has proposed and that have not ended, at most: 0 = as many as run at a time,
    8 on slurm without --max-parallel. Fewer learn more from each other."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie; every node must see it."""

    def __post_init__(self) -> None:
        for name, lowest in (("max_parallel", 0), ("trials_per_job", 1), ("trials_at_once", 1), ("batch", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {lowest}")
        if self.all and not self.dry_run:
            raise ValueError("--all is for --dry-run")
        if self.name:
            require_name(self.name, "--name")
        if self.budget:
            parse_budget(self.budget)
        require_shareable(self.cluster, self.resources, self.trials_per_job, self.trials_at_once)

    @property
    def launch(self) -> Launch:
        return Launch(self.cluster, self.resources, self.max_parallel, self.trials_per_job, self.trials_at_once)

    @property
    def search_slots(self) -> int:
        """How many trials of a search are under way at a time."""
        return self.batch or self.launch.settle(SEARCH_JOBS)[1] * self.trials_per_job

    def folder(self, spec: Spec) -> Path:
        """Where the sweep lies."""
        return self.runs_dir / (self.name or spec.name)


@dataclass(frozen=True)
class ChainOptions(Options):
    """Pack, train and report as jobs that wait for each other."""

    steps: Annotated[tuple[Literal["pack", "train", "report"], ...], tyro.conf.Positional] = ()
    """Which ones, in this order."""
    side_partition: str | None = None
    """Partition of the small jobs that pack, submit and report; by default that of the trials."""


def split_words(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...] | None]:
    """The words before --pack, and those after it, which go to shards.pack; None if there is no --pack."""
    if PACK_FLAG not in argv:
        return list(argv), None
    index = argv.index(PACK_FLAG)
    return list(argv[:index]), tuple(argv[index + 1 :])
