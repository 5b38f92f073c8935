"""The samples of one split, read from the fastest source that has room for them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from petseg.config import DataConfig, RunConfig
from petseg.data.cache import (
    Choice,
    DeviceCache,
    NodeCache,
    choose_cache,
    decoded_bytes,
    open_node_cache,
    room_here,
)
from petseg.data.loader import Batch, WholeReader, load_batches, whole_batches
from petseg.data.local_cache import cache_folder
from petseg.data.plan import EpochOrder, Ids, MicroBatch
from petseg.data.store import Store
from petseg.data.tars import TarReader
from petseg.data.whole.crops import CropReader, Crops
from petseg.data.whole.whole_cache import WholeCache, open_whole_cache, whole_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitData:
    """A split's tars, and the source of its decoded samples: the tars themselves or a cache."""

    tars: TarReader
    source: TarReader | NodeCache | DeviceCache | WholeCache
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
        """A Batch for each micro-batch of the plan, in order; with data.fit crop, one for each whole picture of it."""
        threads = self.threads if self.source is self.tars else 0
        batches: Iterator[Batch]
        if isinstance(self.source, DeviceCache):
            batches = self.source.batches(plan)
        elif self.tars.fit == "crop" or isinstance(self.source, WholeCache):
            batches = whole_batches(self._wholes(), plan, threads, pin)
        else:
            batches = load_batches(self.source, plan, threads, pin)
        return self._with_rows(batches)

    def crops(self, plan: Iterable[MicroBatch], crops: Crops, pin: bool = False) -> Iterator[Batch]:
        """A Batch of crops for each micro-batch of the plan, in order."""
        # to copy some rows takes less than handing over; to look for rare classes does not
        threads = 0 if self.source is not self.tars and not crops.rare else self.threads
        return self._with_rows(load_batches(CropReader(self._wholes(), crops), plan, threads, pin))

    def _wholes(self) -> WholeReader:
        return self.source if isinstance(self.source, WholeCache) else self.tars

    def _with_rows(self, batches: Iterator[Batch]) -> Iterator[Batch]:
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
    tars = {name: TarReader(store, name, data.image_size_px, data.fit) for name in names}
    folder = cache_folder(data.cache_dir)
    num_bytes = sum(bytes_of(reader) for reader in tars.values())
    choice = choose_cache(data.cache, num_bytes, room_here(folder, data.cache_gb, device))
    if data.fit == "crop" and choice.cache == "device":
        choice = Choice("node", f"{choice.why}, but pictures of any size are kept by the node alone")
    logger.info("%s, decoded: %s (%s)", ", ".join(names), choice.cache, choice.why)
    sources = {name: _source(reader, choice, data, device) for name, reader in tars.items()}
    return {name: SplitData(reader, sources[name], data.threads) for name, reader in tars.items()}


def bytes_of(tars: TarReader) -> int:
    """Bytes of a split once it is decoded, as its pictures are kept; with data.fit crop by a sample of them."""
    return whole_bytes(tars) if tars.fit == "crop" else decoded_bytes(len(tars), tars.size_px)


def _source(
    tars: TarReader, choice: Choice, data: DataConfig, device: torch.device
) -> TarReader | NodeCache | DeviceCache | WholeCache:
    if choice.cache == "none":
        return tars
    if tars.fit == "crop":
        return open_whole_cache(tars, data.cache_dir, data.cache_gb) or tars
    node = open_node_cache(tars, data.cache_dir, data.cache_gb)
    if node is None:
        return tars
    return DeviceCache(node, device) if choice.cache == "device" else node
