"""petseg.predict on thousands of damaged and odd pictures: each gives a mask of its size, or a row that says why."""

from __future__ import annotations

import csv
import io
import resource
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.best import main as best
from petseg.inference.pictures import read_picture
from petseg.predict import main
from shards.command import run_command

OLD_TRIAL = Path(__file__).parents[2] / "jobs" / "old_sweep" / "trials" / "0882af0e7e"
COUNT = 3_000
MAX_GROWTH_MB = 1_000  # a few pictures of up to 25 megapixels wait at a time, at 75 MB each


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sound_pictures(rng: np.random.Generator) -> dict[str, bytes]:
    """A picture of each kind, by its name."""
    rgb = Image.fromarray(rng.integers(0, 256, (23, 31, 3), np.uint8))
    frames = [Image.fromarray(rng.integers(0, 256, (17, 19, 3), np.uint8)) for _ in range(3)]
    animated = {"save_all": True, "append_images": frames[1:]}
    found = {
        "rgb.jpg": encode(rgb, "JPEG"),
        "progressive.jpg": encode(rgb, "JPEG", progressive=True),
        "cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG"),
        "grey.jpg": encode(rgb.convert("L"), "JPEG"),
        "rgb.png": encode(rgb, "PNG"),
        "deep.png": encode(Image.fromarray(rng.integers(0, 65536, (9, 11), np.uint16)), "PNG"),
        "palette.png": encode(rgb.convert("P"), "PNG", transparency=3),
        "transparent.png": encode(rgb.convert("RGBA"), "PNG"),
        "animated.png": encode(frames[0], "PNG", **animated),
        "animated.gif": encode(frames[0], "GIF", **animated),
        "animated.webp": encode(frames[0], "WEBP", **animated),
        "rgb.bmp": encode(rgb, "BMP"),
        "rgb.tif": encode(rgb, "TIFF"),
        "deep.tif": encode(Image.fromarray(rng.integers(0, 65536, (9, 11), np.uint16)), "TIFF"),
        "rgb.ppm": encode(rgb, "PPM"),
        "one.png": encode(rgb.crop((0, 0, 1, 1)), "PNG"),
        "one.jpg": encode(rgb.crop((0, 0, 1, 1)), "JPEG"),
        "wide.png": encode(Image.new("RGB", (3000, 1)), "PNG"),
        "tall.jpg": encode(Image.new("RGB", (1, 3000)), "JPEG"),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found[f"turned{orientation}.jpg"] = encode(rgb, "JPEG", exif=exif)
    return found


def huge(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with other dimensions in the header of a JPEG or PNG, from far too large to just possible."""
    width, height = (int(rng.choice([1, 300, 4999, 5000, 65535])) for _ in range(2))
    if content[:4] == b"\x89PNG":
        return content[:16] + struct.pack(">II", width, height) + content[24:]
    for marker in (b"\xff\xc0", b"\xff\xc2"):
        if (at := content.find(marker)) >= 0:
            return content[: at + 5] + struct.pack(">HH", height, width) + content[at + 9 :]
    return content


def fuzzed(count: int, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files."""
    sound = sound_pictures(rng)
    yield from sound.items()
    yield from (("empty.jpg", b""), ("text.jpg", b"no picture\n" * 50), ("nul.png", bytes(4000)))
    names = sorted(sound)
    for number in range(count):
        name = names[number % len(names)]
        content = sound[name]
        match number // len(names) % 4:
            case 0:
                content = content[: int(rng.integers(0, len(content)))]
            case 1 | 2:
                damaged = bytearray(content)
                for at in rng.integers(0, len(content), int(rng.integers(1, 12))):
                    damaged[at] = int(rng.integers(0, 256))
                content = bytes(damaged)
            case _:
                content = huge(content, rng)
        yield f"{number:05}-{name}", content


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The weights file of a finished trial that took three seconds."""
    out = tmp_path / "w.safetensors"
    assert run_command(best, [str(OLD_TRIAL), "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_every_file_gives_a_mask_or_a_row_that_says_why_not(
    weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    (photos / "folder.jpg").mkdir(parents=True)
    rng = np.random.default_rng(20)
    names = set()
    for name, content in fuzzed(COUNT, rng):
        folder = photos / name.rpartition(".")[2]  # names are those of the outputs, without suffix
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        names.add(f"{folder.name}/{name.rpartition('.')[0]}")
    before = peak_mb()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_command(main, [str(photos), "--weights", str(weights), "--out", str(out)]) == 1
    shown, errors = capfd.readouterr()
    assert "Traceback" not in shown + errors
    assert "Warning" not in shown + errors
    growth = peak_mb() - before
    rows = list(csv.DictReader(io.StringIO((out / "summary.csv").read_text())))
    assert {row["name"] for row in rows} == names
    good = [row for row in rows if not row["error"]]
    for row in good:
        with Image.open(out / "masks" / f"{row['name']}.png") as mask:
            assert mask.size == (int(row["width"]), int(row["height"])) == read_picture(row["path"]).shape[1::-1]
    assert all("\n" not in row["error"] for row in rows)
    assert len(good) > len(rows) / 10
    assert growth < MAX_GROWTH_MB, f"{growth:.0f} MB"
