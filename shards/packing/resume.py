"""Resumes a killed pack: checks that its hidden folder belongs to the same pack, and that each shard in it is whole."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import mmap
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.archive import END_OF_ARCHIVE, render_member
from shards.files import decode_json, open_regular, read_regular, write_whole
from shards.index import Sample, index_name, load_index, render_index
from shards.labels.faults import KINDS, Tally
from shards.labels.observed import Observed, count_pixels
from shards.manifest import Shard
from shards.near_duplicates.picture_hash import picture_hash
from shards.packing.plan import Built, ShardPlan
from shards.packing.publish import RESUME_NAME
from shards.sources.listing import Listed

ENCODERS = ("pillow", "simplejpeg", "numpy")  # other versions may write other bytes

logger = logging.getLogger(__name__)


def identity(settings: dict[str, Any], listing: dict[str, Any], format_version: int) -> dict[str, Any]:
    """The facts that two packs must share before one may use the other's shards."""
    encoders = {name: version(name) for name in ENCODERS}
    return {"format_version": format_version, "packer": settings, "source": listing, "encoders": encoders}


def listing_digest(samples: Sequence[Listed]) -> str:
    """sha256 over what the lists say of each sample, and over the size and time of its files."""
    digest = hashlib.sha256()
    for sample in samples:
        files = [(status.st_size, status.st_mtime_ns) for status in (path.stat() for path in sample.files())]
        row = [*sample.row(), files]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def reuse(staging: Path, mine: dict[str, Any], plan: Sequence[ShardPlan], num_classes: int = 0) -> dict[str, Built]:
    """Return the finished shards in `staging` that this pack can use, each proven whole; remove and log the others.

    Writes resume.json, which says to which pack the shards belong.
    num_classes: how many classes the class table has; 0 without one
    """
    built: dict[str, Built] = {}
    names = {path.name for path in staging.glob("*.tar")}
    why = _why_not_same(staging, mine) if names else ""
    if why:
        logger.warning("%d finished shards belong to another pack (%s): packed again", len(names), why)
    for planned in plan:
        if planned.name in names and not why:
            shard = prove(planned, staging, num_classes)
            if isinstance(shard, Built):
                built[planned.name] = shard
            else:
                logger.warning("%s cannot be used (%s): packed again", planned.name, shard)
    for name in names - built.keys():
        (staging / index_name(name)).unlink()  # first: an index says that its shard is finished
        (staging / name).unlink()
    save_identity(staging, mine)
    num_samples = sum(one.shard.num_samples for one in built.values())
    if built:
        logger.info("resuming: %d of %d shards (%d samples) are whole", len(built), len(plan), num_samples)
    else:
        logger.info("no finished shard can be used: packing from the start")
    return built


def save_identity(staging: Path, mine: dict[str, Any]) -> None:
    write_whole(staging / RESUME_NAME, json.dumps(mine, indent=2) + "\n")


def _why_not_same(staging: Path, mine: dict[str, Any]) -> str:
    """Say what differs from the staged pack; empty if nothing does."""
    try:
        theirs = decode_json(read_regular(staging / RESUME_NAME, follow=False))
    except (OSError, ValueError):
        return f"no readable {RESUME_NAME}"
    if not isinstance(theirs, dict):
        return f"no readable {RESUME_NAME}"
    for part in mine:
        if theirs.get(part) != mine[part]:
            return {"packer": "other settings", "source": "other pictures or lists"}.get(part, f"another {part}")
    return ""


def prove(planned: ShardPlan, folder: Path, num_classes: int = 0) -> Built | str:
    """Read a finished shard byte by byte; return it, or say why it is not the shard that `planned` describes."""
    try:
        samples = load_index(folder, planned.name)
        index = read_regular(folder / index_name(planned.name), follow=False)
        with open_regular(folder / planned.name, follow=False) as file:
            if os.fstat(file.fileno()).st_size == 0:  # which mmap refuses
                return "it is empty"
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
                proven = _prove_bytes(planned, samples, index, data)
                if num_classes and isinstance(proven, Built):
                    return replace(proven, labels=_count_labels(proven, samples, data, num_classes))
                return proven
    except (ValueError, OSError) as error:
        return str(error)


def _count_labels(built: Built, samples: list[Sample], data: memoryview, num_classes: int) -> Tally:
    """Count the classes in the masks of a finished shard."""
    faults: dict[str, list[tuple[str, str]]] = {}
    for kind, key in built.oddities:
        if kind in KINDS:
            faults.setdefault(key, []).append((kind, f"{key}, in a finished shard"))
    tally = Tally()
    for sample in samples:
        png = data[sample.png.offset : sample.png.offset + sample.png.num_bytes]
        with Image.open(io.BytesIO(png), formats=("PNG",)) as mask:
            pixels = count_pixels(np.asarray(mask), num_classes)
        tally.add(Observed(sample.key, built.shard.split, pixels, faults=tuple(faults.get(sample.key, ()))))
    return tally


def _prove_bytes(planned: ShardPlan, samples: list[Sample], index: bytes, data: memoryview) -> Built | str:
    if [sample.key for sample in samples] != [sample.key for sample in planned.samples]:
        return "its samples are not the expected ones"
    if index != render_index(samples).encode():
        return "its index is not as it was written"
    rendered, offset = hashlib.sha256(), 0  # of the tar that its samples make, to compare with the one that is there
    oddities: list[tuple[str, str]] = []
    hashes: dict[str, str] = {}
    for sample in samples:
        for name, member in sample.members():
            content = data[member.offset : member.offset + member.num_bytes]
            header, *rest = render_member(name, content)
            if member.offset != offset + len(header) or zlib.crc32(content) != member.crc32:
                return f"{name} does not match its index"
            if member == sample.jpg:
                hashes[sample.key] = picture_hash(bytes(content))
            for piece in (header, *rest):
                rendered.update(piece)
                offset += len(piece)
        facts = decode_json(bytes(content))  # of the last member, KEY.json
        oddities += [(kind, sample.key) for kind in facts["oddities"]]
    rendered.update(END_OF_ARCHIVE)
    sha256 = hashlib.sha256(data).hexdigest()
    if rendered.hexdigest() != sha256:
        return "its bytes are not those that its samples make"
    shard = Shard(
        name=planned.name,
        split=planned.split,
        num_samples=len(samples),
        num_bytes=len(data),
        sha256=sha256,
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    return Built(shard, tuple(oddities), hashes)
