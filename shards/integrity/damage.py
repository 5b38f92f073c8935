"""Finds damage in one shard; each finding names the shard, the sample and the byte."""

from __future__ import annotations

import hashlib
import mmap
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.archive import BLOCK, CUT_OFF, Found, find_members, header_at
from shards.files import NotRegular, open_regular, read_regular
from shards.index import NO_MEMBER, Member, Sample, index_name, load_index
from shards.integrity.content import check_content
from shards.layout import Layout, split_name
from shards.manifest import Shard

OURS = Layout()


@dataclass(frozen=True)
class Damage:
    """One fault. `key` is empty if it concerns no single sample, `offset` is None if it has no position."""

    shard: str
    key: str
    offset: int | None
    problem: str


@dataclass(frozen=True)
class _IndexCheck:
    """The samples of an index that can be trusted, or None and why there are none."""

    samples: list[Sample] | None
    findings: tuple[Damage, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(sample.key for sample in self.samples or ())


@dataclass(frozen=True)
class Report:
    """The findings of one shard, and the keys of its index for the checks over the whole set."""

    shard: Shard
    keys: tuple[str, ...]
    findings: tuple[Damage, ...]


def check_shard(shard: Shard, folder: Path, decode: bool, layout: Layout = OURS) -> Report:
    """Check the bytes of one shard and its index; if `decode`, decode what is whole, too."""
    index = _check_index(shard, folder)
    try:
        file = open_regular(folder / shard.name, follow=False)
    except NotRegular as error:
        return Report(shard, index.keys, (*index.findings, Damage(shard.name, "", None, str(error))))
    except FileNotFoundError:
        lost = tuple(Damage(shard.name, key, None, "lost with its shard") for key in index.keys)
        missing = Damage(shard.name, "", None, "the shard is missing")
        return Report(shard, index.keys, (*index.findings, missing, *lost))
    with file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:  # which mmap refuses
            return _check_bytes(shard, memoryview(b""), index, layout, decode)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            return _check_bytes(shard, data, index, layout, decode)


def _check_index(shard: Shard, folder: Path) -> _IndexCheck:
    name = index_name(shard.name)
    try:
        content = read_regular(folder / name, follow=False)
    except FileNotFoundError:
        return _IndexCheck(None, (Damage(name, "", None, "the index is missing"),))
    except NotRegular as error:
        return _IndexCheck(None, (Damage(name, "", None, str(error)),))
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        return _IndexCheck(
            None, (Damage(name, "", None, "the index was altered: it does not match the manifest's sha256"),)
        )
    try:
        return _IndexCheck(load_index(folder, shard.name))
    except ValueError as error:
        return _IndexCheck(None, (Damage(name, "", None, str(error)),))


def _check_bytes(shard: Shard, data: memoryview, index: _IndexCheck, layout: Layout, decode: bool) -> Report:
    is_whole = len(data) == shard.num_bytes and hashlib.sha256(data).hexdigest() == shard.sha256
    samples, findings = index.samples, index.findings
    if samples is None:
        rebuilt, found = _samples_without_index(shard, data, layout, is_whole)
        return Report(shard, tuple(s.key for s in rebuilt), (*findings, *found))
    if len(samples) != shard.num_samples:
        problem = f"the index lists {len(samples)} samples, the manifest {shard.num_samples}"
        findings += (Damage(shard.name, "", None, problem),)
    of_samples = tuple(_check_samples(shard.name, data, samples, layout, decode))
    if not is_whole:
        findings += (_whole_shard_finding(shard, data, samples, bool(of_samples)),)
    return Report(shard, index.keys, findings + of_samples)


def _whole_shard_finding(shard: Shard, data: memoryview, samples: list[Sample], is_located: bool) -> Damage:
    if len(data) < shard.num_bytes:
        return Damage(shard.name, "", len(data), f"cut short: {len(data)} of {shard.num_bytes} bytes")
    if len(data) > shard.num_bytes:
        return Damage(shard.name, "", shard.num_bytes, f"{len(data)} bytes, {len(data) - shard.num_bytes} too many")
    if is_located:
        return Damage(shard.name, "", None, "its bytes do not match its sha256")
    ends = [member.offset + member.num_bytes for sample in samples for _, member in sample.members()]
    where = next((end for end in ends if any(data[end : end + -end % BLOCK])), max(ends, default=0))
    problem = "its bytes do not match its sha256, but all samples are whole: padding or end of the archive was altered"
    return Damage(shard.name, "", where, problem)


def _check_samples(
    shard: str, data: memoryview, samples: list[Sample], layout: Layout, decode: bool
) -> Iterator[Damage]:
    elsewhere: dict[str, Found] | None = None  # the tar is searched only if something is not in its place
    for sample in samples:
        problems: list[tuple[int, str]] = []
        for name, member in sample.members():
            problem = _check_member(data, name, member, layout)
            if problem == "absent":
                elsewhere = {f.name: f for f in find_members(data)} if elsewhere is None else elsewhere
                problem = _absent(data, name, member, elsewhere)
            if problem:
                problems.append((member.offset, problem))
        if problems:
            lines = [problem for _, problem in problems]
            is_gone = all(member.offset - BLOCK >= len(data) for _, member in sample.members())
            yield Damage(shard, sample.key, problems[0][0], "the sample is gone" if is_gone else "; ".join(lines))
        elif decode and (problem := _check_content(data, sample, layout)):
            yield Damage(shard, sample.key, sample.jpg.offset, problem)


def _check_member(data: memoryview, name: str, member: Member, layout: Layout) -> str:
    """Say what is wrong with a member at its offset: "absent" if another member is there, empty if all is well."""
    header = header_at(data, member.offset - BLOCK)
    content = data[member.offset : member.offset + member.num_bytes]
    is_same = len(content) == member.num_bytes and zlib.crc32(content) == member.crc32
    if isinstance(header, str):
        what = f"the header of {name} is {header}"
        if header == CUT_OFF:
            return f"{name} is cut off" if member.offset - BLOCK < len(data) else f"{name} is gone"
        return what + (", its data are whole" if is_same else ", its data too are altered" if content else "")
    if header.name != name and not layout.is_foreign:
        return "absent"
    if is_same:
        block = bytes(data[member.offset - BLOCK : member.offset])
        is_its_own = layout.is_header_of(block, header, name, member.num_bytes)
        return "" if is_its_own else f"the header of {name} is altered, its data are whole"
    if len(content) < member.num_bytes:
        return f"{name} is cut off after {len(content)} of {member.num_bytes} bytes"
    return f"the data of {name} are altered"


def _absent(data: memoryview, name: str, member: Member, elsewhere: dict[str, Found]) -> str:
    found = elsewhere.get(name)
    if found is None:
        return f"{name} is missing"
    content = data[found.offset : found.offset + found.num_bytes]
    same = "whole" if len(content) == member.num_bytes and zlib.crc32(content) == member.crc32 else "altered"
    return f"{name} lies at byte {found.offset} ({same}), not where the index says"


def _check_content(data: memoryview, sample: Sample, layout: Layout) -> str:
    jpg, png = (bytes(data[m.offset : m.offset + m.num_bytes]) for m in (sample.jpg, sample.png))
    facts = bytes(data[sample.json.offset : sample.json.offset + sample.json.num_bytes])
    return check_content(sample.key, jpg, png, None if layout.is_foreign else facts, layout.mask_values)


def samples_in_tar(path: Path) -> list[Sample]:
    """The samples of a whole tar of ours, for an index that was lost. Raises OSError if it cannot be read."""
    data = memoryview(read_regular(path, follow=False))
    return _samples_without_index(Shard(path.name, "", 0, len(data), "", ""), data, OURS, is_whole=True)[0]


def _samples_without_index(
    shard: Shard, data: memoryview, layout: Layout, is_whole: bool
) -> tuple[list[Sample], tuple[Damage, ...]]:
    """The samples that the tar itself still shows, when no index can say which there should be."""
    found = list(find_members(data))
    keys: dict[str, dict[str, Member]] = {}
    findings = []
    for member in found:
        prefix, suffix = split_name(member.name)
        kind, key = layout.kind_of(suffix), prefix.rpartition("/")[2]
        if kind is None:
            continue
        content = data[member.offset : member.offset + member.num_bytes]
        keys.setdefault(key, {})[kind] = Member(member.offset, member.num_bytes, zlib.crc32(content))
        if len(content) < member.num_bytes:
            findings.append(Damage(shard.name, key, member.offset, f"{member.name} is cut off"))
    samples = []
    for key, members in keys.items():
        needed = ("jpg", "png") if layout.is_foreign else ("jpg", "png", "json")
        missing = [suffix for suffix in needed if suffix not in members]
        if missing:
            offset = next(iter(members.values())).offset
            problem = ", ".join(f"{key}.{suffix} is missing" for suffix in missing)
            findings.append(Damage(shard.name, key, offset, problem))
        else:
            samples.append(Sample(key, members["jpg"], members["png"], members.get("json", NO_MEMBER)))
    if not is_whole:
        last = found[-1].name if found else "none"
        problem = (
            f"the shard is damaged too: {len(samples)} of {shard.num_samples} samples are found, the last is {last}"
        )
        findings.insert(0, Damage(shard.name, "", len(data), problem))
    return samples, tuple(findings)
