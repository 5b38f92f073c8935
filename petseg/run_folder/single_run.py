"""The folder of a run that is started by hand.

`python -m petseg.run_folder.single_run` prints it for the flags of petseg/train.py. It does not import torch, so that a
script can quickly ask for the folder before it starts the training.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from petseg.config import RunConfig
from petseg.config.values import trial_id, with_values
from petseg.data.store import read_manifest
from shards.command import OK, run_command
from shards.command.flags import parse


@dataclass(frozen=True)
class Command:
    """Train one model on a shard set. The same command resumes an interrupted run."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    recipe: str = ""
    """Settings to start from, which other flags change: lab, fast, best, or a TOML file of config fields."""
    out: Path | None = None
    """Folder of the run; by default runs/single/ARCH-POLICY-ID, where ID is a hash of the config and the shard set."""
    world_size: int = 0
    """Stop unless this many processes run together; 0 = any number."""

    def folder(self) -> Path:
        if self.out is not None:
            return self.out
        config = self.run
        manifest = read_manifest(config.data.shards, config.data.cache_dir, config.data.cache_gb)
        identifier = trial_id(config, manifest.hash)
        return Path("runs/single") / f"{config.model.arch}-{config.augment.policy}-{identifier}"


def parse_command(argv: Sequence[str] | None, description: str | None) -> Command:
    """The command line; where it names a recipe, the recipe's values are the defaults of the other flags.

    Raises ValueError for words that are not understood, and for a recipe that cannot be read.
    """
    command = parse(Command, argv, description)
    if not command.recipe:
        return command
    from petseg.recipes import read_recipe

    run = with_values(RunConfig(), read_recipe(command.recipe))
    return parse(Command, argv, description, default=Command(run=run))


def main(argv: Sequence[str] | None = None) -> int:
    sys.stdout.write(f"{parse_command(argv, __doc__).folder()}\n")
    return OK


if __name__ == "__main__":
    sys.exit(run_command(main))
