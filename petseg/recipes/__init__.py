"""Settings of a run or a sweep by name: TOML files of config fields, from which flags may depart."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from petseg.config import RunConfig
from petseg.config.values import flatten, typed_value, with_values
from shards.files import read_text_file

FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """The recipes that come with petseg."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The config fields that a recipe sets: one of petseg's by name, or a TOML file by its path.

    Raises ValueError for an unknown name, a file that is not TOML, and fields or values that a config has not.
    """
    is_file = name.endswith(".toml")
    path = Path(name) if is_file else FOLDER / f"{name}.toml"
    if not is_file and name not in recipe_names():
        raise ValueError(f"--recipe {name!r}: choose one of {', '.join(recipe_names())}, or a file that ends in .toml")
    try:
        values = flatten(tomllib.loads(read_text_file(path, "the recipe")))
        typed = {field: typed_value(field, value) for field, value in values.items()}
        with_values(RunConfig(), typed)
    except FileNotFoundError:
        raise ValueError(f"--recipe {name!r}: there is no such file in {Path.cwd()}") from None
    except ValueError as error:  # tomllib's too
        raise ValueError(f"{path}: {error}") from error
    return typed
