"""Write docs/reference.md: every command with its flags, and every field of the run's config, from the dataclasses.

python docs/reference.py
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from jobs.launch.options import Options as SweepCommand
from petseg.config import RunConfig
from shards.command.flags import join_help
from slurm.resources import Resources

REPOSITORY = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("reference.md")
COMMANDS = {
    "python -m shards.pack": "shards.pack:PackConfig",
    "python -m shards.verify": "shards.verify:VerifyConfig",
    "python -m shards.show": "shards.show:ShowConfig",
    "python -m shards.duplicates": "shards.duplicates:DuplicatesConfig",
    "python petseg/train.py": "petseg.train:Command",
    "python -m petseg.evaluate": "petseg.evaluate:Command",
    "python -m petseg.best": "petseg.best:Command",
    "python -m petseg.compress prune": "petseg.compress:Prune",
    "python -m petseg.predict": "petseg.predict:Command",
    "python -m petseg.demo": "petseg.demo:Command",
    "python -m petseg.export": "petseg.export:Command",
    "python -m petseg.compress int8": "petseg.compress:Int8",
    "python -m petseg.compress measure": "petseg.compress:Measure",
    "python -m petseg.estimate": "petseg.estimate:Command",
    "python -m petseg.augment": "petseg.augment.__main__:Command",
    "python -m petseg.models.weights": "petseg.models.weights:Command",
    "python jobs/sweep.py": "jobs.sweep:Options",
    "python jobs/status.py": "jobs.status:Command",
    "python jobs/logs.py": "jobs.logs:Command",
    "python jobs/retry.py": "jobs.retry:Command",
    "python jobs/cancel.py": "jobs.cancel:Command",
    "python jobs/clean.py": "jobs.clean:Command",
    "python jobs/usage.py": "jobs.usage:Command",
    "python jobs/report.py": "jobs.report:Command",
    "python jobs/best.py": "jobs.best:Command",
    "python jobs/predict.py": "jobs.predict:PredictionOptions",
    "python jobs/sync.py": "jobs.sync:Command",
    "python jobs/doctor.py": "jobs.doctor:Command",
    "python jobs/chain.py": "jobs.chain:ChainOptions",
}
HEADER = """\
# Reference

Every command and every field of a run's config. This page is generated from the dataclasses that make the command
lines (`python docs/reference.py`); a test fails where it is out of date. `--help` of each command shows the same text,
and `-h` only the names and defaults. Every command also takes `--debug`, which adds the traceback to an error.
"""
CONFIG_HEADER = """\
## The run's config

These are the flags of `petseg/train.py`, the names that `--set`, `--axis` and sweep files use (without the dashes), and
the content of a run's `config.json`. A field marked *free* does not change a run's numbers: it is no part of a trial's
identity, and cannot be an axis of a sweep.
"""


RESOURCES_HEADER = """\
## Resources

What each job asks of the cluster: flags of `jobs/sweep.py`, `jobs/doctor.py` and `jobs/chain.py`, and keys of a profile
in `~/.config/petseg/profiles.toml`. They are no part of a trial's identity.
"""
SHARED = {  # dataclass -> where its fields are listed
    RunConfig: "all fields of [the run's config](#the-runs-config), such as `--train.epochs 20`",
    Resources: "the flags of [Resources](#resources)",
}


@dataclasses.dataclass(frozen=True)
class Flag:
    """One row of a table."""

    name: str
    values: str
    default: str
    text: str


def render() -> str:
    """The whole page."""
    parts = [HEADER, *(section(typed, where) for typed, where in COMMANDS.items())]
    parts += [RESOURCES_HEADER, "\n".join([*table("flag", flags_of(Resources)), ""]), CONFIG_HEADER]
    parts += [config_section(field.name) for field in dataclasses.fields(RunConfig)]
    return "\n".join(parts)


def section(typed: str, where: str) -> str:
    module, _, name = where.partition(":")
    command = getattr(import_module(module), name)
    docstring = inspect.getdoc(import_module(module)) or ""
    lead = docstring.partition("\n\n")[0].replace("\n", " ")
    also = [text for shared, text in SHARED.items() if shared in get_type_hints(command).values()]
    flags = list(flags_of(command))
    if command is not SweepCommand and issubclass(command, SweepCommand):
        also = ["all flags of `jobs/sweep.py`"]
        flags = [flag for flag in flags if flag not in list(flags_of(SweepCommand))]
    lines = [f"## `{typed}`", "", lead, ""]
    if also:
        lines += [f"Takes {' and '.join(also)}, and:", ""]
    return "\n".join([*lines, *table("flag", flags), ""])


def config_section(group: str) -> str:
    node = get_type_hints(RunConfig)[group]
    free = {f"{group}.{f.name}" for f in dataclasses.fields(node) if f.metadata.get("identity") is False}
    group_field = next(f for f in dataclasses.fields(RunConfig) if f.name == group)
    everything_free = group_field.metadata.get("identity") is False
    flags = []
    for flag in flags_of(node, f"{group}."):
        name = flag.name.removeprefix("--").replace("-", "_")
        mark = " *free*" if everything_free or name in free else ""
        flags.append(dataclasses.replace(flag, name=name, text=flag.text + mark))
    return "\n".join([f"### {group}", "", *table("field", flags), ""])


def table(head: str, flags: Iterable[Flag]) -> list[str]:
    rows = [f"| {head} | values | default | what it does |", "|---|---|---|---|"]
    rows += [f"| `{flag.name}` | {flag.values} | {flag.default} | {flag.text} |" for flag in flags]
    return [row.replace("|  |", "| |") for row in rows]


def flags_of(node: type, prefix: str = "") -> Iterator[Flag]:
    """The rows of a dataclass and of the dataclasses in it, except those that have a section of their own."""
    join_help(node)
    hints = get_type_hints(node, include_extras=True)
    plain = get_type_hints(node)
    for field in dataclasses.fields(node):
        hint, marks = plain[field.name], metadata_of(hints[field.name])
        given = next((mark.name for mark in marks if getattr(mark, "name", None) is not None), None)
        name = field.name if given is None else given
        if hint in SHARED:
            continue
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from flags_of(hint, f"{prefix}{name}." if name else prefix)
            continue
        shown = f"{prefix}{name}".replace("_", "-")
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        positional = any("positional" in str(mark).lower() for mark in marks) or (
            required and node.__module__.startswith("shards.")
        )
        text = str(field.metadata.get("help", "")).replace("|", "\\|")
        yield Flag(shown.upper() if positional else f"--{shown}", values_of(hint), default_of(field), text)


def metadata_of(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def values_of(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in hint)
    if origin is tuple:
        return f"{values_of(args[0])} ..."
    if origin is dict:
        return "NAME VALUE ..."
    if origin in (typing.Union, types.UnionType):
        return " or ".join(values_of(arg) for arg in args if arg is not type(None))
    return {bool: "yes or no", Path: "path", str: "text"}.get(hint, getattr(hint, "__name__", str(hint)))


def default_of(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return " ".join(f"`{name} {one}`" for name, one in value.items())
    if isinstance(value, Path) and value.is_relative_to(REPOSITORY):
        value = value.relative_to(REPOSITORY)
    return f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(render())
