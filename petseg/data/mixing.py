"""How well an epoch's order mixes the classes of shards that are sorted by class: by the plan, no picture is read.

A sample's class is what its JSON says, or else how its key begins.

Shards that petseg packs are mixed already. Those packed elsewhere often stand one class behind the other, and then a
window of few shards gives batches of few classes.
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

BATCHES = 32  # of an epoch, that are looked at
JSONS = 256  # read of some batches, and as many of samples spread evenly over the split
FIELDS = ("breed", "class", "cls", "label", "category", "species")  # of a sample's JSON, the first one that tells
POOR = 0.75  # share of the classes of a batch drawn from all samples, below which mixing is poor


@dataclass(frozen=True)
class Mixing:
    """Mean number of classes in a batch: by the order of an epoch, and in one drawn from the whole split."""

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
    """Exact for up to BATCHES batches, spread evenly over the epoch. classes: (N,) of the samples, by position."""
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
    """(N,) the class of each sample by its key, as in Abyssinian_1; None where the keys do not tell classes."""
    names = [key.rpartition("_")[0] for key in keys if key.rpartition("_")[2].isdecimal()]
    found, numbers = np.unique(names, return_inverse=True)
    if len(names) < len(keys) or "" in found or not 1 < len(found) <= len(keys) // 2:
        return None
    return numbers.astype(np.int64)


def some_batches(order: EpochOrder, batch_size: int, count: int) -> list[Ids]:
    """At most so many batches of the epoch, spread evenly over it."""
    steps = len(order) // batch_size or 1  # the last batch may be small
    return [global_batch(order, batch_size, int(step)) for step in evenly(steps, count)]


def evenly(num: int, count: int) -> NDArray[np.int64]:
    """At most `count` of the numbers from 0 to num - 1, from the first to the last."""
    return np.unique(np.linspace(0, num - 1, min(num, count)).astype(np.int64))


def mixing_of(store: Store, window_shards: int, batch_size: int, seed: int) -> Mixing | None:
    """How the train split is mixed in the first epoch; None where the window holds all shards or no class is known.

    Raises ValueError, OSError or Failure if an index cannot be read.
    """
    shards = store.manifest.of_split("train")
    if window_shards >= len(shards):
        return None
    order = EpochOrder([shard.num_samples for shard in shards], window_shards, seed, epoch=1)
    if isinstance(store, LocalStore):  # of a remote set whole shards would have to be fetched for their JSON
        with closing(TarReader(store, "train", image_size_px=0)) as reader, suppress(*UNREADABLE):
            if found := mixing_by_json(reader, order, batch_size, window_shards):
                return found
    classes = classes_of_keys([sample.key for shard in shards for sample in store.index(shard.name)])
    return None if classes is None else measure_mixing(order, classes, batch_size, window_shards)


def mixing_by_json(reader: TarReader, order: EpochOrder, batch_size: int, window_shards: int) -> Mixing | None:
    """Measured on 2 x JSONS samples at most; None where their JSON tells no class.

    What a batch could have is what one drawn from the evenly spread samples would have (rarefaction: a part of a random
    sample is a random sample of the whole). A batch that is larger than JSONS is looked at in part.
    """
    size = min(batch_size, len(order), JSONS)
    batches = [batch[evenly(len(batch), size)] for batch in some_batches(order, batch_size, max(1, JSONS // size))]
    spread = evenly(len(order), JSONS)
    facts = {int(i): reader.facts(int(i)) for i in np.unique(np.concatenate([*batches, spread]))}
    field = telling_field(facts.values())
    if field is None:
        return None
    classes = {i: one[field] for i, one in facts.items()}
    seen = [len({classes[int(i)] for i in batch}) for batch in batches]
    counts = Counter(classes[int(i)] for i in spread)
    possible = expected_classes(list(counts.values()), min(size, len(spread)))
    return Mixing(float(np.mean(seen)), possible, window_shards, len(order.shards))


def telling_field(facts: Iterable[Any]) -> str | None:
    """The field in which all samples' JSON has a class; None if there is none.

    Several values, each a text or a whole number, and not another one in each sample, as an id or a caption has.
    """
    known = list(facts)
    for field in FIELDS:
        values = [one.get(field) if isinstance(one, Mapping) else None for one in known]
        if all(type(value) in (str, int) for value in values) and 1 < len(set(values)) < len(values):
            return field
    return None
