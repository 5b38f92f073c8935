"""What is wrong with one shard: each finding names the shard, the sample and the place."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import simplejpeg
from PIL import Image

from shards.archive import BLOCK, Found, find_members, header_at, render_header
from shards.manifest import Member, Sample, Shard, index_name, load_index


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `key` is empty where it concerns no sample, `offset` is None where there is no place."""

    shard: str
    key: str
    offset: int | None
    problem: str


@dataclass(frozen=True)
class Report:
    """What a shard's check gives: its findings, and the keys of its index for the checks over the whole set."""

    shard: Shard
    keys: tuple[str, ...]
    findings: tuple[Finding, ...]


def check_shard(shard: Shard, folder: Path, decode: bool) -> Report:
    """Check the bytes of one shard and its index; if `decode`, decode what is whole, too."""
    samples, findings = _check_index(shard, folder)
    try:
        file = (folder / shard.name).open("rb")
    except FileNotFoundError:
        lost = tuple(Finding(shard.name, s.key, None, "lost with its shard") for s in samples or ())
        findings += (Finding(shard.name, "", None, "the shard is missing"), *lost)
        return Report(shard, tuple(s.key for s in samples or ()), findings)
    with file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:  # which mmap refuses
            return _check_bytes(shard, memoryview(b""), samples, findings, decode)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            return _check_bytes(shard, data, samples, findings, decode)


def _check_index(shard: Shard, folder: Path) -> tuple[list[Sample] | None, tuple[Finding, ...]]:
    """The samples of an index that can be trusted, or None and why there are none."""
    name = index_name(shard.name)
    try:
        content = (folder / name).read_bytes()
    except FileNotFoundError:
        return None, (Finding(name, "", None, "the index is missing"),)
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        return None, (Finding(name, "", None, "the index was altered: it does not match the manifest's sha256"),)
    try:
        return load_index(folder, shard.name), ()
    except ValueError as error:
        return None, (Finding(name, "", None, str(error)),)


def _check_bytes(
    shard: Shard, data: memoryview, samples: list[Sample] | None, findings: tuple[Finding, ...], decode: bool
) -> Report:
    is_whole = len(data) == shard.num_bytes and hashlib.sha256(data).hexdigest() == shard.sha256
    if samples is None:
        rebuilt, found = _samples_without_index(shard, data, is_whole)
        return Report(shard, tuple(s.key for s in rebuilt), (*findings, *found))
    if len(samples) != shard.num_samples:
        problem = f"the index lists {len(samples)} samples, the manifest {shard.num_samples}"
        findings += (Finding(shard.name, "", None, problem),)
    of_samples = tuple(_check_samples(shard.name, data, samples, decode))
    if not is_whole:
        findings += (_whole_shard_finding(shard, data, samples, bool(of_samples)),)
    return Report(shard, tuple(s.key for s in samples), findings + of_samples)


def _whole_shard_finding(shard: Shard, data: memoryview, samples: list[Sample], is_located: bool) -> Finding:
    if len(data) < shard.num_bytes:
        return Finding(shard.name, "", len(data), f"cut short: {len(data)} of {shard.num_bytes} bytes")
    if len(data) > shard.num_bytes:
        return Finding(shard.name, "", shard.num_bytes, f"{len(data)} bytes, {len(data) - shard.num_bytes} too many")
    if is_located:
        return Finding(shard.name, "", None, "its bytes do not match its sha256")
    ends = [member.offset + member.num_bytes for sample in samples for _, member in sample.members()]
    where = next((end for end in ends if any(data[end : end + -end % BLOCK])), max(ends, default=0))
    problem = "its bytes do not match its sha256, but all samples are whole: padding or end of the archive was altered"
    return Finding(shard.name, "", where, problem)


