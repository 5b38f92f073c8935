"""Read one tar that somebody else made from end to end: its samples as webdataset groups them, and what is wrong."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

from shards.encoding import MAX_PIXELS
from shards.files import NotRegular, open_regular
from shards.foreign.walk import crc32_of, walk_tar
from shards.index import KEY_PATTERN, NO_MEMBER, Member, Sample
from shards.integrity.content import check_content
from shards.layout import Layout, split_name

MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
SKIPPED = re.compile(r"__[^/]*__($|/)")  # webdataset's own notes
MAX_MEMBER_BYTES = 4 * MAX_PIXELS  # of a picture, a mask, or a sample's facts: more than the pixels themselves take
MAX_NAME = 4096  # characters of a member's name, as many as Linux takes
KEPT_TEXTS = 100


@dataclass
class Named:
    """Things that are named one by one up to a limit, and counted beyond it."""

    texts: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, text: str) -> None:
        """Control characters, which names in a tar can have, are escaped."""
        self.count += 1
        if len(self.texts) < KEPT_TEXTS:
            self.texts.append(escaped(text))

    def __add__(self, other: Named) -> Named:
        return Named((self.texts + other.texts)[:KEPT_TEXTS], self.count + other.count)

    def lines(self, most: int) -> list[str]:
        """As many as a message shows, and how many more there are."""
        shown = self.texts[:most]
        more = self.count - len(shown)
        return [*shown, *([f"and {more:,} more"] if more else [])]


@dataclass(frozen=True)
class LeftOut:
    """What is not in the index: members that no sample needs, by kind; and groups without picture and mask."""

    members: Counter[str] = field(default_factory=Counter)
    samples: Named = field(default_factory=Named)

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(self.members + other.members, self.samples + other.samples)


@dataclass(frozen=True)
class Scanned:
    """A tar's samples with their webdataset keys, in order; what is left out; what is wrong, in words."""

    name: str
    num_bytes: int = 0
    sha256: str = ""
    samples: tuple[Sample, ...] = ()
    prefixes: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    problems: Named = field(default_factory=Named)


@dataclass
class Group:
    """Adjacent members of one webdataset key."""

    prefix: str
    members: dict[str, Member] = field(default_factory=dict)  # by kind
    suffixes: Counter[str] = field(default_factory=Counter)  # of all its members
    is_named: bool = False  # a problem says already why it is no sample


