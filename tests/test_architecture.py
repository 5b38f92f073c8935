"""docs/architecture.md says what the code does: the same rooms in the same order, and files that the code names."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.test_house import COMMANDS, FILES, ORDER, REPOSITORY, ROOMS

PAGE = (REPOSITORY / "docs" / "architecture.md").read_text()
SWEEP, RUN, SHARD_SET = "### A sweep's folder", "### A run's folder", "## What a shard set holds"
SOURCES = "\n".join(path.read_text() for path in FILES)


def section(heading: str) -> str:
    """What stands below a heading, up to the next one."""
    found = re.search(rf"^{re.escape(heading)}.*?\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def first_cells(heading: str) -> list[str]:
    """The first cells of the section's table, without its head."""
    return re.findall(r"^\| (.+?) \|", section(heading), re.MULTILINE)[1:]


def files_of(heading: str) -> list[str]:
    """The names in the first column of a table of files, without a folder's slash."""
    return [name.rstrip("/") for cell in first_cells(heading) for name in re.findall(r"`([^`]+)`", cell)]


def test_the_page_shows_every_wing() -> None:
    assert re.findall(r"^### `(\w+)/`$", PAGE, re.MULTILINE) == list(ROOMS)


@pytest.mark.parametrize("wing", ROOMS)
def test_the_rooms_stand_in_the_order_that_is_checked(wing: str) -> None:
    rooms = [cell.strip("`").removesuffix(".py").rstrip("/") for cell in first_cells(f"### `{wing}/`")]
    assert ["" if room == "root" else room for room in rooms] == [
        room for room in ORDER[wing] if room or wing in ("shards", "slurm")
    ]


@pytest.mark.parametrize("wing", ROOMS)
def test_the_commands_are_listed(wing: str) -> None:
    line = re.search(r"^Commands: (.+)\.$", section(f"### `{wing}/`"), re.MULTILINE)
    assert line
    assert tuple(re.findall(r"`([^`]+)`", line[1])) == COMMANDS[wing]


@pytest.mark.parametrize("heading", [SWEEP, RUN])
def test_the_code_names_every_listed_file(heading: str) -> None:
    for name in files_of(heading):
        first = name.split("/")[0].replace("SPLIT", "{}")
        names = (first, first.removesuffix(".lock"))  # the lock beside a file is named after it
        literals = re.sub(r"\{[^}]*\}", "{}", SOURCES)
        assert any(re.search(rf"[\"/]{re.escape(one)}[\"/]", literals) for one in filter(None, names)), name


def test_a_shard_set_has_the_listed_files(pet_shards: Path) -> None:
    found = [path.name for path in pet_shards.iterdir()]
    patterns = [re.sub("SPLIT|NNNNNN", "*", name) for name in files_of(SHARD_SET) if not name.startswith(".")]
    for pattern in patterns:
        assert any(fnmatchcase(name, pattern) for name in found), pattern
    for name in found:
        assert any(fnmatchcase(name, pattern) for pattern in patterns), name


def is_listed(path: Path) -> bool:
    """Whether the page lists a file of `runs/`, by its path from the sweep's folder on."""
    heading, parts = (RUN, path.parts[2:]) if path.parts[0] == "trials" else (SWEEP, path.parts)
    names = [name.split("/")[0].replace("SPLIT", "*") for name in files_of(heading)]
    return any(fnmatchcase(parts[0], name) for name in names)


def test_a_file_that_nobody_knows_is_not_listed() -> None:
    assert is_listed(Path("trials/0123456789/checkpoints/step-00000010/state.json"))
    assert not is_listed(Path("trials/0123456789/weights.pkl"))
    assert not is_listed(Path("trials.json"))


def test_functions_stand_in_the_files_that_the_page_names() -> None:
    named = re.findall(r"`(\w+)` in `([\w/]+\.py)`", PAGE)
    assert named
    for function, file in named:
        assert re.search(rf"^def {function}\(", (REPOSITORY / file).read_text(), re.MULTILINE), function
