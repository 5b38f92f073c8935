"""How well an epoch's order mixes classes in shards that are sorted by class, from the plan alone: no picture is read.

A sample's class is in its JSON, or else the beginning of its key.

Shards that petseg packs are mixed already. Those packed elsewhere are often sorted by class, and then a window of few
shards gives batches of few classes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petseg.data.plan import EpochOrder, Ids, global_batch
from petseg.data.store import LocalStore, Store
from petseg.data.tars import UNREADABLE, TarReader

BATCHES = 32  # batches of an epoch to examine
JSONS = 256  # to read for some batches, and again for samples spread evenly over the split
# of a sample's JSON; the first that has a class counts
FIELDS = ("breed", "class", "cls", "label", "category", "species")
POOR = 0.75  # share of the classes of a batch drawn from all samples, below which mixing is poor


@dataclass(frozen=True)
class Mixing:
    """Mean number of classes in a batch of the epoch's order, and in a batch drawn from the whole split."""

    seen: float
    possible: float
    window_shards: int
    num_shards: int

    @property
    def is_poor(self) -> bool:
        return self.window_shards < self.num_shards and self.seen < POOR * self.possible

    def __str__(self) -> str:
        window = f"{self.window_shards} shard{'s' * (self.window_shards > 1)}"
        return (
            f"a shuffle window of {window} sees {self.seen:.1f} of the {self.possible:.1f} classes that a batch can "
            f"have: the shards are sorted by class; raise data.shuffle_window_shards (there are {self.num_shards})"
        )


def measure_mixing(order: EpochOrder, classes: NDArray[np.int64], batch_size: int, window_shards: int) -> Mixing:
    """The mixing of up to BATCHES batches, spread evenly over the epoch. classes: (N,) of the samples, by position."""
    seen = [len(np.unique(classes[batch])) for batch in some_batches(order, batch_size, BATCHES)]
    counts = np.unique(classes, return_counts=True)[1]
    possible = expected_classes(counts.tolist(), min(batch_size, len(order)))
    return Mixing(float(np.mean(seen)), possible, window_shards, len(order.shards))


def expected_classes(counts: Sequence[int], batch_size: int) -> float:
    """Expected number of classes among `batch_size` samples drawn without replacement; counts: samples of each class.

    A class of n among N samples is missing with the probability C(N - n, B) / C(N, B).
    """
    total = sum(counts)
    return sum(1 - math.exp(_log_choose(total - n, batch_size) - _log_choose(total, batch_size)) for n in counts)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) if k <= n else -math.inf


def classes_of_keys(keys: Sequence[str]) -> NDArray[np.int64] | None:
    """(N,) the class of each sample by its key, as in Abyssinian_1; None if the keys have no classes."""
    names = [key.rpartition("_")[0] for key in keys if key.rpartition("_")[2].isdecimal()]
    classes, numbers = np.unique(names, return_inverse=True)
    if len(names) < len(keys) or "" in classes or not 1 < len(classes) <= len(keys) // 2:
        return None
    return numbers.astype(np.int64)


def some_batches(order: EpochOrder, batch_size: int, count: int) -> list[Ids]:
    """Up to `count` batches of the epoch, spread evenly over it."""
    steps = len(order) // batch_size or 1  # the last batch may be small
    return [global_batch(order, batch_size, int(step)) for step in evenly(steps, count)]


def evenly(num: int, count: int) -> NDArray[np.int64]:
    """Up to `count` of the numbers from 0 to num - 1, spread evenly over them."""
    return np.unique(np.linspace(0, num - 1, min(num, count)).astype(np.int64))


def mixing_of(store: Store, window_shards: int, batch_size: int, seed: int) -> Mixing | None:
    """How the first epoch mixes the train split; None if the window holds all shards, or if no class is known.

    Raises ValueError, OSError or Failure if an index cannot be read.
    """
    shards = store.manifest.of_split("train")
    if window_shards >= len(shards):
        return None
    order = EpochOrder([shard.num_samples for shard in shards], window_shards, seed, epoch=1)
    if isinstance(store, LocalStore):  # a remote set would have to fetch whole shards for their JSON
        with closing(TarReader(store, "train", image_size_px=0)) as reader, suppress(*UNREADABLE):
            if mixing := mixing_by_json(reader, order, batch_size, window_shards):
                return mixing
    classes = classes_of_keys([sample.key for shard in shards for sample in store.index(shard.name)])
    return None if classes is None else measure_mixing(order, classes, batch_size, window_shards)


def mixing_by_json(reader: TarReader, order: EpochOrder, batch_size: int, window_shards: int) -> Mixing | None:
    """The mixing of 2 x JSONS samples at most; None if their JSON has no class.

    The possible number of classes is that of a batch drawn from the evenly spread samples (rarefaction: a part of a
    random sample is a random sample of the whole). Only JSONS samples of a larger batch are examined.
    """
    size = min(batch_size, len(order), JSONS)
    batches = [batch[evenly(len(batch), size)] for batch in some_batches(order, batch_size, max(1, JSONS // size))]
    spread = evenly(len(order), JSONS)
    facts = {int(i): reader.facts(int(i)) for i in np.unique(np.concatenate([*batches, spread]))}
    field = class_field(facts.values())
    if field is None:
        return None
    classes = {i: one[field] for i, one in facts.items()}
    seen = [len({classes[int(i)] for i in batch}) for batch in batches]
    counts = Counter(classes[int(i)] for i in spread)
    possible = expected_classes(list(counts.values()), min(size, len(spread)))
    return Mixing(float(np.mean(seen)), possible, window_shards, len(order.shards))


def class_field(facts: Iterable[Any]) -> str | None:
    """The field that holds the class in the JSON of all samples; None if there is none.

    It has several values, each a text or an integer, but fewer than samples: an id or a caption differs in each sample.
    """
    known = list(facts)
    for field in FIELDS:
        values = [one.get(field) if isinstance(one, Mapping) else None for one in known]
        if all(type(value) in (str, int) for value in values) and 1 < len(set(values)) < len(values):
            return field
    return None
