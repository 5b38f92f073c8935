"""Pictures on disk to masks on disk: petseg.predict beside the usual eager loop and beside onnxruntime.

python -m benchmarks.predict --weights winner.safetensors --pictures data/pets/images --count 400
python -m benchmarks.predict --weights winner.safetensors --pictures data/pets/images --onnx winner.onnx

All use the same network on the same pictures and take turns, and the medians are compared. The eager loop is what one
writes with segmentation-models-pytorch: Pillow decodes and resizes, the model runs in float32, and the mask at the
picture's own size is saved as PNG. The onnxruntime loop differs in the network alone, an ONNX file of petseg.export.
"""

from __future__ import annotations

import copy
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from petseg.data.inputs import MEAN, STD
from petseg.inference.many.inputs import Input, list_inputs
from petseg.inference.many.outputs import OutputFolder, write_summary
from petseg.inference.many.work import Work
from petseg.inference.predictor import Options, Predictor, load_predictor
from shards.command import OK, run_command
from shards.command.flags import parse

Logits = Callable[[NDArray[np.float32]], torch.Tensor]
Contestant = Callable[[Path], None]


@dataclass(frozen=True)
class BenchConfig:
    """Measure pictures per second, from files to masks."""

    weights: Path
    """The weights file."""
    pictures: Path
    """Folder of pictures."""
    onnx: Path | None = None
    """An ONNX file of this network; onnxruntime is measured too."""
    count: int = 200
    """Pictures of each turn."""
    turns: int = 5
    """Turns of each."""
    batch_size: int = 8
    """Pictures that go through the network together."""
    threads: int = 2
    """Threads of torch and of onnxruntime, and those with which petseg reads and writes."""
    json: Path | None = None
    """Write the figures there too."""


def run_petseg(config: BenchConfig, predictor: Predictor, items: Sequence[Input]) -> Contestant:
    def run(out: Path) -> None:
        output = OutputFolder(out, ("masks",), coco="none")
        options = Options(batch_size=config.batch_size)
        Work(predictor, options, output, config.batch_size, config.threads).run(items, lambda _: None)
        write_summary(output, items, predictor.header)

    return run


def run_loop(config: BenchConfig, logits_of: Logits, size_px: tuple[int, int], items: Sequence[Input]) -> Contestant:
    """One picture after the other, the network by batches: the script that one writes."""

    def run(out: Path) -> None:
        out.mkdir()
        for first in range(0, len(items), config.batch_size):
            batch = items[first : first + config.batch_size]
            pictures = [Image.open(item.path).convert("RGB") for item in batch]
            small = [one.resize(size_px[::-1], Image.Resampling.BILINEAR) for one in pictures]
            arrays = np.stack([np.asarray(one, np.float32) / 255 for one in small])
            normal = ((arrays - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(0, 3, 1, 2)
            for item, picture, logits in zip(batch, pictures, logits_of(np.ascontiguousarray(normal)), strict=True):
                size = picture.size[::-1]
                native = torch.nn.functional.interpolate(logits[None], size=size, mode="bilinear")
                mask = native.argmax(dim=1)[0].to(torch.uint8).numpy()
                Image.fromarray(mask).save(out / f"{item.name}.png")

    return run


def eager(predictor: Predictor) -> Logits:
    """Run a copy of the predictor's network in float32 and in torch's usual layout."""
    model = copy.deepcopy(predictor.model).to(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def logits(image: NDArray[np.float32]) -> torch.Tensor:
        found: torch.Tensor = model(torch.from_numpy(image))
        return found

    return logits


def onnx(path: Path, threads: int) -> Logits:
    onnxruntime = importlib.import_module("onnxruntime")  # an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: torch.from_numpy(session.run(None, {name: image})[0])


def take_turns(contestants: dict[str, Contestant], turns: int) -> dict[str, list[float]]:
    """Seconds of each turn of each, after a turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, run in contestants.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                run(Path(folder) / "out")
                took = time.perf_counter() - start
            if turn:
                seconds[name].append(took)
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(BenchConfig, argv, __doc__)
    torch.set_num_threads(config.threads)
    items = list_inputs([str(config.pictures)], (), Path("nowhere"))[: config.count]
    predictor = load_predictor([config.weights])
    size_px = predictor.header.size_px
    contestants = {
        "petseg": run_petseg(config, predictor, items),
        "eager loop": run_loop(config, eager(predictor), size_px, items),
    }
    if config.onnx is not None:
        contestants["onnxruntime loop"] = run_loop(config, onnx(config.onnx, config.threads), size_px, items)
    seconds = take_turns(contestants, config.turns)
    rates = {name: len(items) / statistics.median(taken) for name, taken in seconds.items()}
    for name, rate in rates.items():
        sys.stdout.write(f"{name:20} {rate:7.1f} pictures/s, petseg / this {rates['petseg'] / rate:5.2f}\n")
    if config.json:
        config.json.write_text(json.dumps({"rates": rates, "seconds": seconds}, indent=2) + "\n")
    return OK


if __name__ == "__main__":
    sys.exit(run_command(main))