def _check_samples(shard: str, data: memoryview, samples: list[Sample], decode: bool) -> Iterator[Finding]:
    elsewhere: dict[str, Found] | None = None  # the tar is searched only if something is not in its place
    for sample in samples:
        problems: list[tuple[int, str]] = []
        for name, member in sample.members():
            problem = _check_member(data, name, member)
            if problem == "absent":
                elsewhere = {f.name: f for f in find_members(data)} if elsewhere is None else elsewhere
                problem = _absent(data, name, member, elsewhere)
            if problem:
                problems.append((member.offset, problem))
        if problems:
            lines = [problem for _, problem in problems]
            is_gone = len(lines) == 3 and all(line.endswith(" is gone") for line in lines)
            yield Finding(shard, sample.key, problems[0][0], "the sample is gone" if is_gone else "; ".join(lines))
        elif decode and (problem := _check_content(data, sample)):
            yield Finding(shard, sample.key, sample.jpg.offset, problem)


def _check_member(data: memoryview, name: str, member: Member) -> str:
    """What is wrong with one member in its place; "absent" if another one is there, "" if all is well."""
    header = header_at(data, member.offset - BLOCK)
    content = data[member.offset : member.offset + member.num_bytes]
    is_same = len(content) == member.num_bytes and zlib.crc32(content) == member.crc32
    if isinstance(header, str):
        what = f"the header of {name} is {header}"
        if header == "cut off":
            return f"{name} is cut off" if member.offset - BLOCK < len(data) else f"{name} is gone"
        return what + (", its data are whole" if is_same else ", its data too are altered" if content else "")
    if header.name != name:
        return "absent"
    if is_same:
        # Byte for byte, because a tar's header checksum does not cover every byte, and readers forgive some.
        is_ours = data[member.offset - BLOCK : member.offset] == render_header(name, member.num_bytes)
        return "" if is_ours else f"the header of {name} is altered, its data are whole"
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


def _check_content(data: memoryview, sample: Sample) -> str:
    """Decode the three members of a sample; "" if a training set can hold them."""
    jpg, png, facts = (bytes(data[m.offset : m.offset + m.num_bytes]) for _, m in sample.members())
    try:
        height, width = simplejpeg.decode_jpeg(jpg, "RGB", strict=True).shape[:2]
    except ValueError as error:
        return f"{sample.key}.jpg cannot be decoded ({error})"
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as trimap:
            values, size, mode = trimap.getextrema(), trimap.size, trimap.mode
    except Exception as error:  # Pillow raises whatever the bytes lead it to
        return f"{sample.key}.png cannot be decoded ({error})"
    if size != (width, height):
        return f"{sample.key}.png is {size[0]} x {size[1]}, its picture {width} x {height}"
    if mode != "L" or not 1 <= values[0] <= values[1] <= 3:  # type: ignore[operator]
        return f"{sample.key}.png has other values than 1 (pet), 2 (background), 3 (border)"
    try:
        key = json.loads(facts)["key"]
    except (ValueError, KeyError, TypeError) as error:
        return f"{sample.key}.json cannot be read ({error!r})"
    return "" if key == sample.key else f"{sample.key}.json is of {key!r}"


def _samples_without_index(shard: Shard, data: memoryview, is_whole: bool) -> tuple[list[Sample], tuple[Finding, ...]]:
    """The samples that the tar itself still shows, when no index can say which there should be."""
    found = list(find_members(data))
    keys: dict[str, dict[str, Member]] = {}
    findings = []
    for member in found:
        key, _, suffix = member.name.partition(".")
        content = data[member.offset : member.offset + member.num_bytes]
        keys.setdefault(key, {})[suffix] = Member(member.offset, member.num_bytes, zlib.crc32(content))
        if len(content) < member.num_bytes:
            findings.append(Finding(shard.name, key, member.offset, f"{member.name} is cut off"))
    samples = []
    for key, members in keys.items():
        missing = [suffix for suffix in ("jpg", "png", "json") if suffix not in members]
        if missing:
            offset = next(iter(members.values())).offset
            problem = ", ".join(f"{key}.{suffix} is missing" for suffix in missing)
            findings.append(Finding(shard.name, key, offset, problem))
        else:
            samples.append(Sample(key, members["jpg"], members["png"], members["json"]))
    if not is_whole:
        last = found[-1].name if found else "none"
        problem = (
            f"the shard is damaged too: {len(samples)} of {shard.num_samples} samples are found, the last is {last}"
        )
        findings.insert(0, Finding(shard.name, "", len(data), problem))
    return samples, tuple(findings)