class Scan:
    """One pass over a tar: collects groups and problems."""

    def __init__(self, name: str, file: BufferedReader, layout: Layout) -> None:
        self.name, self.file, self.layout = name, file, layout
        self.groups: list[Group] = []
        self.left_out = LeftOut()
        self.problems = Named()
        self.num_members = 0

    def add(self, info: tarfile.TarInfo) -> None:
        if info.isdir():
            return
        self.num_members += 1
        prefix, suffix = split_name(info.name)
        if SKIPPED.match(info.name):
            self.left_out.members["under __NAME__, as webdataset names its notes"] += 1
        elif not prefix:
            self.left_out.members["without a suffix"] += 1
        elif len(info.name) > MAX_NAME:
            self.problem(f"a name of {len(info.name):,} characters, {info.name[:40]!r}...: rename the file")
        else:
            self._add_to_group(info, prefix, suffix)

    def _add_to_group(self, info: tarfile.TarInfo, prefix: str, suffix: str) -> None:
        kind = self.layout.kind_of(suffix)
        if not self.groups or self.groups[-1].prefix != prefix:
            self.groups.append(Group(prefix))
        group = self.groups[-1]
        group.suffixes[suffix] += 1
        if kind is None:
            return
        if problem := self._why_unusable(info, kind, group):
            self.problem(problem)
            group.is_named = True
        else:
            crc32 = crc32_of(self.file, info.offset_data, info.size)
            group.members[kind] = Member(info.offset_data, info.size, crc32)

    def _why_unusable(self, info: tarfile.TarInfo, kind: str, group: Group) -> str:
        if not info.isreg() or info.issparse():
            what = "a sparse file" if info.issparse() else "a link" if info.islnk() or info.issym() else "no file"
            return f"{info.name} is {what}: pack the shard again, as with tar --hard-dereference --dereference"
        if kind in group.members:
            return f"{info.name} is the second {kind} of its sample"
        if info.size > MAX_MEMBER_BYTES:
            return f"{info.name} has {info.size:,} bytes, more than {MAX_MEMBER_BYTES:,}: it is no {kind} of a sample"
        return ""

    def problem(self, text: str) -> None:
        self.problems.add(f"{self.name}: {text}")

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """(webdataset key, sample) of the groups that are whole; names the others, decodes each."""
        for prefix, group in self._joined().items():
            key, members = prefix.rpartition("/")[2], group.members
            if missing := [kind for kind in ("jpg", "png") if kind not in members]:
                if not group.is_named:
                    self.problem(f"sample {prefix} has no {self._named(missing[0], group.suffixes)}")
            elif not KEY_PATTERN.fullmatch(key):
                self.problem(f"sample {prefix}: the key {key!r} must match {KEY_PATTERN.pattern}; name its files so")
            elif problem := check_content(key, *self._contents(members), None, self.layout.mask_values):
                self.problem(f"sample {prefix}: {problem}")
            else:
                yield prefix, Sample(key, members["jpg"], members["png"], members.get("json", NO_MEMBER))

    def _joined(self) -> dict[str, Group]:
        """The groups with a picture or a mask, by key; leaves out the others, and names those that are in pieces."""
        seen: dict[str, Group] = {}
        for group in self.groups:
            if not group.members.keys() & {"jpg", "png"} and not group.is_named:
                self.left_out.samples.add(f"{self.name}: {group.prefix!r} has {listed(group.suffixes)}")
                continue
            if group.prefix in seen:
                both = group.members.keys() & seen[group.prefix].members.keys()
                what = "is there twice" if both else "has members that are not adjacent: webdataset cuts it in halves"
                self.problem(f"sample {group.prefix} {what}")
                seen[group.prefix].members.update(group.members)
            seen.setdefault(group.prefix, group)
            for suffix, count in group.suffixes.items():
                if self.layout.kind_of(suffix) is None:
                    self.left_out.members[escaped(f".{suffix}")] += count
        return seen

    def require_samples(self, num_samples: int) -> None:
        """Name a tar that gives none, whatever is in it: nobody meant to train on nothing."""
        if num_samples or self.problems.count:
            return
        if not self.num_members:
            self.problem("it has no members, only the mark of a tar's end: remove it, or pack it again")
            return
        found: Counter[str] = sum((group.suffixes for group in self.groups), Counter())
        seen = f"{listed(found)}, such as of {self.groups[0].prefix!r}" if found else "no file name with a suffix"
        self.problem(
            f"none of its {self.num_members:,} members is a picture ({self._suffixes('jpg')}) or a mask "
            f"({self._suffixes('png')}); it has {seen}. A key ends at the first dot of a file's name: say with "
            "--image-suffix and --mask-suffix what follows it, or name the files otherwise"
        )

    def _suffixes(self, kind: str) -> str:
        suffixes = {"jpg": self.layout.image_suffixes, "png": self.layout.mask_suffixes}[kind]
        return f".{' or .'.join(suffixes)}"

    def _named(self, kind: str, found: Counter[str]) -> str:
        what, flag = {"jpg": ("picture", "--image-suffix"), "png": ("mask", "--mask-suffix")}[kind]
        return f"{what} ({self._suffixes(kind)}), it has {listed(found)}; {flag} says which one it is"

    def _contents(self, members: dict[str, Member]) -> tuple[bytes, bytes]:
        number = self.file.fileno()
        jpg, png = (os.pread(number, m.num_bytes, m.offset) for m in (members["jpg"], members["png"]))
        return jpg, png


def listed(suffixes: Counter[str], most: int = 5) -> str:
    """The commonest suffixes, as .jpg, .seg.png and 3 more kinds."""
    more = len(suffixes) - most
    shown = ", ".join(f".{suffix}" for suffix, _ in suffixes.most_common(most))
    return shown + (f" and {more} more kinds" if more > 0 else "")


def escaped(text: str) -> str:
    """The text with its control characters as Python writes them."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def scan_tar(path: Path, layout: Layout) -> Scanned:
    """Index one tar and decode each of its samples; whatever is wrong stands in `problems`."""
    try:
        file = open_regular(path, follow=False)
    except NotRegular as error:
        return _refused(path.name, str(error))
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            return _refused(path.name, f"{path.name}: it is empty")
        start = file.peek(8)
        if compression := next((what for magic, what in MAGIC.items() if start.startswith(magic)), ""):
            advice = "petseg reads by byte offset; uncompress it and index again"
            return _refused(path.name, f"{path.name}: compressed with {compression}: {advice}")
        return _scan(path.name, file, layout)


def _refused(name: str, problem: str) -> Scanned:
    return Scanned(name, problems=Named([problem], 1))


def _scan(name: str, file: BufferedReader, layout: Layout) -> Scanned:
    scan = Scan(name, file, layout)
    for info in walk_tar(file, scan.problem):
        scan.add(info)
    found = list(scan.samples())
    scan.require_samples(len(found))
    if scan.problems.count:
        return Scanned(name, problems=scan.problems)
    file.seek(0)
    return Scanned(
        name=name,
        num_bytes=os.fstat(file.fileno()).st_size,
        sha256=hashlib.file_digest(file, "sha256").hexdigest(),
        samples=tuple(sample for _, sample in found),
        prefixes=tuple(prefix for prefix, _ in found),
        left_out=scan.left_out,
    )
