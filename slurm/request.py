"""What the jobs of one submission share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slurm.resources import Resources


@dataclass(frozen=True)
class Request:
    """What a submission's jobs have in common besides their function."""

    folder: Path  # takes logs and pickles, and must be seen by every node
    resources: Resources  # of each job
    name: str
    max_parallel: int  # jobs at a time
    variables: Mapping[str, str] = field(default_factory=dict)  # added to the environment of the jobs
    announce: Callable[[range], str] | None = None
    """Called with the indices of the items before each array is handed to sbatch; gives the comment that Slurm keeps
    with it, by which the jobs can be found if this process is killed before it learns their ids."""
    withdraw: Callable[[str], None] | None = None
    """Called with that comment if sbatch refuses the array: then no job has it."""
    as_many_as_fit: bool = False
    """Where the site's limit on submitted jobs leaves no room for all, submit the first ones, which may be none,
    instead of raising."""

    def __post_init__(self) -> None:
        if self.max_parallel < 1:
            raise ValueError(f"max_parallel={self.max_parallel}: must be at least 1")
