"""Cluster profiles: what jobs ask for, under a name, from a TOML file.

    [a100]
    partition = "gpu"
    gpus = 8

Keys are the command line's flags without dashes. Profiles ship in `slurm/profiles.toml`; those in
`~/.config/petseg/profiles.toml` ($XDG_CONFIG_HOME is honoured) come on top, and replace one of the same name.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

from slurm.resources import Resources

SHIPPED = Path(__file__).with_name("profiles.toml")
FLAG = "--profile"
TYPE_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def user_file() -> Path:
    """Where the user's own profiles lie, whether there are any or not."""
    config = os.environ.get("XDG_CONFIG_HOME", "")
    # the XDG specification: a path that is not absolute is to be ignored
    folder = Path(config) if Path(config).is_absolute() else Path.home() / ".config"
    return folder / "petseg" / "profiles.toml"


def load_profile(name: str) -> dict[str, object]:
    """The named profile as fields of `Resources`, unset ones left out.

    Raises ValueError, with the file and the choices, for an unknown profile, field or type, and OSError if a file
    that is there cannot be read.
    """
    profiles = _all_profiles()
    if name not in profiles:
        choices = ", ".join(f"{known} ({path})" for known, (path, _) in sorted(profiles.items()))
        raise ValueError(f"no profile {name!r}: choose one of {choices}, or add [{name}] to {user_file()}")
    path, table = profiles[name]
    try:
        fields = _to_fields(table)
        Resources(**fields)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{path}: profile [{name}]: {error}") from error
    return fields


def profile_of(argv: Sequence[str] | None) -> Resources:
    """The resources that the `--profile` among the arguments (sys.argv's if None) stands for, or the defaults.

    Made to be the default that a command line is parsed onto, so that its other flags override the profile:
    `parse(Command, argv, __doc__, default=Command(resources=profile_of(argv)))`, where Command has a field `profile`,
    or tyro would not know the flag. Raises ValueError as `load_profile` does.
    """
    name = _value_of_flag(sys.argv[1:] if argv is None else argv)
    return Resources(**load_profile(name)) if name is not None else Resources()  # type: ignore[arg-type]


def _value_of_flag(argv: Sequence[str]) -> str | None:
    """The last `--profile NAME` or `--profile=NAME`; a missing NAME is left to the parser to complain of."""
    value = None
    for index, word in enumerate(argv):
        if word.startswith(f"{FLAG}="):
            value = word.removeprefix(f"{FLAG}=")
        elif word == FLAG and index + 1 < len(argv):
            value = argv[index + 1]
    return value


def _all_profiles() -> dict[str, tuple[Path, Mapping[str, object]]]:
    """Name -> (file, table), the user's own last."""
    profiles: dict[str, tuple[Path, Mapping[str, object]]] = {}
    for path in (SHIPPED, user_file()):
        for name, table in _load_file(path).items():
            if not isinstance(table, dict):
                raise ValueError(f"{path}: {name} stands outside of any profile: begin with a line such as [a100]")
            profiles[name] = (path, table)
    return profiles


def _load_file(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # some editors put a mark (BOM) before the text
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}, byte {error.start}): save it as UTF-8") from None
    except ValueError as error:  # not TOML
        raise ValueError(f"{path}: {error}") from error


def _to_fields(table: Mapping[str, object]) -> dict[str, object]:
    fields = _field_types()
    known: dict[str, object] = {}
    for key, value in table.items():
        flag = key.replace("_", "-")
        if flag not in fields:
            raise ValueError(f"unknown field {key!r}: choose from {', '.join(fields)}")
        field, wanted = fields[flag]
        # a whole number is a valid float; bool, although a subclass of int in Python, is no valid int
        is_right = type(value) is wanted or (wanted is float and type(value) is int)
        if not is_right:
            raise ValueError(f"{key} = {value!r}: must be {TYPE_NAMES[wanted]}")
        if field in known:
            raise ValueError(f"{key}: given twice, once with a dash and once with an underscore")
        known[field] = value
    return known


def _field_types() -> dict[str, tuple[str, type]]:
    """Flag without its dashes -> (field of Resources, type); None, where a field may be unset, is left out."""
    hints = typing.get_type_hints(Resources, include_extras=True)
    types_by_flag: dict[str, tuple[str, type]] = {}
    for field in dataclasses.fields(Resources):
        hint, name = hints[field.name], field.name
        if typing.get_origin(hint) is typing.Annotated:  # a flag of another name than the field's
            hint, *extras = typing.get_args(hint)
            name = next((extra.name for extra in extras if getattr(extra, "name", None)), name)
        if isinstance(hint, types.UnionType):
            hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
        types_by_flag[name.replace("_", "-")] = (field.name, hint)
    return types_by_flag
