"""How many samples a second one process loads, side by side: petseg, its peers, and the limits of the parts.

python -m benchmarks.loader --source ../shared/data/pets --json loader.json

Every row goes through all listed pairs (trainval.txt and test.txt) in shuffled batches of 16, as uint8 at 256 x 256.
The rows take turns in every run. LitData and MosaicML Streaming pin older packages than petseg's (python-dateutil,
numpy); each is measured once it has an environment of its own (about 6 GB, most of it torch), and is skipped else:

    python -m venv litdata-env && litdata-env/bin/pip install litdata simplejpeg pillow torch torchvision
    python -m venv mds-env     && mds-env/bin/pip install mosaicml-streaming simplejpeg pillow torch torchvision
    python -m benchmarks.loader --litdata-python litdata-env/bin/python --mds-python mds-env/bin/python
"""

from __future__ import annotations

import io
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from benchmarks import loader_peers as peers
from benchmarks.loader_peers import BATCH_SIZE, SIZE_PX, Way
from petseg.config import DataConfig
from petseg.data.cache import NodeCache, open_node_cache
from petseg.data.loader import load_batches
from petseg.data.plan import Batching, EpochOrder, train_plan
from petseg.data.store import open_store
from petseg.data.tars import TarReader
from shards.command.flags import parse
from shards.pack import pack
from shards.packing.options import PackConfig
from shards.sources.pets import oxford

SEED = 0
CACHE_GB = 50.0
FOOTNOTE = (
    "All splits together. Original: files as they are, squashed to 256 when read; 256: squashed when packed, JPEG and "
    "PNG still to decode. Row 1 resizes the Pillow images that torchvision's class gives. webdataset, LitData and MDS "
    "decode pictures with simplejpeg and masks with Pillow, and resize uint8 tensors. One process, one decoding thread "
    "unless a row says 2; petseg's decoding threads work beside the main one. Limits decode or copy from memory and do "
    "nothing else."
)


@dataclass(frozen=True)
class BenchConfig:
    """Time loading against other ways of loading the same samples."""

    source: Path = Path(os.environ.get("PETSEG_PETS_ROOT", "../shared/data/pets"))
    """Folder in the Oxford-IIIT Pet layout."""
    litdata_python: Path | None = None
    """Python of an environment with LitData."""
    mds_python: Path | None = None
    """Python of an environment with MosaicML Streaming."""
    cores: int = 0
    """Cores that rows with one thread may use (1: decoding and main thread share one); 0 leaves it to the system."""
    runs: int = 5
    """Runs of all rows; medians are shown."""
    json: Path | None = None
    """Write the rows to this file too."""


@dataclass(frozen=True)
class Row:
    """One way of loading; no figures, but a note, if it was not measured."""

    name: str
    samples: int = 0  # seen in one epoch
    samples_per_s: float | None = None
    ratio: float | None = None  # to the first row
    note: str = ""


class NotMeasured(Exception):
    """Why a way cannot be measured here, and what to do about it."""


def petseg_tars(folder: Path, threads: int) -> Way:
    """Shards by byte offset: all splits, one after the other."""
    store = open_store(str(folder))
    return epoch_of([TarReader(store, split, SIZE_PX) for split in store.manifest.splits], threads)


def petseg_cache(folder: Path, cache: Path) -> Way:
    """Decoded beforehand, then copied out of a memory map."""
    store = open_store(str(folder))
    nodes = [open_node_cache(TarReader(store, split, SIZE_PX), str(cache), CACHE_GB) for split in store.manifest.splits]
    return epoch_of([node for node in nodes if node is not None], threads=0)


def epoch_of(sources: Sequence[TarReader | NodeCache], threads: int) -> Way:
    orders = [source.shard_sizes if isinstance(source, TarReader) else [len(source)] for source in sources]

    def load_epoch(epoch: int) -> int:
        samples = 0
        for source, shard_sizes in zip(sources, orders, strict=True):
            order = EpochOrder(shard_sizes, DataConfig.shuffle_window_shards, SEED, epoch)
            plan = train_plan(order, Batching(BATCH_SIZE))
            samples += sum(len(batch.image) - len(batch.lost) for batch in load_batches(source, plan, threads))
        return samples

    return load_epoch


def worker_of(stack: ExitStack, python: Path | None, name: str, shards: Path, scratch: Path) -> Way:
    if python is None:
        raise NotMeasured(f"not measured: give --{name}-python")
    return stack.enter_context(peers.worker(python, name, shards, scratch))


def each(function: Callable[[bytes], object], contents: list[bytes]) -> Way:
    """Apply a decoder to every file, and keep nothing."""

    def apply_to_all(epoch: int) -> int:
        for content in contents:
            function(content)
        return len(contents)

    return apply_to_all


def decode_jpeg(content: bytes) -> object:
    return simplejpeg.decode_jpeg(content, "RGB")


def decode_png(content: bytes) -> object:
    return np.asarray(Image.open(io.BytesIO(content), formats=["PNG"]))


