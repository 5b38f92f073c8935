"""Assigns samples to shards, and writes the shards.

The plan depends on the samples, the seed and samples_per_shard alone: packing, resuming and repairing share it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from shards.archive import ShardWriter
from shards.command import Failure
from shards.labels.faults import LabelFaults, Tally, mask_faults
from shards.labels.observed import LabelProblem
from shards.labels.rules import LabelRules
from shards.manifest import SPLITS, Shard, shard_name
from shards.near_duplicates.picture_hash import twins_in_train
from shards.packing import pictures
from shards.packing.pictures import CORRUPT
from shards.pool import default_workers, ordered_map
from shards.sources.listing import Listed

SAMPLES_WORTH_A_WORKER = 64  # a process takes as long to start as these to pack
CHUNK = 16  # samples a worker packs at a time: the last chunks are small enough to end together
MAX_NAMED_PROBLEMS = 10
MAX_NAMED_DOUBTS = 50  # damaged pictures are to be looked at, one by one

logger = logging.getLogger(__name__)


class TooManyCorrupt(Failure):
    """More damaged pictures than the pack may take; nothing is wrong with the shards that it has finished."""


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be written: its samples, in order."""

    name: str
    split: str
    samples: tuple[Listed, ...]


@dataclass(frozen=True)
class Built:
    """A shard that stands whole beside its index, and what is known of its samples beyond their bytes."""

    shard: Shard
    oddities: tuple[tuple[str, str], ...]  # (kind, key)
    hashes: Mapping[str, str]  # of the pictures, by key
    labels: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class BuildOptions:
    """How shards are written, and whom to tell."""

    folder: Path
    image_size_px: int
    num_workers: int
    advance: Callable[[int], None]
    max_corrupt: int | None = None  # pictures that may decode with a warning; None takes any number of them
    rules: LabelRules | None = None  # of masks of classes


def mixed_order(samples: Sequence[Listed], seed: int) -> list[Listed]:
    """The samples in an order that mixes what lists keep together, such as the pictures of a class.

    By hash: numpy may change its permutations, sha256 stays.
    """
    return sorted(samples, key=lambda sample: hashlib.sha256(f"{seed}:{sample.key}".encode()).digest())


