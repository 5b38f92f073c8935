"""Files whose paths match a pattern with placeholders, such as `images/{split}/{key}.jpg`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PLACEHOLDERS = {"key": ".+", "split": "[^/]+", "class": "[^/]+"}
_TOKEN = re.compile(r"\{(\w*)\}|(\*)|([^{*]+|.)")


@dataclass(frozen=True)
class Pattern:
    """A folder, and what the paths of files below it look like."""

    root: Path
    below: str  # with placeholders
    regex: re.Pattern[str]

    @property
    def names(self) -> frozenset[str]:
        """Its placeholders."""
        return frozenset(self.regex.groupindex)


def parse_pattern(text: str, flag: str) -> Pattern:
    """Raises ValueError for a pattern without {key}, with an unknown placeholder, or one that leads out again."""
    parts = PurePosixPath(text).parts
    first = next((place for place, part in enumerate(parts) if "{" in part or "*" in part), len(parts))
    root, below = Path(*parts[:first]), "/".join(parts[first:])
    if ".." in parts[first:]:
        raise ValueError(f"{flag} {text!r}: no .. may follow a placeholder")
    regex, seen = "", set()
    for name, star, literal in _TOKEN.findall(below):
        if literal:
            regex += re.escape(literal)
        elif star:
            regex += "[^/]*"
        elif name not in PLACEHOLDERS:
            raise ValueError(f"{flag} {text!r}: {{{name}}} is none of {', '.join(f'{{{n}}}' for n in PLACEHOLDERS)}")
        else:
            regex += f"(?P={name})" if name in seen else f"(?P<{name}>{PLACEHOLDERS[name]})"
            seen.add(name)
    if "key" not in seen:
        raise ValueError(f"{flag} {text!r}: it needs {{key}}, which picture and mask have in common")
    return Pattern(root, below, re.compile(regex))


@dataclass(frozen=True)
class Match:
    """A file that a pattern matches."""

    path: Path
    key: str
    split: str  # "" without {split}
    class_name: str  # "" without {class}


def find_files(pattern: Pattern) -> Iterator[Match]:
    """The files that match, sorted by their paths.

    Raises ValueError for a folder that is missing, and for a link that leads out of it.
    """
    if not pattern.root.is_dir():
        raise ValueError(f"{pattern.root.absolute()} is not a folder: {pattern.below} is looked for in it")
    inside = pattern.root.resolve()
    prefix = os.path.join(pattern.root, "")  # noqa: PTH118 - which ends with one slash, for / too
    for path, is_link in sorted(_walk(str(pattern.root))):
        if not (found := pattern.regex.fullmatch(path.removeprefix(prefix))):
            continue
        file = Path(path)
        if is_link and not file.resolve().is_relative_to(inside):
            raise ValueError(f"{path} is a link out of {pattern.root}, to {file.resolve()}: put the file itself there")
        parts = found.groupdict()
        yield Match(file, parts["key"], parts.get("split", ""), parts.get("class", ""))


def _walk(folder: str) -> Iterator[tuple[str, bool]]:
    """All files below a folder, and whether each is a link; folders that are links are left alone."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif not entry.is_symlink():
                yield entry.path, False
            elif not entry.is_dir():
                yield entry.path, True


def links_in(folder: Path) -> dict[str, bool]:
    """The names in a folder, and whether each is a link; empty for a folder that is missing."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_symlink() for entry in entries if not entry.is_dir(follow_symlinks=False)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
