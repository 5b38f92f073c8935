"""Batches in the order of a plan, read and decoded by threads ahead of the training step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from petseg.data.plan import MicroBatch
from petseg.data.tars import Decoded, TarReader

PREFETCH_BATCHES = 4


@dataclass(frozen=True)
class Batch:
    """Samples as they were decoded; normalisation, augmentation and the target come on the device."""

    plan: MicroBatch
    keys: list[str]
    image: torch.Tensor  # (B, H, W, 3) uint8, contiguous: permuted on the device, that is channels_last for free
    trimap: torch.Tensor  # (B, H, W) uint8


def load_batches(reader: TarReader, plan: Iterable[MicroBatch], threads: int, pin: bool = False) -> Iterator[Batch]:
    """Yield a Batch for each part of the plan, in order, decoding a few batches ahead.

    pin: place the tensors in page-locked memory, from which a GPU copies while it computes.
    Raises Failure that names the sample which could not be read.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        ahead: deque[tuple[MicroBatch, list[Future[Decoded]]]] = deque()
        try:
            for part in plan:
                ahead.append((part, [pool.submit(reader.read, int(i)) for i in part.ids]))
                if len(ahead) > PREFETCH_BATCHES:
                    yield _collate(*ahead.popleft(), pin)
            while ahead:
                yield _collate(*ahead.popleft(), pin)
        finally:
            for _, futures in ahead:
                for future in futures:
                    future.cancel()


def _collate(plan: MicroBatch, futures: list[Future[Decoded]], pin: bool) -> Batch:
    samples = [future.result() for future in futures]
    image = torch.from_numpy(np.stack([sample.image for sample in samples]))
    trimap = torch.from_numpy(np.stack([sample.trimap for sample in samples]))
    if pin:
        image, trimap = image.pin_memory(), trimap.pin_memory()
    return Batch(plan, [sample.key for sample in samples], image, trimap)