def plan_shards(samples: Sequence[Listed], *, seed: int, samples_per_shard: int) -> list[ShardPlan]:
    """All shards of a set, split by split; the shards of a split differ by one sample at most."""
    plan = []
    for split in SPLITS:
        mixed = mixed_order([sample for sample in samples if sample.split == split], seed)
        num_shards = -(-len(mixed) // samples_per_shard)
        for index in range(num_shards):
            start, stop = (len(mixed) * number // num_shards for number in (index, index + 1))
            plan.append(ShardPlan(shard_name(split, index), split, tuple(mixed[start:stop])))
    return plan


def workers_for(num_samples: int) -> int:
    """The processes that so many samples are worth."""
    return min(default_workers(), max(1, num_samples // SAMPLES_WORTH_A_WORKER))


def build_shards(
    plan: Sequence[ShardPlan], options: BuildOptions, finished: Mapping[str, Built] | None = None
) -> Iterator[Built]:
    """Write the shards of `plan` with their indices, less those that are `finished` already.

    Yields all of them in the plan's order. Raises Failure at the end that names what cannot be packed, or LabelFaults
    if that is due to the masks alone; the shard in which the first such sample falls is not finished. Raises
    TooManyCorrupt, with all shards finished, if more pictures than `max_corrupt` decode with a warning.
    """
    finished = finished or {}
    queue = [sample for planned in plan if planned.name not in finished for sample in planned.samples]
    chunks = [tuple(queue[start : start + CHUNK]) for start in range(0, len(queue), CHUNK)]
    pack_chunk = partial(pictures.pack_chunk, image_size_px=options.image_size_px)
    options.advance(sum(built.shard.num_samples for built in finished.values()))
    corrupt = [
        f"{key}, in a finished shard" for one in finished.values() for kind, key in one.oddities if kind == CORRUPT
    ]
    samples = _packed(ordered_map(pack_chunk, chunks, num_workers=options.num_workers), options, corrupt)
    for planned in plan:
        yield finished[planned.name] if planned.name in finished else _build_shard(planned, samples, options.folder)
    next(samples, None)  # the generator ends by raising what could not be packed
    if options.max_corrupt is not None and len(corrupt) > options.max_corrupt:
        raise TooManyCorrupt(_too_many(corrupt, options.max_corrupt))


def without_twins(
    samples: Sequence[Listed], *, image_size_px: int, num_workers: int, advance: Callable[[int], None]
) -> tuple[list[Listed], list[str]]:
    """The samples less those of train whose picture is nearly the same as one of val or test, whose keys come second.

    All pictures are read for it, and once more when they are packed.
    """
    chunks = [tuple(samples[start : start + CHUNK]) for start in range(0, len(samples), CHUNK)]
    hash_chunk = partial(pictures.hash_chunk, image_size_px=image_size_px)
    hashes: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for chunk, values in zip(chunks, ordered_map(hash_chunk, chunks, num_workers=num_workers), strict=True):
        for sample, value in zip(chunk, values, strict=True):
            if value is not None:
                hashes[sample.split][sample.key] = value
        advance(len(chunk))
    dropped = twins_in_train(hashes)
    left_out = set(dropped)
    return [sample for sample in samples if sample.key not in left_out], dropped


def _build_shard(planned: ShardPlan, samples: Iterator[pictures.Packed], folder: Path) -> Built:
    oddities: list[tuple[str, str]] = []
    hashes: dict[str, str] = {}
    labels = Tally()
    with ShardWriter(folder, planned.name, planned.split) as writer:
        for listed, sample in zip(planned.samples, samples, strict=False):  # the rest belongs to the next shards
            assert sample.key == listed.key
            writer.add(sample.key, sample.jpg, sample.png, sample.json)
            oddities += [(kind, sample.key) for kind in sample.oddities]
            hashes[sample.key] = sample.hash
            if sample.observed:
                labels.add(sample.observed)
    assert writer.shard is not None
    return Built(writer.shard, tuple(oddities), hashes, labels)


def _packed(
    results: Iterator[list[pictures.Packed | Failure]], options: BuildOptions, corrupt: list[str]
) -> Iterator[pictures.Packed]:
    """The samples of all chunks; those with a damaged picture are added to `corrupt`, in words.

    Raises Failure at the end for those that cannot be packed.
    """
    problems: list[str] = []
    labels, num_faulty, num_suspects = Tally(), 0, 0
    for chunk in results:
        for sample in chunk:
            if isinstance(sample, Failure):
                if isinstance(sample, LabelProblem):
                    labels.add(sample.observed)
                    num_faulty += 1
                else:
                    problems.append(str(sample))
                continue
            if CORRUPT in sample.oddities:
                corrupt += sample.doubts
            elif sample.doubts and (num_suspects := num_suspects + 1) <= MAX_NAMED_DOUBTS:
                logger.warning("may be damaged: %s", "; ".join(sample.doubts))
            if sample.observed:
                labels.add(sample.observed)
            if not problems and not num_faulty:
                yield sample
        options.advance(len(chunk))
    if num_faulty:
        raise LabelFaults(mask_faults(labels, options.rules), first_lines(problems))
    if problems:
        raise Failure(f"{len(problems)} samples cannot be packed:\n  " + "\n  ".join(first_lines(problems)))


def _too_many(corrupt: Sequence[str], max_corrupt: int) -> str:
    return (
        f"{len(corrupt)} pictures are damaged: they decode with a warning, and --max-corrupt is {max_corrupt}. Fetch "
        f"them again, or accept them as they are with --max-corrupt {len(corrupt)} --resume:\n  "
    ) + "\n  ".join(first_lines(corrupt, MAX_NAMED_DOUBTS))


def first_lines(problems: Sequence[str], most: int = MAX_NAMED_PROBLEMS) -> list[str]:
    """As many as an error names, and how many more there are."""
    more = len(problems) - most
    return [*problems[:most], *([f"and {more} more"] if more > 0 else [])]
