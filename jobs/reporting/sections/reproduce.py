"""The command line that runs a trial again, from its config.json."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from typing import Any

from petseg.config import RunConfig
from petseg.config.values import config_from_dict, config_to_dict, flatten, identity_names

_identity_names = functools.cache(identity_names)  # 15 ms, and a report asks once for each trial


def train_flags(tree: Mapping[str, Any]) -> list[str]:
    """The flags of petseg/train.py that differ from the defaults, out of those that make the run's numbers.

    tree: `config` of a config.json. Raises ValueError if it is not a RunConfig of this version.
    """
    config = config_from_dict(tree)
    defaults = _defaults()
    values = flatten(config_to_dict(config))
    numbers = _identity_names()
    return [
        part
        for name, value in values.items()
        if value != defaults[name] and (name in numbers or name == "data.shards")
        for part in _flag(name, value)
    ]


def train_command(tree: Mapping[str, Any]) -> str:
    """The command, quoted for a shell."""
    return shlex.join(["python", "petseg/train.py", *train_flags(tree)])


@functools.cache
def _defaults() -> dict[str, Any]:
    return flatten(config_to_dict(RunConfig()))


def _flag(name: str, value: Any) -> list[str]:
    """tyro's form: dashes for underscores, and `--train.no-test` for a field that is false."""
    group, _, field = name.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return [f"--{group}.{field}" if value else f"--{group}.no-{field}"]
    return [f"--{group}.{field}", str(value)]
