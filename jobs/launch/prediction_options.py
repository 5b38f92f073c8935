"""What people type after jobs/predict.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jobs.runs.launch import Launch
from petseg.inference.many.wanted import Wanted
from slurm.resources import Resources

PARTS = 8


@dataclass(frozen=True)
class PredictionOptions:
    """Predict many pictures by jobs that share them."""

    sweep: Annotated[str, tyro.conf.Positional] = ""
    """Name of the sweep whose winner predicts, or its folder; or name a file with --weights."""
    source: tuple[str, ...] = ()
    """Pictures, folders, quoted patterns, shards (.tar) or folders of shard sets, as petseg.predict takes them."""
    out: Path = Path("predicted")
    """Folder for the masks and what else is asked for; every node must see it."""
    weights: tuple[Path, ...] = ()
    """The weights file; of several, the class probabilities are averaged."""
    wanted: Annotated[Wanted, tyro.conf.arg(name="")] = field(default_factory=Wanted)
    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)
    parts: int = PARTS
    """Jobs that share the pictures which are missing, in nearly equal parts of neighbours."""
    again: bool = False
    """Try pictures again that could not be read."""
    dry_run: bool = False
    """Show what would be submitted and the script that sbatch would get, and do nothing."""
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """slurm submits and returns; local runs processes on this machine until all have ended; debug runs right here."""
    profile: str | None = None
    """What jobs ask for on a cluster, by a name of ~/.config/petseg/profiles.toml; other flags override it."""
    max_parallel: int = 0
    """Jobs at a time; 0 = one per GPU or 1 with --cluster local, no limit on slurm."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie."""

    def __post_init__(self) -> None:
        for name, lowest in (("parts", 1), ("max_parallel", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {lowest}")
        if self.resources.processes > 1:
            raise ValueError(
                f"a part is predicted by one process, and these jobs have {self.resources.processes}: take --gpus 1 "
                "(or 0) and --nodes 1, and more --parts"
            )

    def require_complete(self) -> None:
        """Raises ValueError without pictures, and unless either a sweep or weights are named."""
        if not self.source:
            raise ValueError("name the pictures with --source: a folder of pictures, or of shards")
        if bool(self.sweep) == bool(self.weights):
            raise ValueError("name either a sweep, whose winner predicts, or a file with --weights")

    @property
    def launch(self) -> Launch:
        return Launch(self.cluster, self.resources, self.max_parallel, 1)
