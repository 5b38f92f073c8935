"""How long packing takes, against decoding and re-encoding the same pictures and trimaps once.

python -m benchmarks.pack --source ../shared/data/pets --json pack.json

All rows use the same number of processes, each starts its own, and the rows take turns in every run.
"""

from __future__ import annotations

import io
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import simplejpeg
from PIL import Image

from shards import pool
from shards.command import parse
from shards.pack import pack
from shards.packing.options import PackConfig
from shards.packing.plan import CHUNK
from shards.sources import oxford

QUALITY = 95
CEILING = 1.3  # what packing may cost, in times of the first row


@dataclass(frozen=True)
class BenchConfig:
    """Time packing against decoding and re-encoding once."""

    source: Path = Path(os.environ.get("PETSEG_PETS_ROOT", "../shared/data/pets"))
    """Folder in the Oxford-IIIT Pet layout."""
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
    ratio: float  # to the first row


def reencode_simplejpeg(pets: tuple[oxford.Pet, ...]) -> int:
    """Decode and encode each picture and trimap once; returns the bytes that came out."""
    return sum(_reencode_picture(pet) + _reencode_trimap(pet) for pet in pets)


def reencode_pillow(pets: tuple[oxford.Pet, ...]) -> int:
    """Decode and re-encode with Pillow alone."""
    return sum(_reencode_picture_pillow(pet.picture.read_bytes()) + _reencode_trimap(pet) for pet in pets)


def _reencode_picture(pet: oxford.Pet) -> int:
    data = pet.picture.read_bytes()
    if not data.startswith(b"\xff\xd8"):  # a PNG or GIF under a .jpg name
        return _reencode_picture_pillow(data)
    pixels = simplejpeg.decode_jpeg(data, "RGB")
    return len(simplejpeg.encode_jpeg(pixels, QUALITY, "RGB", colorsubsampling="420"))


def _reencode_picture_pillow(data: bytes) -> int:
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(file, "JPEG", quality=QUALITY)
    return len(file.getvalue())


def _reencode_trimap(pet: oxford.Pet) -> int:
    file = io.BytesIO()
    Image.open(io.BytesIO(pet.trimap.read_bytes())).save(file, "PNG")
    return len(file.getvalue())


def reencode_all(function: Callable[[tuple[oxford.Pet, ...]], int], pets: tuple[oxford.Pet, ...], workers: int) -> None:
    chunks = [pets[start : start + CHUNK] for start in range(0, len(pets), CHUNK)]
    for _ in pool.ordered_map(function, chunks, num_workers=workers):
        pass


def pack_all(source: Path, image_size_px: int, workers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pack(PackConfig(out=Path(folder) / "set", source=source, image_size_px=image_size_px, workers=workers))


def measure(config: BenchConfig) -> list[Row]:
    pets = oxford.read_folder(config.source).samples
    workers = config.workers or pool.default_workers()
    ways: dict[str, Callable[[], None]] = {
        "decode + re-encode once, simplejpeg": partial(reencode_all, reencode_simplejpeg, pets, workers),
        "decode + re-encode once, Pillow": partial(reencode_all, reencode_pillow, pets, workers),
        "pack, original bytes": partial(pack_all, config.source, 0, workers),
        "pack, --image-size-px 128": partial(pack_all, config.source, 128, workers),
        "pack, --image-size-px 256": partial(pack_all, config.source, 256, workers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(config.runs + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if run:  # the first run fills the page cache
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    return [Row(name, value, len(pets) / value, value / first) for name, value in medians.items()]


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
