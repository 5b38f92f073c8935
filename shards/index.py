"""The byte-offset index of one shard, `NAME.index.json`: where each member of each sample lies, and its CRC-32."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shards.cause import ShardSetError
from shards.files import NotRegular, decode_json, read_regular, write_whole

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
MEMBER_SUFFIXES = ("jpg", "png", "json")  # in this order within a sample


@dataclass(frozen=True)
class Member:
    """Where the bytes of one file lie within a shard, and their CRC-32 (zlib.crc32)."""

    offset: int
    num_bytes: int
    crc32: int


NO_MEMBER = Member(0, 0, 0)  # a tar begins with a header, so no member's bytes lie at its start


@dataclass(frozen=True)
class Sample:
    """Where the three members of one sample lie within its shard; `json` may be NO_MEMBER."""

    key: str
    jpg: Member
    png: Member
    json: Member

    def members(self) -> tuple[tuple[str, Member], ...]:
        """(name within the tar, member) of its files, in the tar's order."""
        files = ((f"{self.key}.{suffix}", getattr(self, suffix)) for suffix in MEMBER_SUFFIXES)
        return tuple((name, member) for name, member in files if member != NO_MEMBER)


def index_name(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.index.json"


def render_index(samples: Iterable[Sample]) -> str:
    """The byte-offset index of one shard: rows of [key, then offset, size and CRC-32 of jpg, png, json]."""
    rows = [
        [s.key, *(number for m in (s.jpg, s.png, s.json) for number in (m.offset, m.num_bytes, m.crc32))]
        for s in samples
    ]
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    return f"[\n{lines}\n]\n"


def save_index(samples: Iterable[Sample], folder: Path, shard: str) -> str:
    """Write the byte-offset index of one shard and return its sha256."""
    content = render_index(samples)
    write_whole(folder / index_name(shard), content)
    return hashlib.sha256(content.encode()).hexdigest()


def load_index(folder: Path | str, shard: str) -> list[Sample]:
    """Read the byte-offset index of one shard; raises ShardSetError that names a missing or damaged file."""
    path = Path(folder) / index_name(shard)
    try:
        return [_sample_of_row(*row) for row in decode_json(read_regular(path, follow=False))]
    except FileNotFoundError:
        raise ShardSetError(f"{path} is missing: pack the set again") from None
    except NotRegular as error:
        raise ShardSetError(str(error)) from None
    except (ValueError, TypeError) as error:
        raise ShardSetError(f"{path} is damaged ({error}): pack the set again") from None


def _sample_of_row(key: str, *numbers: int) -> Sample:
    if not isinstance(key, str) or len(numbers) != 9 or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f"row of {key!r}")
    if not KEY_PATTERN.fullmatch(key):  # readers name files after keys
        raise ValueError(f"row of {key!r}: the key must match {KEY_PATTERN.pattern}")
    return Sample(key, Member(*numbers[0:3]), Member(*numbers[3:6]), Member(*numbers[6:9]))
