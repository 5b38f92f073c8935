"""Batches in the order of a plan, which threads read and decode ahead of the training step."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from petseg.config.sizes import Size
from petseg.data.decode import Pixels
from petseg.data.plan import Ids, MicroBatch
from petseg.data.tars import Loaded, Lost, Whole

PREFETCH_BATCHES = 4


class Reader(Protocol):
    """Reads samples of a split, from tars or from a cache of decoded ones."""

    size_px: Size  # of the samples

    def load(self, ids: Ids, image: Pixels, labels: Pixels) -> Loaded:
        """Write samples into image (B, H, W, 3) and labels (B, H, W) uint8."""


class WholeReader(Protocol):
    """Reads pictures at their own size, from tars or from a cache of decoded ones."""

    def whole(self, position: int) -> Whole | Lost:
        """A sample, or why it cannot be read."""


@dataclass(frozen=True)
class Batch:
    """Samples as they were decoded; they are normalised and augmented on the device."""

    plan: MicroBatch
    image: torch.Tensor  # (B, H, W, 3) uint8, contiguous: permuted on the device, this is channels_last for free
    labels: torch.Tensor  # (B, H, W) uint8
    weight: torch.Tensor  # (B,) float32: 0 for fillers and for samples that could not be read, else 1
    hashes: NDArray[np.uint64]  # (B,) hashes of the keys as they were read, 0 where a sample is lost
    lost: list[Lost] = field(default_factory=list)
    rows: Ids | None = None  # (B,) of the samples in the target's tables; None where these have one row


def load_batches(reader: Reader, plan: Iterable[MicroBatch], threads: int, pin: bool = False) -> Iterator[Batch]:
    """Yield a Batch for each micro-batch of the plan, in order; with threads, a few batches are decoded ahead.

    threads: 0 loads in the caller's thread, which is faster for a cache: copying takes less than handing over
    pin: put the tensors in page-locked memory, from which a GPU copies while it computes
    An unreadable sample raises no error: it is among the batch's lost ones, and its weight is 0.
    """
    buffers = _Buffers(reader.size_px, pin)
    if threads == 0:
        for micro_batch in plan:
            image, labels = buffers.batch(len(micro_batch.ids))
            yield _batch(micro_batch, image, labels, [reader.load(micro_batch.ids, image.numpy(), labels.numpy())])
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        ahead: deque[_Pending] = deque()
        try:
            for micro_batch in plan:
                ahead.append(_Pending(micro_batch, reader, threads, buffers, pool))
                if len(ahead) > PREFETCH_BATCHES:
                    yield ahead.popleft().batch()
            while ahead:
                yield ahead.popleft().batch()
        finally:
            for pending in ahead:
                pending.cancel()


def whole_batches(reader: WholeReader, plan: Iterable[MicroBatch], threads: int, pin: bool = False) -> Iterator[Batch]:
    """Yield a Batch of one picture at its own size for each sample of the plan, in order; some are decoded ahead.

    threads: 0 reads in the caller's thread
    A sample that cannot be read is a black pixel, and its weight is 0.
    """
    positions = (position for micro_batch in plan for position in micro_batch.ids.tolist())
    if threads == 0:
        for position in positions:
            yield _whole_batch(position, reader.whole(position), pin)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        ahead: deque[tuple[int, Future[Whole | Lost]]] = deque()
        try:
            for position in positions:
                ahead.append((position, pool.submit(reader.whole, position)))
                if len(ahead) > PREFETCH_BATCHES:
                    first, future = ahead.popleft()
                    yield _whole_batch(first, future.result(), pin)
            while ahead:
                first, future = ahead.popleft()
                yield _whole_batch(first, future.result(), pin)
        finally:
            for _, future in ahead:
                future.cancel()


def _whole_batch(position: int, picture: Whole | Lost, pin: bool) -> Batch:
    plan = MicroBatch(np.array([position]), step=0, step_samples=1, last=True)
    if isinstance(picture, Lost):
        nothing = Whole(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8), hash=0)
        return _batch(plan, *_tensors(nothing, pin), [Loaded(np.zeros(1, np.uint64), [picture])])
    return _batch(plan, *_tensors(picture, pin), [Loaded(np.array([picture.hash], np.uint64))])


def _tensors(picture: Whole, pin: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture (1, h, w, 3) and labels (1, h, w) in memory of their own: those of a cache are its file's."""
    image, labels = (torch.from_numpy(np.array(pixels)[None]) for pixels in (picture.image, picture.labels))
    return (image.pin_memory(), labels.pin_memory()) if pin else (image, labels)


class _Buffers:
    """Memory for batches, reused once the last tensor on it is gone.

    Fresh memory costs a page fault every 4 KiB, which takes as long as copying decoded samples into it.
    """

    def __init__(self, size_px: Size, pin: bool) -> None:
        self._size, self._pin = size_px, pin
        self._free: dict[int, list[Pixels]] = defaultdict(list)  # by size in bytes

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (size, H, W, 3) and labels (size, H, W) uint8, uninitialised."""
        return self._tensor((size, *self._size, 3)), self._tensor((size, *self._size))

    def _tensor(self, shape: tuple[int, ...]) -> torch.Tensor:
        if self._pin:  # torch itself keeps page-locked memory, until the device has copied it
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        size = math.prod(shape)
        # torch's memory is aligned to 64 bytes: copying into numpy's, aligned to 16, takes 1.5 times as long
        memory = self._free[size].pop() if self._free[size] else torch.empty(size, dtype=torch.uint8).numpy()
        array = memory.reshape(shape)
        weakref.finalize(array, self._free[size].append, memory)  # tensors made from an array keep it alive
        return torch.from_numpy(array)


class _Pending:
    """A batch that is being decoded: each thread writes a run of its samples."""

    def __init__(
        self, plan: MicroBatch, reader: Reader, threads: int, buffers: _Buffers, pool: ThreadPoolExecutor
    ) -> None:
        size = len(plan.ids)
        self._plan = plan
        self._image, self._labels = buffers.batch(size)
        image, labels = self._image.numpy(), self._labels.numpy()
        bounds = pairwise(size * i // threads for i in range(threads + 1))
        runs = [slice(first, end) for first, end in bounds if end > first]
        self._futures: list[Future[Loaded]] = [
            pool.submit(reader.load, plan.ids[run], image[run], labels[run]) for run in runs
        ]

    def batch(self) -> Batch:
        return _batch(self._plan, self._image, self._labels, [future.result() for future in self._futures])

    def cancel(self) -> None:
        for future in self._futures:
            future.cancel()


def _batch(plan: MicroBatch, image: torch.Tensor, labels: torch.Tensor, loaded: list[Loaded]) -> Batch:
    hashes = np.concatenate([run.hashes for run in loaded])
    weight = torch.zeros(len(hashes)) if plan.filler else torch.from_numpy((hashes != 0).astype(np.float32))
    return Batch(plan, image, labels, weight, hashes, [lost for run in loaded for lost in run.lost])
