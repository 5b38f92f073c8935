"""A run's name in wandb, kept in its folder as run_name.json, which is written when its training starts.

The caller may know more of a run than the run itself, such as the group that it belongs to, and passes in its name.
Whatever uses the folder later (an evaluation, a replay) finds the name there.
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
    """How wandb shows a run; an id always means the same run."""

    id: str
    group: str = ""
    job_type: Literal["train", "eval"] = "train"
    tags: tuple[str, ...] = ()
    label: str = ""  # shown in place of the id, such as `unet elastic seed 0`
    program: str = "petseg/train.py"  # the script that was started
    resend: str = ""  # how the user can send later what wandb lacks, in words; empty = not known

    @property
    def wandb_id(self) -> str:
        """The id in characters that wandb accepts everywhere; a long one keeps its end, which distinguishes runs."""
        return re.sub(r"[^A-Za-z0-9_.-]", "-", self.id)[-MAX_ID:]

    def remedy(self, file_name: str) -> str:
        """Advice for the user if wandb lacks something that this file of the run has."""
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
    """Write run_name.json; a full disk is no error: wandb is only a view."""
    content = {field: value for field, value in asdict(name).items() if field in KEPT}
    with contextlib.suppress(OSError):
        write_whole(folder / RUN_NAME, json.dumps(content, indent=2) + "\n")


def read_name(folder: Path) -> RunName | None:
    """The name that a run was trained under; None if run_name.json is absent or damaged.

    The folder can be a stranger's: the name comes without `resend`, which the user would be told to type.
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
    """The name that a run was trained under; if its folder has none, that of a single run, made of its identity.

    Folders of earlier versions have no name. If such a run was one of a group, the name of a single run means another
    run in wandb: a caller that knows the group must pass the name instead of asking here.
    """
    return read_name(folder) or single_name(load_config(folder, identified=True)["trial_id"], config)
