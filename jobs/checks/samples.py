"""A few real samples as a shard set of their own: enough to train on in seconds."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from petseg.data.store import Store
from shards.files import write_whole
from shards.index import Member, Sample, save_index
from shards.manifest import Shard, Split, save_manifest, shard_name, split_of_keys

SMALL_SAMPLES = {"train": 24, "val": 4}
TAR_BLOCK = 512


def write_small_set(store: Store, folder: Path) -> Path:
    """Copy the first samples of train and val, byte for byte, into a shard set of their own.

    Raises ValueError for a split without samples, and as `Store.index` and `Store.open`.
    """
    folder.mkdir(parents=True)
    shards, splits = list[Shard](), dict[str, Split]()
    for split, count in SMALL_SAMPLES.items():
        samples = first_samples(store, split, count)
        splits[split] = split_of_keys(sample.key for sample, _ in samples)
        half = -(-len(samples) // 2)
        parts = [samples[:half], samples[half:]] if split == "train" and half < len(samples) else [samples]
        shards += [_write_shard(part, folder, split, number) for number, part in enumerate(parts)]
    old = store.manifest
    packer = {**old.packer, "first_samples": SMALL_SAMPLES}
    save_manifest(replace(old, packer=packer, splits=splits, shards=tuple(shards), hash=""), folder)
    return folder


def first_samples(store: Store, split: str, count: int) -> list[tuple[Sample, bytes]]:
    """The first samples of a split, with offsets from the start of their own bytes (tar headers and members)."""
    samples: list[tuple[Sample, bytes]] = []
    for shard in store.manifest.of_split(split):
        descriptor = store.open(shard.name)
        try:
            for sample in store.index(shard.name)[: count - len(samples)]:
                members = [member for _, member in sample.members()]
                start = min(member.offset for member in members) - TAR_BLOCK
                end = max(member.offset + -(-member.num_bytes // TAR_BLOCK) * TAR_BLOCK for member in members)
                samples.append((_moved(sample, -start), os.pread(descriptor, end - start, start)))
        finally:
            os.close(descriptor)
        if len(samples) == count:
            break
    if not samples:
        raise ValueError(f"split {split} has no samples")
    return samples


def _write_shard(spans: list[tuple[Sample, bytes]], folder: Path, split: str, number: int) -> Shard:
    name, content, samples = shard_name(split, number), b"", list[Sample]()
    for sample, span in spans:
        samples.append(_moved(sample, len(content)))
        content += span
    content += bytes(2 * TAR_BLOCK)  # the end of a tar
    write_whole(folder / name, content)
    index_sha256 = save_index(samples, folder, name)
    return Shard(name, split, len(samples), len(content), hashlib.sha256(content).hexdigest(), index_sha256)


def _moved(sample: Sample, by: int) -> Sample:
    def moved(member: Member) -> Member:
        return replace(member, offset=member.offset + by) if member.num_bytes else member

    return replace(sample, jpg=moved(sample.jpg), png=moved(sample.png), json=moved(sample.json))
