"""Draw a contact sheet of a shard set: pictures with their masks over them, to look at before training.

python -m shards.show data/shards --out sheet.png --split train --count 24
"""

from __future__ import annotations

import io
import os
import runpy
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from shards.command import OK, Failure, printable, run_command, typed
from shards.command.flags import parse
from shards.encoding import png_damage
from shards.files import open_regular, write_whole
from shards.index import Member, Sample, load_index
from shards.labels.sheet import palette_of
from shards.manifest import Manifest, load_manifest
from shards.sources.pets.trimaps import tinted

CLASS_SHARE = 0.5  # of a class's colour in a pixel
MARGIN_PX, CAPTION_PX = 6, 14
INK, PAPER = (40, 40, 44), (250, 250, 248)


@dataclass(frozen=True)
class ShowConfig:
    """Draw some samples of a shard set, each above its key: classes in the colours of the class table, or else what is
    looked for in red and its outline in yellow."""

    folder: Path
    """Folder of the shard set."""
    out: Path = Path("sheet.png")
    """The PNG file to write."""
    split: str = "train"
    """Split to draw from."""
    count: int = 24
    """Number of samples, drawn at random."""
    seed: int = 0
    """Seed for the choice of samples."""
    keys: tuple[str, ...] = ()
    """These samples instead, of whatever split."""
    tile_px: int = 192
    """Longer side of a picture on the sheet."""
    masks: bool = True
    """Draw the masks over the pictures."""

    def __post_init__(self) -> None:
        for name, lowest in (("count", 1), ("tile_px", 32), ("seed", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}, at least {lowest} is needed")
        if self.out.suffix != ".png":
            raise ValueError(f"--out {self.out}: the sheet is a .png file")


def show(config: ShowConfig) -> int:
    """Write the contact sheet and return how many samples are on it."""
    manifest = load_manifest(config.folder)
    places = _choose(config, manifest)
    columns = max(1, round(len(places) ** 0.5 * 1.25))
    rows = -(-len(places) // columns)
    cell = config.tile_px + MARGIN_PX
    sheet = Image.new("RGB", (columns * cell + MARGIN_PX, rows * (cell + CAPTION_PX) + MARGIN_PX), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (shard, sample) in enumerate(places):
        tile = _tile(config, shard, sample, manifest)
        left, top = MARGIN_PX + number % columns * cell, MARGIN_PX + number // columns * (cell + CAPTION_PX)
        room = config.tile_px
        sheet.paste(tile, (left + (room - tile.width) // 2, top + (room - tile.height) // 2))
        draw.text((left + room / 2, top + room + 1), _fit(sample.key, font, room), INK, font, anchor="ma")
    file = io.BytesIO()
    sheet.save(file, "PNG")
    write_whole(config.out, file.getvalue())
    return len(places)


def _choose(config: ShowConfig, manifest: Manifest) -> list[tuple[str, Sample]]:
    """(shard, sample) of the samples asked for."""
    shards = manifest.shards if config.keys else manifest.of_split(config.split)
    places = {sample.key: (shard.name, sample) for shard in shards for sample in load_index(config.folder, shard.name)}
    if missing := [key for key in config.keys if key not in places]:
        raise ValueError(
            f"no sample {', '.join(missing)} in {config.folder}; keys look like {next(iter(places), '(it has none)')}"
        )
    if config.keys:
        return [places[key] for key in config.keys]
    order = np.random.default_rng(config.seed).permutation(len(places))[: config.count]
    everything = list(places.values())
    return [everything[index] for index in order]


def _tile(config: ShowConfig, shard: str, sample: Sample, manifest: Manifest) -> Image.Image:
    picture = _read_image(config.folder / shard, sample.key, sample.jpg, "JPEG").convert("RGB")
    mask = _read_image(config.folder / shard, sample.key, sample.png, "PNG")
    scale = config.tile_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    if not config.masks:
        return picture
    values = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
    pixels = np.asarray(picture, np.float32)
    if manifest.classes:
        colours = palette_of(manifest.classes)[values]
        return Image.fromarray((pixels * (1 - CLASS_SHARE) + colours * CLASS_SHARE).astype(np.uint8))
    return Image.fromarray(tinted(pixels, values, manifest.source.values).astype(np.uint8))


def _read_image(path: Path, key: str, member: Member, kind: str) -> Image.Image:
    """Decode one member; raises Failure if its bytes are not those of the index, or not of this kind."""
    where, advice = f"{path} at byte {member.offset}, {key}", f"see `{typed('-m', 'shards.verify', path.parent)}`"
    try:
        with open_regular(path, follow=False) as file:
            data = os.pread(file.fileno(), member.num_bytes, member.offset)
    except OSError as error:
        raise Failure(f"{where}: {error}; {advice}") from None
    if len(data) != member.num_bytes or zlib.crc32(data) != member.crc32:
        raise Failure(f"{where}: the bytes do not match the index; {advice}")
    if kind == "PNG" and (problem := png_damage(data)):
        raise Failure(f"{where}: the mask was damaged when it was packed ({problem}); {advice}")
    try:
        image = Image.open(io.BytesIO(data), formats=(kind,))
        image.load()
    except Exception as error:  # Pillow raises whatever the bytes lead it to
        words = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise Failure(f"{where}: no readable {kind}{words}; {advice}") from None
    return image


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[1:]  # the number at the end tells similar keys apart
    return "..." + text


def main(argv: Sequence[str]) -> int:

    config = parse(ShowConfig, argv, __doc__, positional=True)
    sys.stdout.write(printable(f"{config.out}: {show(config)} samples\n"))
    return OK


if __name__ == "__main__":
    sys.exit(run_command(main))
