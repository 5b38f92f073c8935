"""The samples of one split, read from the fastest source that has room for them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from petseg.config import RunConfig
from petseg.data.cache import DeviceCache, NodeCache, choose_cache, decoded_bytes, open_node_cache, room_here
from petseg.data.loader import Batch, load_batches
from petseg.data.local_cache import cache_folder
from petseg.data.plan import EpochOrder, Ids, MicroBatch
from petseg.data.store import Store
from petseg.data.tars import TarReader

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitData:
    """A split's tars, and the source of its decoded samples: the tars themselves or a cache."""

    tars: TarReader
    source: TarReader | NodeCache | DeviceCache
    threads: int
    rows: Ids | None = None  # (N,) of the samples in the target's tables; None where these have one row

    def __len__(self) -> int:
        return len(self.tars)

    def key(self, position: int) -> str:
        return self.tars.key(position)

    def keys(self) -> list[str]:
        """The keys of all samples, in the order of their positions."""
        return [self.tars.key(position) for position in range(len(self))]

    def batches(self, plan: Iterable[MicroBatch], pin: bool = False) -> Iterator[Batch]:
        """A Batch for each micro-batch of the plan, in order."""
        if isinstance(self.source, DeviceCache):
            batches = self.source.batches(plan)
        else:
            batches = load_batches(self.source, plan, self.threads if self.source is self.tars else 0, pin)
        if self.rows is None:
            return batches
        rows = self.rows
        return (replace(batch, rows=rows[batch.plan.ids]) for batch in batches)

    def prefetched(self, plan: Iterable[MicroBatch], order: EpochOrder, batch_size: int) -> Iterator[MicroBatch]:
        """Pass on the plan; on entering a window of the order, announce the shards of this window and the next."""
        entered = -1
        for micro_batch in plan:
            window = order.window_at(micro_batch.step * batch_size)
            if window != entered and self.source is self.tars:
                self.tars.prefetch([*order.shards_of_window(window), *order.shards_of_window(window + 1)])
            entered = window
            yield micro_batch


def open_splits(config: RunConfig, store: Store, names: Sequence[str], device: torch.device) -> dict[str, SplitData]:
    """The splits of a shard set, decoded in advance if `data.cache` says so or, with "auto", if there is room.

    Raises ValueError if a cache was asked for and has no room.
    """
    data = config.data
    tars = {name: TarReader(store, name, data.image_size_px) for name in names}
    folder = cache_folder(data.cache_dir)
    num_bytes = sum(decoded_bytes(len(reader), data.image_size_px) for reader in tars.values())
    choice = choose_cache(data.cache, num_bytes, room_here(folder, data.cache_gb, device))
    logger.info("%s, decoded: %s (%s)", ", ".join(names), choice.cache, choice.why)
    splits = {}
    for name, reader in tars.items():
        source: TarReader | NodeCache | DeviceCache = reader
        node = open_node_cache(reader, data.cache_dir, data.cache_gb) if choice.cache != "none" else None
        if node is not None:
            source = DeviceCache(node, device) if choice.cache == "device" else node
        splits[name] = SplitData(reader, source, data.threads)
    return splits
