"""Somebody else's tars are indexed in little memory, whatever sizes they claim."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.archive import BLOCK
from shards.command import FAILED, OK, Failure
from shards.foreign.index import ForeignConfig, index_folder
from shards.foreign.walk import MAX_HEADER_BYTES
from tests.shards.foreign_tars import write_tar

HUGE = 1 << 30
LIMIT = 256 << 20  # of address space, beyond what Python and numpy take to start
COMMAND = """
import resource, sys
import shards.verify, simplejpeg, PIL.PngImagePlugin, PIL.JpegImagePlugin
from shards.command import run_command
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(run_command(shards.verify.main, sys.argv[2:]))
"""


def end_of(path: Path) -> int:
    """Where the last member's padding ends."""
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    return last.offset_data + -(-last.size // BLOCK) * BLOCK


def append(path: Path, kind: bytes, size: int, name: str = "long") -> None:
    """A header that claims so many bytes, zeros behind it that take no disk, and one more member."""
    info, after = tarfile.TarInfo(name), tarfile.TarInfo("after.txt")
    info.type, info.size = kind, size
    end = end_of(path)
    with path.open("r+b") as file:
        file.seek(end)
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(end + BLOCK + size)
        file.write(after.tobuf(tarfile.USTAR_FORMAT) + bytes(2 * BLOCK))


def a_tail(path: Path) -> None:
    os.truncate(path, HUGE)


def a_long_name(path: Path) -> None:
    append(path, tarfile.GNUTYPE_LONGNAME, 400 << 20)


def a_long_link(path: Path) -> None:
    append(path, tarfile.GNUTYPE_LONGLINK, 400 << 20)


def a_pax_header(path: Path) -> None:
    append(path, tarfile.XHDTYPE, 400 << 20)


def a_global_pax_header(path: Path) -> None:
    append(path, tarfile.XGLTYPE, 400 << 20)


def a_picture(path: Path) -> None:
    append(path, tarfile.REGTYPE, HUGE, "b.jpg")


def a_file_that_no_sample_needs(path: Path) -> None:
    append(path, tarfile.REGTYPE, HUGE, "b.txt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grow", "code", "says"),
    [
        (a_tail, OK, "indexed: 1 train samples"),
        (a_file_that_no_sample_needs, OK, "'b' has .txt"),
        (a_long_name, FAILED, f"the headers of a member are longer than {MAX_HEADER_BYTES:,} bytes"),
        (a_long_link, FAILED, "the headers of a member are longer than"),
        (a_pax_header, FAILED, "the headers of a member are longer than"),
        (a_global_pax_header, FAILED, "the headers of a member are longer than"),
        (a_picture, FAILED, f"b.jpg has {HUGE:,} bytes, more than 100,000,000: it is no jpg of a sample"),
    ],
)
def test_no_size_in_a_tar_costs_memory(
    folder: Path, pair: Callable, grow: Callable[[Path], None], code: int, says: str
) -> None:
    jpg, png = pair(0)
    write_tar(folder / "train.tar", [("a.jpg", jpg), ("a.png", png)])
    grow(folder / "train.tar")
    command = [sys.executable, "-c", COMMAND, str(LIMIT), str(folder), "--index", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr


def test_headers_that_are_kept_are_counted_together(folder: Path, pair: Callable) -> None:
    """tarfile keeps the records of all global pax headers, of which each member can bring one."""
    jpg, png = pair(0)
    write_tar(folder / "train.tar", [("a.jpg", jpg), ("a.png", png)])
    whole = (folder / "train.tar").read_bytes()[: end_of(folder / "train.tar")]
    members = b""
    for number in range(5):
        members += tarfile.TarInfo.create_pax_global_header({f"k{number}": "x" * (MAX_HEADER_BYTES // 4)})
        members += tarfile.TarInfo(f"{number}.txt").tobuf(tarfile.USTAR_FORMAT)
    (folder / "train.tar").write_bytes(whole + members + bytes(2 * BLOCK))
    assert "the headers of a member are longer than" in problem_of(folder)


def test_many_headers_in_a_row(folder: Path, pair: Callable) -> None:
    """tarfile calls itself for each."""
    jpg, png = pair(0)
    write_tar(folder / "train.tar", [("a.jpg", jpg), ("a.png", png)])
    whole = (folder / "train.tar").read_bytes()[: end_of(folder / "train.tar")]
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 0
    (folder / "train.tar").write_bytes(whole + header.tobuf(tarfile.GNU_FORMAT) * 2000 + bytes(2 * BLOCK))
    assert "train.tar: damaged, or not a tar (" in problem_of(folder)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [-1, -BLOCK, -(1 << 40)])
def test_sizes_below_zero(folder: Path, pair: Callable, kind: bytes, size: int) -> None:
    jpg, png = pair(0)
    write_tar(folder / "train.tar", [("a.jpg", jpg), ("a.png", png)])
    whole = (folder / "train.tar").read_bytes()[: end_of(folder / "train.tar")]
    info = tarfile.TarInfo("b.jpg")
    info.type, info.size = kind, size
    (folder / "train.tar").write_bytes(whole + info.tobuf(tarfile.GNU_FORMAT) + bytes(2 * BLOCK))
    assert "train.tar: damaged, or not a tar (" in problem_of(folder)


def problem_of(folder: Path) -> str:
    with pytest.raises(Failure) as error:
        index_folder(folder, ForeignConfig())
    return str(error.value)