def gather(num_samples: int) -> Way:
    """Copy batches out of decoded arrays in memory into the same batch each time."""
    images = np.full((num_samples, SIZE_PX, SIZE_PX, 3), 1, np.uint8)  # full: each page is really there
    masks = np.full((num_samples, SIZE_PX, SIZE_PX), 1, np.uint8)
    batch_images, batch_masks = images[:BATCH_SIZE].copy(), masks[:BATCH_SIZE].copy()

    def copy_all(epoch: int) -> int:
        order = np.random.default_rng(epoch).permutation(num_samples)
        for start in range(0, num_samples, BATCH_SIZE):
            ids = order[start : start + BATCH_SIZE]
            np.take(images, ids, axis=0, out=batch_images[: len(ids)], mode="clip")  # "raise" would copy twice
            np.take(masks, ids, axis=0, out=batch_masks[: len(ids)], mode="clip")
        return num_samples

    return copy_all


def build_ways(config: BenchConfig, folder: Path, stack: ExitStack) -> dict[str, Callable[[], Way]]:
    """Every row's name and how to set it up; packs the two shard sets that the rows read."""
    root = oxford.find_root(config.source)
    (folder / "root").mkdir()
    (folder / "root" / "oxford-iiit-pet").symlink_to(root.resolve())
    original, packed = folder / "original", folder / "packed"
    for out, image_size_px in ((original, 0), (packed, SIZE_PX)):
        pack(PackConfig(out=out, source=config.source, image_size_px=image_size_px))
    originals, smalls = list(peers.read_tars(original)), list(peers.read_tars(packed))
    return {
        "torchvision + DataLoader": partial(peers.torchvision_folder, folder / "root", on_tensors=False),
        "torchvision + DataLoader, resize on tensors": partial(
            peers.torchvision_folder, folder / "root", on_tensors=True
        ),
        "webdataset, original": partial(peers.webdataset_shards, original),
        "webdataset, 256": partial(peers.webdataset_shards, packed),
        "LitData, 256": partial(worker_of, stack, config.litdata_python, "litdata", packed, folder / "litdata"),
        "MosaicML Streaming, 256": partial(worker_of, stack, config.mds_python, "mds", packed, folder / "mds"),
        "petseg tars, original": partial(petseg_tars, original, 1),
        "petseg tars, original, 2 threads": partial(petseg_tars, original, 2),
        "petseg tars, 256": partial(petseg_tars, packed, 1),
        "petseg tars, 256, 2 threads": partial(petseg_tars, packed, 2),
        "petseg cache, 256": partial(petseg_cache, packed, folder / "cache"),
        "limit: JPEG decode, 256": partial(each, decode_jpeg, [sample["jpg"] for sample in smalls]),
        "limit: JPEG decode, original": partial(each, decode_jpeg, [sample["jpg"] for sample in originals]),
        "limit: PNG decode, 256": partial(each, decode_png, [sample["png"] for sample in smalls]),
        "limit: copy of decoded": partial(gather, len(smalls)),
    }


def pin(cores: int) -> None:
    """Let this thread, and those it starts, run on the first so many of the process's cores."""
    os.sched_setaffinity(0, sorted(ALL_CORES)[:cores] if cores else ALL_CORES)


ALL_CORES = os.sched_getaffinity(0)


def measure(config: BenchConfig) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        builders = build_ways(config, Path(folder), stack)
        pin(config.cores)  # workers inherit it
        ways: dict[str, Way] = {}
        notes: dict[str, str] = {}
        for name, build in builders.items():
            try:
                ways[name] = build()
            except NotMeasured as error:
                notes[name] = str(error)
        samples: dict[str, int] = {}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for run in range(config.runs + 1):
            for name, way in ways.items():
                pin(0 if name.endswith("2 threads") else config.cores)
                start = time.perf_counter()
                samples[name] = way(run)
                if run:  # the first run fills caches
                    seconds[name].append(time.perf_counter() - start)
    speeds = {name: samples[name] / statistics.median(values) for name, values in seconds.items()}
    first = next(iter(speeds.values()))
    return [
        Row(name, samples[name], speeds[name], speeds[name] / first) if name in speeds else Row(name, note=notes[name])
        for name in builders
    ]


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    config = parse(BenchConfig, None, __doc__)
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    rows = measure(config)
    cores = f"{config.cores or len(ALL_CORES)} of {os.cpu_count()} CPUs"
    title = f"{config.source}: batches of {BATCH_SIZE}, {cores}, median of {config.runs} runs"
    table = Table(title=title, caption=FOOTNOTE)
    for column in ("way", "samples", "samples/s", "times row 1"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        if row.samples_per_s is None or row.ratio is None:
            table.add_row(row.name, "", row.note, "")
        else:
            table.add_row(row.name, f"{row.samples:,}", f"{row.samples_per_s:,.0f}", f"{row.ratio:.2f}")
    Console().print(table)
    if config.json is not None:
        facts = {
            "cpus": os.cpu_count(),
            "cores": config.cores or len(ALL_CORES),
            "runs": config.runs,
            "batch_size": BATCH_SIZE,
            "image_size_px": SIZE_PX,
            "footnote": FOOTNOTE,
            "rows": [asdict(row) for row in rows],
        }
        config.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
