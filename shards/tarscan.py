"""Read one tar that somebody else made from end to end: its samples as webdataset groups them, and what is wrong."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from shards.archive import BLOCK
from shards.content import check_content
from shards.layout import Layout, split_name
from shards.manifest import KEY_PATTERN, NO_MEMBER, Member, NotRegular, Sample, open_regular

MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
SKIPPED = re.compile(r"__[^/]*__($|/)")  # webdataset's own notes


@dataclass(frozen=True)
class Scanned:
    """A tar's samples with their webdataset keys, in order; what was left out, by suffix; what is wrong, in words."""

    name: str
    num_bytes: int = 0
    sha256: str = ""
    samples: tuple[Sample, ...] = ()
    prefixes: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)
    problems: tuple[str, ...] = ()


@dataclass
class Group:
    """Adjacent members of one webdataset key."""

    prefix: str
    members: dict[str, Member] = field(default_factory=dict)  # by kind
    suffixes: list[str] = field(default_factory=list)  # of all its members


class Scan:
    """One pass over a tar: collects groups and problems."""

    def __init__(self, name: str, data: memoryview, layout: Layout) -> None:
        self.name, self.data, self.layout = name, data, layout
        self.groups: list[Group] = []
        self.left_out: Counter[str] = Counter()
        self.problems: list[str] = []

    def add(self, info: tarfile.TarInfo) -> None:
        prefix, suffix = split_name(info.name)
        kind = self.layout.kind_of(suffix)
        if info.isdir() or not prefix or SKIPPED.match(info.name):
            return
        if not info.isreg() or info.issparse():
            if kind in ("jpg", "png"):
                what = "is a sparse file" if info.issparse() else "is a link"
                self.problem(f"{info.name} {what}: pack the shard again, as with tar --hard-dereference --dereference")
            return
        if not self.groups or self.groups[-1].prefix != prefix:
            self.groups.append(Group(prefix))
        self.groups[-1].suffixes.append(suffix)
        if kind is None:
            self.left_out[suffix] += 1
        elif kind in self.groups[-1].members:
            self.problem(f"{info.name} is the second {kind} of its sample")
        else:
            content = self.data[info.offset_data : info.offset_data + info.size]
            self.groups[-1].members[kind] = Member(info.offset_data, info.size, zlib.crc32(content))

    def problem(self, text: str) -> None:
        self.problems.append(f"{self.name}: {text}")

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """(webdataset key, sample) of the groups that are whole; names the others, decodes each."""
        seen: dict[str, Group] = {}
        for group in self.groups:
            if not group.members.keys() & {"jpg", "png"}:
                self.left_out.update(group.members.keys())
                continue
            if group.prefix in seen:
                both = group.members.keys() & seen[group.prefix].members.keys()
                what = "is there twice" if both else "has members that are not adjacent: webdataset cuts it in halves"
                self.problem(f"sample {group.prefix} {what}")
                seen[group.prefix].members.update(group.members)
            seen.setdefault(group.prefix, group)
        for prefix, group in seen.items():
            key, members = prefix.rpartition("/")[2], group.members
            if missing := [kind for kind in ("jpg", "png") if kind not in members]:
                self.problem(f"sample {prefix} has no {self._named(missing[0], group.suffixes)}")
            elif not KEY_PATTERN.fullmatch(key):
                self.problem(f"sample {prefix}: the key {key!r} must match {KEY_PATTERN.pattern}; name its files so")
            elif problem := check_content(key, *self._contents(members), None, self.layout.trimap):
                self.problem(f"sample {prefix}: {problem}")
            else:
                yield prefix, Sample(key, members["jpg"], members["png"], members.get("json", NO_MEMBER))

    def _named(self, kind: str, found: list[str]) -> str:
        what, flag, suffixes = {
            "jpg": ("picture", "--image-suffix", self.layout.image_suffixes),
            "png": ("mask", "--mask-suffix", self.layout.mask_suffixes),
        }[kind]
        return f"{what} (.{' or .'.join(suffixes)}), it has .{', .'.join(found)}; {flag} says which one it is"

    def _contents(self, members: dict[str, Member]) -> tuple[bytes, bytes]:
        jpg, png = (bytes(self.data[m.offset : m.offset + m.num_bytes]) for m in (members["jpg"], members["png"]))
        return jpg, png


def scan_tar(path: Path, layout: Layout) -> Scanned:
    """Index one tar and decode each of its samples; whatever is wrong stands in `problems`."""
    try:
        file = open_regular(path, follow=False)
    except NotRegular as error:
        return Scanned(path.name, problems=(str(error),))
    with file:
        if os.fstat(file.fileno()).st_size == 0:  # which mmap refuses
            return Scanned(path.name, problems=(f"{path.name}: it is empty",))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            return _scan(path.name, file, data, layout)


def _scan(name: str, file: BinaryIO, data: memoryview, layout: Layout) -> Scanned:
    scan = Scan(name, data, layout)
    start = bytes(data[:8])
    if compression := next((what for magic, what in MAGIC.items() if start.startswith(magic)), ""):
        problem = f"{name}: compressed with {compression}: petseg reads by byte offset; uncompress it and index again"
        return Scanned(name, problems=(problem,))
    for info in _members(file, scan):
        scan.add(info)
    found = list(scan.samples())
    return Scanned(
        name=name,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        samples=tuple(sample for _, sample in found),
        prefixes=tuple(prefix for prefix, _ in found),
        left_out=scan.left_out,
        problems=tuple(scan.problems),
    )


def _members(file: BinaryIO, scan: Scan) -> Iterator[tarfile.TarInfo]:
    """All members, none extracted. tarfile ends without a word at a damaged header and at a cut between members."""
    size, last = len(scan.data), "none"
    try:
        tar = tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        with tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if info.isreg() and info.offset_data + info.size > size:
                    scan.problem(f"cut short: {info.name} is cut off after {size - info.offset_data} bytes")
                    return
                last = info.name
                yield info
            end = tar.offset
    except tarfile.TarError as error:
        scan.problem(f"damaged, or not a tar ({error}); the last member that is whole is {last}")
        return
    rest = bytes(scan.data[end:])
    if len(rest) < BLOCK:
        scan.problem(f"cut short: {size} bytes without the mark of a tar's end; the last member is {last}")
    elif any(rest[:BLOCK]):
        scan.problem(f"damaged header at byte {end}, behind the member {last}")
    elif rest.strip(b"\0"):
        scan.problem(f"members behind the end of the tar at byte {end}: tars that were joined? webdataset skips them")
