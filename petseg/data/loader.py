"""Batches in the order of a plan, read and decoded by threads ahead of the training step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from petseg.data.decode import Pixels
from petseg.data.plan import Ids, MicroBatch
from petseg.data.tars import Loaded, Lost

PREFETCH_BATCHES = 4


class Reader(Protocol):
    """Where the samples of a split come from: tars, or a cache of decoded ones."""

    image_size_px: int

    def load(self, ids: Ids, image: Pixels, trimap: Pixels) -> Loaded: ...


@dataclass(frozen=True)
class Batch:
    """Samples as they were decoded; normalisation, augmentation and the target come on the device."""

    plan: MicroBatch
    image: torch.Tensor  # (B, H, W, 3) uint8, contiguous: permuted on the device, that is channels_last for free
    trimap: torch.Tensor  # (B, H, W) uint8
    weight: torch.Tensor  # (B,) float32: 0 for fillers and for samples that could not be read, else 1
    hashes: NDArray[np.uint64]  # (B,) of the keys as they were read, 0 where a sample is lost
    lost: list[Lost] = field(default_factory=list)


def load_batches(reader: Reader, plan: Iterable[MicroBatch], threads: int, pin: bool = False) -> Iterator[Batch]:
    """Yield a Batch for each part of the plan, in order, decoding a few batches ahead.

    pin: place the tensors in page-locked memory, from which a GPU copies while it computes.
    A sample that cannot be read raises nothing: it is among the batch's lost ones, and weighs nothing.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        ahead: deque[_Coming] = deque()
        try:
            for part in plan:
                ahead.append(_Coming(part, reader, threads, pin, pool))
                if len(ahead) > PREFETCH_BATCHES:
                    yield ahead.popleft().batch()
            while ahead:
                yield ahead.popleft().batch()
        finally:
            for coming in ahead:
                coming.cancel()


class _Coming:
    """A batch that is being decoded, each thread writing its run of samples into its place."""

    def __init__(self, plan: MicroBatch, reader: Reader, threads: int, pin: bool, pool: ThreadPoolExecutor) -> None:
        size, side = len(plan.ids), reader.image_size_px
        self._plan = plan
        self._image = torch.empty((size, side, side, 3), dtype=torch.uint8, pin_memory=pin)
        self._trimap = torch.empty((size, side, side), dtype=torch.uint8, pin_memory=pin)
        image, trimap = self._image.numpy(), self._trimap.numpy()
        bounds = pairwise(size * i // threads for i in range(threads + 1))
        runs = [slice(first, end) for first, end in bounds if end > first]
        self._futures: list[Future[Loaded]] = [
            pool.submit(reader.load, plan.ids[run], image[run], trimap[run]) for run in runs
        ]

    def batch(self) -> Batch:
        loaded = [future.result() for future in self._futures]
        hashes = np.concatenate([run.hashes for run in loaded])
        weight = torch.zeros(len(hashes)) if self._plan.filler else torch.from_numpy((hashes != 0).astype(np.float32))
        lost = [lost for run in loaded for lost in run.lost]
        return Batch(self._plan, self._image, self._trimap, weight, hashes, lost)

    def cancel(self) -> None:
        for future in self._futures:
            future.cancel()
