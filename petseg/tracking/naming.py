"""How wandb shows a run, and where the run keeps that: run_name.json, written when its training starts.

Whoever starts a run may know more of it than the run itself, such as the group that it belongs to, and hands in its
name. What is done with the folder later (an evaluation, a replay) finds the name there.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from petseg.config import RunConfig
from petseg.config.values import config_to_dict, flatten
from petseg.run_folder.layout import load_config
from shards.command import without_secrets
from shards.files import build, read_json_object, write_whole

RUN_NAME = "run_name.json"
KEPT = ("id", "group", "tags", "label", "program")  # fields of RunName
MAX_ID = 128  # characters, by wandb's own check


@dataclass(frozen=True)
class RunName:
    """How wandb shows a run; the same id is the same run for ever."""

    id: str
    group: str = ""
    job_type: Literal["train", "eval"] = "train"
    tags: tuple[str, ...] = ()
    label: str = ""  # what people read in place of the id, such as `unet elastic seed 0`
    program: str = "petseg/train.py"  # that was started
    resend: str = ""  # how what wandb lacks is sent later, in words for the user; empty = nothing is known

    @property
    def wandb_id(self) -> str:
        """The id in characters that wandb takes everywhere; of a long one its end is kept, which tells runs apart."""
        return re.sub(r"[^A-Za-z0-9_.-]", "-", self.id)[-MAX_ID:]

    def remedy(self, file_name: str) -> str:
        """What the user is told where wandb lacks something that this file of the run has."""
        return f"{file_name} has everything" + (f", {self.resend}" if self.resend else "")


def single_name(run_id: str, config: RunConfig) -> RunName:
    """The name of a run that belongs to no group."""
    return RunName(id=run_id, tags=(config.model.arch, config.augment.policy), label=label_of(config))


def label_of(config: RunConfig, varied: Iterable[str] = ()) -> str:
    """`unet elastic width 16 seed 0`: architecture and augmentation, the other fields that are varied, and the seed."""
    values, shown = flatten(config_to_dict(config)), ("model.arch", "augment.policy", "train.seed")
    named = [name for name in varied if name in values and name not in shown]
    more = [f"{name.rpartition('.')[2]} {_in_a_label(values[name])}" for name in named]
    return " ".join([config.model.arch, config.augment.policy, *more, f"seed {config.train.seed}"])[:MAX_ID]


def _in_a_label(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return without_secrets(value).rstrip("/").rpartition("/")[2] if isinstance(value, str) else str(value)


def save_name(name: RunName, folder: Path) -> None:
    """A disk that is full must not end a run for this: wandb is a view."""
    content = {field: value for field, value in asdict(name).items() if field in KEPT}
    with contextlib.suppress(OSError):
        write_whole(folder / RUN_NAME, json.dumps(content, indent=2) + "\n")


def read_name(folder: Path) -> RunName | None:
    """The name that a run was trained under; None if run_name.json is absent or damaged.

    The folder can be a stranger's: the name comes without words that the user would be told to type.
    """
    try:
        content = read_json_object(folder / RUN_NAME)
    except (OSError, ValueError):
        return None
    tags = content.pop("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags) or not content.keys() <= set(KEPT):
        return None
    try:
        return replace(build(RunName, content), tags=tuple(tags))
    except TypeError:
        return None


def name_of_run(folder: Path, config: RunConfig) -> RunName:
    """The name that a run was trained under; where the folder does not say, its identity as the name of a single run.

    A folder says nothing if an earlier version trained in it. For a run that was one of a group, the name of a single
    run is another run of wandb's: whoever knows the group hands in the name instead of asking here.
    """
    return read_name(folder) or single_name(load_config(folder, identified=True)["trial_id"], config)
