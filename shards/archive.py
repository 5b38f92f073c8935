"""The tar file of one shard: written the same byte for byte on every machine, and read even where it is damaged."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from shards.files import named
from shards.index import Member, Sample, save_index
from shards.manifest import Shard

BLOCK = tarfile.BLOCKSIZE
END_OF_ARCHIVE = bytes(2 * BLOCK)
SIZE_AT, CHECKSUM_AT, MAGIC_AT = 124, 148, 257  # within a header
SHORT_NAME = 99  # bytes of a name that stand in its field and end in a zero
MAX_OCTAL_SIZE = 8**11 - 1


def render_header(name: str, num_bytes: int) -> bytes:
    """The 512 bytes before a member's data. Time, owner and mode are fixed: the same data packs to the same tar."""
    if len(name) > SHORT_NAME or num_bytes > MAX_OCTAL_SIZE or not name.isascii():
        return _tarfile_header(name, num_bytes)
    # Name, size and checksum put into a finished header: a tenth of tarfile's time, and a pack writes three per sample
    header = bytearray(_EMPTY_HEADER)
    header[: len(name)] = name.encode()
    header[SIZE_AT : SIZE_AT + 12] = b"%011o\0" % num_bytes
    header[CHECKSUM_AT : CHECKSUM_AT + 8] = b"        "
    header[CHECKSUM_AT : CHECKSUM_AT + 7] = b"%06o\0" % sum(header)
    return bytes(header)


def render_member(name: str, data: bytes | memoryview) -> tuple[bytes, bytes | memoryview, bytes]:
    """Header, data and padding of one file, as they stand in a tar."""
    return render_header(name, len(data)), data, bytes(-len(data) % BLOCK)


def _tarfile_header(name: str, num_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode, info.uid, info.gid = num_bytes, 0, 0o644, 0, 0
    return info.tobuf(tarfile.USTAR_FORMAT)


_EMPTY_HEADER = _tarfile_header("", 0)


class ShardWriter:
    """Writes one shard and its index into `folder`; leaving the `with` block fsyncs both and sets `shard`."""

    def __init__(self, folder: Path, name: str, split: str) -> None:
        self._folder, self._name, self._split = folder, name, split
        self._sha256 = hashlib.sha256()
        self._samples: list[Sample] = []
        self._num_bytes = 0
        self.shard: Shard | None = None

    def __enter__(self) -> ShardWriter:
        self._file = (self._folder / self._name).open("wb")
        return self

    def add(self, key: str, jpg: bytes, png: bytes, json: bytes) -> None:
        """Append one sample as three adjacent members: webdataset reads apart what is not adjacent."""
        self._samples.append(
            Sample(key, self._add(f"{key}.jpg", jpg), self._add(f"{key}.png", png), self._add(f"{key}.json", json))
        )

    def _add(self, name: str, data: bytes) -> Member:
        header, *rest = render_member(name, data)
        member = Member(self._num_bytes + len(header), len(data), zlib.crc32(data))
        self._write(header, *rest)
        return member

    def _write(self, *pieces: bytes | memoryview) -> None:
        for piece in pieces:
            self._file.write(piece)
            self._sha256.update(piece)
            self._num_bytes += len(piece)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._file:
                if error is None:
                    self._write(END_OF_ARCHIVE)
                    self._file.flush()
                    os.fsync(self._file.fileno())
        except OSError as failure:  # what stands in the buffer may not fit: closing the file says so once more
            raise named(failure, self._folder / self._name) from None
        if isinstance(error, OSError):
            raise named(error, self._folder / self._name) from None
        if error is not None:
            return
        index_sha256 = save_index(self._samples, self._folder, self._name)
        self.shard = Shard(
            name=self._name,
            split=self._split,
            num_samples=len(self._samples),
            num_bytes=self._num_bytes,
            sha256=self._sha256.hexdigest(),
            index_sha256=index_sha256,
        )


CUT_OFF = "cut off"  # for a header that the file ends before or within


@dataclass(frozen=True)
class Found:
    """A member that a header in the tar announces; `num_bytes` may reach past the end of a cut file."""

    name: str
    offset: int
    num_bytes: int
    is_file: bool  # not a folder, a link, or a header of the next member (pax, long names)


def header_at(data: memoryview, offset: int) -> Found | str:
    """The member whose header starts at `offset`, or in words why there is none."""
    block = bytes(data[offset : offset + BLOCK])
    if len(block) < BLOCK:
        return CUT_OFF
    if not any(block):
        return "zeroed"
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")  # whatever the bytes, it can be printed
    except tarfile.HeaderError:
        return "damaged"
    return Found(info.name, offset + BLOCK, info.size, info.isreg())


def find_members(data: memoryview) -> Iterator[Found]:
    """All files that can still be found in a tar, from block to block past what is damaged.

    tarfile itself silently stops at the first zeroed or damaged header behind the first member.
    """
    offset = 0
    while offset + BLOCK <= len(data):
        found = header_at(data, offset) if bytes(data[offset + MAGIC_AT : offset + MAGIC_AT + 5]) == b"ustar" else ""
        if isinstance(found, Found):
            if found.is_file:
                yield found
            offset = found.offset + found.num_bytes + -found.num_bytes % BLOCK
        else:
            offset += BLOCK
