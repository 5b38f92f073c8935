"""Models beside each other: Dice by one protocol, size, speed and memory, all measured in one run on one machine."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from petseg.config.sizes import size_of
from petseg.data.decode import Pixels
from petseg.inference.from_runs import interval
from petseg.inference.point_files import Point, Points, Speed
from petseg.inference.predictor import Options, Predictor, load_predictor
from petseg.inference.samples import config_of
from petseg.inference.scores import Measurement, evaluate_model
from petseg.inference.weights_file import build_network

BATCH = 8


def measure_points(paths: Sequence[Path], wanted: Measurement, repeats: int) -> Points:
    """Measure weights files and ONNX files. Raises ValueError if they have not learnt the same classes."""
    predictors = [load_predictor([path], "cpu") for path in paths]
    for path, other in zip(paths[1:], predictors[1:], strict=True):
        if other.classes != predictors[0].classes:
            raise ValueError(
                f"{path} has the classes {', '.join(other.classes)}, and {paths[0]} {', '.join(predictors[0].classes)}"
            )
    evaluated = [_evaluate(one, wanted) for one in predictors]
    speeds = measure_speeds(predictors, repeats)
    first = evaluated[0]
    points = [
        Point(
            name=path.name,
            dice=statistics.fmean(content["dice"].values()),
            dice_interval_95=interval(list(content["dice"].values())),
            difference_to_first=_difference(content["dice"], first["dice"]) if number else None,
            file_mb=path.stat().st_size / 1e6,
            parameters=_parameters(predictor),
            speed=speed,
            peak_memory_mb=peak_memory_mb(path),
        )
        for number, (path, predictor, content, speed) in enumerate(
            zip(paths, predictors, evaluated, speeds, strict=True)
        )
    ]
    protocol, split = first["protocol"], first["split"]
    return Points(protocol, split, first["manifest_hash"], cpu_name(), torch.get_num_threads(), tuple(points))


def measure_speeds(predictors: Sequence[Predictor], repeats: int) -> list[Speed]:
    """Each repeat takes all models in turn, so that what else the machine does meets all of them."""
    pictures = [_picture(predictor, number) for predictor in predictors[:1] for number in range(BATCH)]
    single: list[list[float]] = [[] for _ in predictors]
    batches: list[list[float]] = [[] for _ in predictors]
    for repeat in range(repeats + 1):
        for number, predictor in enumerate(predictors):
            one, all_ = _seconds(predictor, pictures[:1]), _seconds(predictor, pictures)
            if repeat:  # the first warms up
                single[number].append(one)
                batches[number].append(all_)
    return [
        Speed(statistics.median(one) * 1e3, BATCH / statistics.median(many))
        for one, many in zip(single, batches, strict=True)
    ]


def cpu_name() -> str:
    """The CPU as the kernel names it; "CPU" where it names none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def peak_memory_mb(path: Path) -> float:
    """Growth of the peak memory of a fresh process that loads a model and predicts one batch."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_grown_mb, os.fspath(path)).result()


def _grown_mb(path: str) -> float:
    # Linux counts the peak from here on; otherwise it would be that of the process that started this one
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_mb()
    predictor = load_predictor([Path(path)], "cpu")
    list(predictor.predictions([_picture(predictor, number) for number in range(BATCH)], Options(batch_size=BATCH)))
    return _peak_mb() - before


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 1024


def _seconds(predictor: Predictor, pictures: Sequence[Pixels]) -> float:
    start = time.perf_counter()
    list(predictor.predictions(pictures, Options(batch_size=BATCH)))
    return time.perf_counter() - start


def _picture(predictor: Predictor, seed: int) -> Pixels:
    size = size_of(predictor.header.image_size_px)
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def _evaluate(predictor: Predictor, wanted: Measurement) -> dict[str, Any]:
    config = config_of(predictor.header, wanted.shards)
    with tempfile.TemporaryDirectory() as folder:
        return evaluate_model(predictor.model, config, Path(folder), wanted)


def _parameters(predictor: Predictor) -> int:
    with torch.device("meta"):
        return sum(one.numel() for one in build_network(predictor.header).parameters())


def _difference(dice: dict[str, float], first: dict[str, float]) -> list[float] | None:
    """The mean difference over the same pictures, and its interval; None for a single picture, which has none."""
    each = [value - first[key] for key, value in dice.items()]
    ends = interval(each)
    return [statistics.fmean(each), *ends] if ends else None
