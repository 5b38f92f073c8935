"""Which pictures a prediction is asked for: files, folders, patterns, shards, and a list of paths.

Each has a name, after which its outputs are called. A name is relative, never leaves the folder of the outputs, and
stands for one picture only.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from petseg.data.decode import Pixels
from petseg.inference.pictures import MAX_FILE_BYTES, SUFFIXES, decode_picture, read_file
from shards.files import open_regular
from shards.index import load_index
from shards.manifest import MANIFEST_NAME, load_manifest

STDIN = "-"
TAR = ".tar"


@dataclass(frozen=True)
class Input:
    """A picture to predict."""

    name: str  # of its outputs, without suffix
    path: str
    offset: int = -1  # of its bytes in a tar; -1 = the whole file
    num_bytes: int = 0

    @property
    def shown(self) -> str:
        return self.path if self.offset < 0 else f"{self.path}:{PurePosixPath(self.name).name}"

    def read(self) -> Pixels:
        """(H, W, 3) uint8; raises ValueError in one line, without the file's name."""
        if self.offset < 0:
            return decode_picture(read_file(Path(self.path)))
        if self.num_bytes > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES:,} bytes")
        try:
            with open_regular(Path(self.path)) as file:
                file.seek(self.offset)
                content = file.read(self.num_bytes)
        except OSError as error:
            raise ValueError(error.strerror or "not a regular file") from None
        return decode_picture(content, turned=False)


def list_inputs(words: Sequence[str], lines: Iterable[str], out: Path) -> list[Input]:
    """The pictures that the words mean, each once. lines: of the standard input, for the word `-`.

    What lies in the folder `out` is left out. Raises ValueError for a word that means nothing, and for two pictures
    whose outputs would have one name.
    """
    found: dict[tuple[str, int], Input] = {}
    for word in words:
        own = list(_listed(lines) if word == STDIN else _of_word(word, out.resolve()))
        if not own and word != STDIN:
            raise ValueError(f"{word}: no pictures there ({', '.join(SUFFIXES)}, or shards with their manifest.json)")
        for one in own:
            found.setdefault((os.path.realpath(one.path), one.offset), one)
    by_name: dict[str, Input] = {}
    for one in found.values():
        if (other := by_name.setdefault(one.name, one)) is not one:
            raise ValueError(
                f"{other.shown} and {one.shown} would both be called {one.name}: name a folder above both or a quoted "
                "pattern, rename one, or give each its own --out"
            )
    return list(by_name.values())


def _of_word(word: str, out: Path) -> Iterator[Input]:
    path = Path(word)
    if path.is_dir():
        yield from _of_shard_set(path) if (path / MANIFEST_NAME).exists() else _of_folder(path, out)
    elif path.suffix == TAR and path.exists():
        yield from _of_tar(path)
    elif path.exists():
        yield Input(_name(PurePosixPath(path.name)), str(path))
    elif glob.has_magic(word):
        root = Path(*_before_magic(path.parts))
        for match in sorted(glob.glob(word, recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
            if Path(match).is_file() and not Path(match).resolve().is_relative_to(out):
                yield Input(_name(PurePosixPath(os.path.relpath(match, root))), match)
    else:
        raise ValueError(f"{word}: there is no such file or folder (from {Path.cwd()})")


def _before_magic(parts: Sequence[str]) -> Iterator[str]:
    for part in parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


def _of_folder(folder: Path, out: Path) -> Iterator[Input]:
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(one for one in folders if one[0] != "." and (here / one).resolve() != out)
        for file in sorted(files):
            if file[0] != "." and file.lower().endswith(SUFFIXES):
                path = here / file
                yield Input(_name(PurePosixPath(path.relative_to(folder))), str(path))


def _of_shard_set(folder: Path) -> Iterator[Input]:
    for shard in load_manifest(folder).shards:
        yield from _of_tar(folder / shard.name)


def _of_tar(path: Path) -> Iterator[Input]:
    """The pictures of a shard, by the index beside it; raises ShardSetError without one."""
    for sample in load_index(path.parent, path.name):
        yield Input(sample.key, str(path), sample.jpg.offset, sample.jpg.num_bytes)


def _listed(lines: Iterable[str]) -> Iterator[Input]:
    """A picture per line; its outputs lie as it does below / or, for a relative path, below the present folder."""
    for line in lines:
        path = line.rstrip("\n")
        if path:
            plain = os.path.normpath(path)
            plain = os.path.realpath(path) if ".." in PurePosixPath(plain).parts else plain
            yield Input(_name(PurePosixPath(plain.lstrip("/") or "root")), path)


def _name(relative: PurePosixPath) -> str:
    """The name of a picture's outputs by its relative path, whose parts are no `..`."""
    parts = [part for part in relative.with_suffix("").parts if part not in ("..", "/")]
    return "/".join(parts)
