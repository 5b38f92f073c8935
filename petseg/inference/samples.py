"""Pictures at the size of a network, with their classes where a shard set has them: to compare, to calibrate."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from petseg.config import RunConfig
from petseg.config.sizes import Fit
from petseg.config.values import with_values
from petseg.data.consent import remember
from petseg.data.inputs import to_classes
from petseg.data.store import Store, open_store
from petseg.data.tars import TarReader
from petseg.inference.header import Header
from petseg.targets.pets import NAMED_TARGETS
from petseg.targets.target import AS_PACKED, Target, resolve_target
from shards.cause import Cause
from shards.command import Failure


@dataclass(frozen=True)
class Samples:
    """Pictures in the order of their split."""

    images: torch.Tensor  # (N, H, W, 3) uint8
    classes: torch.Tensor | None  # (N, H, W) uint8; None of drawn pictures


def drawn_samples(header: Header, number: int) -> Samples:
    """Soft patches of random colours: always the same ones, and of no use for Dice."""
    height, width = header.size_px
    patches = torch.rand(number, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(patches, size=(height, width), mode="bicubic", align_corners=True).clamp(0, 1) * 255
    return Samples(images.byte().permute(0, 2, 3, 1).contiguous(), None)


def read_samples(header: Header, shards: str, split: str, number: int) -> Samples:
    """Up to `number` pictures, evenly spread over a split, squashed or letterboxed as the model's own rule says.

    Whole pictures are letterboxed for a model of crops: they do for comparing and calibrating.
    Raises ValueError for a set with other classes, and Failure for a picture that cannot be read.
    """
    remember([shards])
    with closing(open_store(shards)) as store:
        store.manifest.require_samples((split,), shards)
        target = target_of(header, store)
        fit: Fit = "squash" if header.fit == "squash" else "letterbox"
        with closing(TarReader(store, split, header.image_size_px, fit)) as reader:
            ids = np.linspace(0, len(reader) - 1, min(number, len(reader))).astype(np.int64)
            images = np.empty((len(ids), *header.size_px, 3), np.uint8)
            labels = np.empty((len(ids), *header.size_px), np.uint8)
            loaded = reader.load(ids, images, labels)
            if loaded.lost:
                raise Failure(f"cannot be read: {loaded.lost[0]}", Cause.DATA)
            rows = torch.from_numpy(target.rows_of([reader.key(int(one)) for one in ids]))
    classes = to_classes(torch.from_numpy(labels), torch.from_numpy(target.table), rows if target.kinds else None)
    return Samples(torch.from_numpy(images), classes)


def config_of(header: Header, shards: str) -> RunConfig:
    """The config of a run that would learn on a shard set what the header's model has learnt."""
    values = {
        "data.shards": shards, "data.image_size_px": header.image_size_px, "data.fit": header.fit,
        "data.border": header.border, "train.mixed_precision": header.mixed_precision,
        "train.channels_last": header.channels_last,
    }  # fmt: skip
    if header.target in NAMED_TARGETS:
        values["data.target"] = header.target
    elif header.target != AS_PACKED:
        raise ValueError(
            f"the model has learnt {', '.join(header.names)} by {header.target}, a file that merges classes: its run "
            "can be measured with `python -m petseg.evaluate`, the weights file cannot"
        )
    return replace(with_values(RunConfig(), values), model=header.models[0].config())


def target_of(header: Header, store: Store) -> Target:
    """The target of a shard set that is the header's; raises ValueError if its classes are others."""
    target = resolve_target(config_of(header, store.location).data, store)
    if target.names != header.names:
        raise ValueError(
            f"{store.location} has the classes {', '.join(target.names)}, and the model {', '.join(header.names)}"
        )
    return target
