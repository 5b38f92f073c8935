"""The members of a tar that somebody else made, one after the other, in memory that no header of it can raise."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from shards.archive import BLOCK

MAX_HEADER_BYTES = 1 << 20  # of all that stands before one member: long names, pax records, maps of sparse files
CHUNK_BYTES = 1 << 20


def walk_tar(file: BinaryIO, problem: Callable[[str], None]) -> Iterator[tarfile.TarInfo]:
    """All members, none extracted; what is wrong with the tar goes to `problem`, in words.

    tarfile itself silently ends at a damaged header and at a cut between members.
    """
    size, last, end, headers = os.fstat(file.fileno()).st_size, "none", 0, _Headers(file)
    try:
        tar = tarfile.open(fileobj=headers, mode="r:", encoding="utf-8", errors="backslashreplace")  # type: ignore[call-overload]  # noqa: SIM115
        with tar:
            while (info := tar.next()) is not None:
                tar.members = []  # it would keep them all
                headers.renew(spent=sum(len(name) + len(value) for name, value in tar.pax_headers.items()))
                # the size of a sparse file is that of what it unpacks to
                data_end = tar.offset if info.issparse() else info.offset_data + info.size
                if info.isreg() and data_end > size:
                    problem(f"cut short: {info.name} is cut off after {size - info.offset_data} bytes")
                    return
                if info.size < 0 or tar.offset <= end:
                    raise tarfile.ReadError(f"the size of {info.name} is {info.size}")
                last, end = info.name, tar.offset
                yield info
            end = tar.offset
    except (tarfile.TarError, RecursionError) as error:  # tarfile calls itself for each of several headers in a row
        problem(f"damaged, or not a tar ({error}); the last member that is whole is {last}")
        return
    _check_end(file, size, end, last, problem)


def crc32_of(file: BinaryIO, offset: int, num_bytes: int) -> int:
    """zlib.crc32 of a part of a file; its position stays."""
    crc32 = 0
    for chunk in _chunks(file, offset, offset + num_bytes):
        crc32 = zlib.crc32(chunk, crc32)
    return crc32


class _Headers:
    """A tar's file as tarfile is to see it: without this, it reads a header of whatever length the tar says."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, MAX_HEADER_BYTES

    def renew(self, spent: int) -> None:
        """The next member may have headers of MAX_HEADER_BYTES less `spent`, which tarfile keeps of earlier ones."""
        self._left = MAX_HEADER_BYTES - spent

    def read(self, num_bytes: int) -> bytes:
        if not 0 <= num_bytes <= self._left:
            raise tarfile.ReadError(f"the headers of a member are longer than {MAX_HEADER_BYTES:,} bytes")
        self._left -= num_bytes
        return self._file.read(num_bytes)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if offset < 0:
            raise tarfile.ReadError("the size of a member is negative")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _check_end(file: BinaryIO, size: int, end: int, last: str, problem: Callable[[str], None]) -> None:
    """A tar ends in zeros: two blocks of them, and often more."""
    if size - end < BLOCK:
        problem(f"cut short: {size} bytes without the mark of a tar's end; the last member is {last}")
    elif any(os.pread(file.fileno(), BLOCK, end)):
        problem(f"damaged header at byte {end}, behind the member {last}")
    elif any(chunk.count(0) < len(chunk) for chunk in _chunks(file, end, size)):
        problem(f"members behind the end of the tar at byte {end}: tars that were joined? webdataset skips them")


def _chunks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    while start < end and (chunk := os.pread(file.fileno(), min(CHUNK_BYTES, end - start), start)):
        yield chunk
        start += len(chunk)
