"""Finds the entries of a large JSON file without parsing it as a whole."""

from __future__ import annotations

import mmap
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.files import open_regular

MAX_ENTRY_BYTES = 64 << 20  # of one annotation or picture
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]')
_KEY = re.compile(rb'\s*,?\s*"((?:[^"\\]|\\.)*)"\s*:\s*')
_END = re.compile(rb"\s*\}")
_SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*"|[^,{}\[\]\s]+')


@contextmanager
def map_file(path: Path) -> Iterator[mmap.mmap]:
    """A regular file's bytes, mapped into memory; raises ValueError if it is empty, and as `open_regular`."""
    with open_regular(path) as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ValueError("it is empty") from None
        with data:
            yield data


def find_entries(data: mmap.mmap, sections: Collection[str]) -> Iterator[tuple[str, int, int]]:
    """(section, start, end) of each object in these top-level lists; raises ValueError for what is no such JSON."""
    place = data.find(b"{") + 1
    if not place:
        raise ValueError("it holds no object")
    while found := _KEY.match(data, place):
        section, place = found[1].decode(), found.end()
        if section in sections:
            if data[place : place + 1] != b"[":
                raise ValueError(f"{section} is no list")
            for start, end in _objects(data, place):
                yield section, start, end
        place = _end_of(data, place)
    if not _END.match(data, place):
        raise ValueError("it is cut short")


def _objects(data: mmap.mmap, start: int) -> Iterator[tuple[int, int]]:
    """The places of the objects in the list that begins at `start`."""
    depth, first = 0, 0
    for token in _TOKEN.finditer(data, start):
        bracket = token[0]
        if bracket in (b"{", b"["):
            depth += 1
            if depth == 2:
                first = token.start()
        elif bracket in (b"}", b"]"):
            depth -= 1
            if depth == 1:
                if token.end() - first > MAX_ENTRY_BYTES:
                    raise ValueError(f"an entry has {token.end() - first:,} bytes")
                yield first, token.end()
            if depth == 0:
                return
    raise ValueError("it is cut short")


def _end_of(data: mmap.mmap, start: int) -> int:
    """The end of the value that begins at `start`."""
    if data[start : start + 1] not in (b"{", b"["):
        found = _SCALAR.match(data, start)
        if not found:
            raise ValueError(f"no value at byte {start}")
        return found.end()
    depth = 0
    for token in _TOKEN.finditer(data, start):
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(token[0], 0)
        if depth == 0:
            return int(token.end())
    raise ValueError("it is cut short")
