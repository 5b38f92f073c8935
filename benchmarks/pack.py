"""How long packing takes, against decoding and re-encoding the same pictures and trimaps once.

python -m benchmarks.pack --source ../shared/data/pets --camvid ../shared/data/camvid --json pack.json
python -m benchmarks.pack --source ../shared/data/pets --drawn-pairs 50000 --runs 1

All rows use the same number of processes, each starts its own, and the rows take turns in every run. With --camvid and
--drawn-pairs, pictures and masks of classes that patterns pair are packed in the same runs.
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
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import simplejpeg
from PIL import Image

from benchmarks.drawn_pairs import draw_pairs
from shards import pool
from shards.command.flags import parse
from shards.pack import pack
from shards.packing.options import PackConfig
from shards.packing.origin import list_files
from shards.packing.plan import CHUNK
from shards.packing.survey import write_table
from shards.sources.listing import Listed
from shards.sources.pets import oxford

QUALITY = 95
NUM_CLASSES = 20  # of drawn pairs
CEILING = 1.3  # what packing may cost, in times of the first row


@dataclass(frozen=True)
class BenchConfig:
    """Time packing against decoding and re-encoding once."""

    source: Path = Path(os.environ.get("PETSEG_PETS_ROOT", "../shared/data/pets"))
    """Folder in the Oxford-IIIT Pet layout."""
    camvid: Path | None = None
    """Folder with images/SPLIT/KEY.jpg and masks/SPLIT/KEY.png, such as CamVid."""
    drawn_pairs: int = 0
    """Draw so many pairs of 160x120 pixels with 20 classes, and pack them too."""
    workers: int = 0
    """Processes of every row; 0 means one per core."""
    runs: int = 5
    """Runs of all rows; medians are shown."""
    json: Path | None = None
    """Write the rows to this file too."""


@dataclass(frozen=True)
class Row:
    """One way of going through all samples."""

    name: str
    seconds: float
    samples_per_s: float
    ratio: float  # to the first row of the same data set


@dataclass(frozen=True)
class Way:
    """What one row measures, on how many samples."""

    run: Callable[[], None]
    num_samples: int
    first: str  # the row to compare with


def reencode_simplejpeg(samples: tuple[Listed, ...]) -> int:
    """Decode and encode each picture and mask once; returns the bytes that came out."""
    return sum(_reencode_picture(sample) + _reencode_mask(sample) for sample in samples)


def reencode_pillow(samples: tuple[Listed, ...]) -> int:
    """Decode and re-encode with Pillow alone."""
    return sum(_reencode_picture_pillow(one.picture.read_bytes()) + _reencode_mask(one) for one in samples)


def _reencode_picture(sample: Listed) -> int:
    data = sample.picture.read_bytes()
    if not data.startswith(b"\xff\xd8"):  # a PNG or GIF under a .jpg name
        return _reencode_picture_pillow(data)
    pixels = simplejpeg.decode_jpeg(data, "RGB")
    return len(simplejpeg.encode_jpeg(pixels, QUALITY, "RGB", colorsubsampling="420"))


def _reencode_picture_pillow(data: bytes) -> int:
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(file, "JPEG", quality=QUALITY)
    return len(file.getvalue())


def _reencode_mask(sample: Listed) -> int:
    file = io.BytesIO()
    Image.open(io.BytesIO(sample.files()[1].read_bytes())).save(file, "PNG")
    return len(file.getvalue())


def reencode_all(function: Callable[[tuple[Listed, ...]], int], samples: Sequence[Listed], workers: int) -> None:
    chunks = [tuple(samples[start : start + CHUNK]) for start in range(0, len(samples), CHUNK)]
    for _ in pool.ordered_map(function, chunks, num_workers=workers):
        pass


def pack_all(config: PackConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pack(replace(config, out=Path(folder) / "set"))


def ways_of_pets(config: BenchConfig, workers: int) -> dict[str, Way]:
    pets = oxford.read_folder(config.source).samples
    first = "decode + re-encode once, simplejpeg"
    packing = PackConfig(source=config.source, workers=workers)
    runs: dict[str, Callable[[], None]] = {
        first: partial(reencode_all, reencode_simplejpeg, pets, workers),
        "decode + re-encode once, Pillow": partial(reencode_all, reencode_pillow, pets, workers),
        "pack, original bytes": partial(pack_all, packing),
        "pack, --image-size-px 128": partial(pack_all, replace(packing, image_size_px=128)),
        "pack, --image-size-px 256": partial(pack_all, replace(packing, image_size_px=256)),
    }
    return {name: Way(run, len(pets), first) for name, run in runs.items()}


def ways_of_pairs(name: str, pairs: Path, workers: int, folder: Path) -> dict[str, Way]:
    """The rows of a folder that patterns describe; its class table is written into `folder`."""
    packing = PackConfig(
        out=folder / name,
        images=f"{pairs}/images/{{split}}/{{key}}.jpg",
        masks=f"{pairs}/masks/{{split}}/{{key}}.png",
        classes="auto",
        workers=workers,
    )
    packing = replace(packing, classes=str(write_table(packing)[0]))
    samples = list_files(packing).samples
    first = f"{name}: decode + re-encode once, simplejpeg"
    runs: dict[str, Callable[[], None]] = {
        first: partial(reencode_all, reencode_simplejpeg, samples, workers),
        f"{name}: pack, original bytes": partial(pack_all, packing),
        f"{name}: pack, --image-size-px 128": partial(pack_all, replace(packing, image_size_px=128)),
    }
    return {way: Way(run, len(samples), first) for way, run in runs.items()}


def measure(config: BenchConfig) -> list[Row]:
    workers = config.workers or pool.default_workers()
    ways = ways_of_pets(config, workers)
    with tempfile.TemporaryDirectory() as folder:
        if config.camvid is not None:
            ways |= ways_of_pairs("CamVid", config.camvid, workers, Path(folder))
        if config.drawn_pairs:
            draw_pairs(Path(folder) / "pairs", config.drawn_pairs, NUM_CLASSES, workers)
            ways |= ways_of_pairs("drawn", Path(folder) / "pairs", workers, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for run in range(config.runs + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way.run()
                if run:  # the first run fills the page cache
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        Row(name, medians[name], way.num_samples / medians[name], medians[name] / medians[way.first])
        for name, way in ways.items()
    ]


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    config = parse(BenchConfig, None, __doc__)
    logging.disable(logging.INFO)
    rows = measure(config)
    workers = config.workers or pool.default_workers()
    table = Table(title=f"{config.source}: {workers} processes on {os.cpu_count()} CPUs, median of {config.runs} runs")
    for column in ("way", "seconds", "samples/s", f"times the first (limit {CEILING})"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        table.add_row(row.name, f"{row.seconds:.2f}", f"{row.samples_per_s:,.0f}", f"{row.ratio:.2f}")
    Console().print(table)
    if config.json is not None:
        facts = {
            "cpus": os.cpu_count(),
            "processes": workers,
            "runs": config.runs,
            "rows": [asdict(row) for row in rows],
        }
        config.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
