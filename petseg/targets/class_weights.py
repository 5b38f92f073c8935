"""Weights of classes in the loss: given, or from how often the classes occur in train (numpy only)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petseg.targets.target import Target
from shards.manifest import Manifest

Floats = NDArray[np.float32]


def class_weights(setting: str, target: Target, manifest: Manifest) -> Floats | None:
    """(K,) weights by train.class_weights; None for equal ones.

    frequency: median frequency balancing (Eigen and Fergus 2015, section 6.3.2), by pixels of the whole train split; a
    class without pixels has the weight 1
    Raises ValueError for weights that do not fit the classes, and where the shard set does not say its frequencies.
    """
    if setting == "none":
        return None
    if setting == "frequency":
        pixels = train_pixels(target, manifest)
        occurring = pixels[pixels > 0]
        return np.where(pixels > 0, np.median(occurring) / np.maximum(pixels, 1), 1.0).astype(np.float32)
    try:
        weights = [float(number) for number in setting.split(",")]
    except ValueError:
        weights = []
    if len(weights) != len(target) or not all(0 <= one < math.inf for one in weights) or not any(weights):
        raise ValueError(
            f"train.class_weights = {setting!r}: choose none, frequency, or {len(target)} numbers of 0 or more, "
            f"separated by commas: of {', '.join(target.names)}"
        )
    return np.array(weights, np.float32)


def train_pixels(target: Target, manifest: Manifest) -> NDArray[np.int64]:
    """(K,) pixels of each class in train, by the counts that `python -m shards.pack` notes in the manifest."""
    labels: Any = manifest.packer.get("labels")
    try:
        counts = [int(count) for count in labels["pixels"]["train"]]
    except (KeyError, TypeError, ValueError):
        counts = []
    if manifest.classes is None or len(counts) != len(manifest.classes) + 1 or sum(counts[:-1]) <= 0:
        raise ValueError(
            "train.class_weights = 'frequency': the shard set does not say how many pixels its classes have; give a "
            f"number for each of {', '.join(target.names)}, such as {','.join('1' * len(target))}"
        )
    pixels = np.zeros(len(target), np.int64)
    for label, count in enumerate(counts[:-1]):
        if (value := int(target.table[0, label])) < len(target):
            pixels[value] += count
    return pixels
