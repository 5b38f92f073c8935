"""A sheet of pictures beside their masks in the classes' colours, to check a class table by eye."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.classes import IGNORE_VALUE, ClassTable

TILE_PX, MARGIN_PX, LINE_PX, COLUMNS = 240, 6, 16, 4
INK, PAPER, IGNORED_COLOUR = (40, 40, 44), (250, 250, 248), (255, 255, 255)


def palette_of(table: ClassTable) -> np.ndarray:
    """(256, 3) uint8: the colour to show each value in; white for pixels to ignore."""
    palette = np.zeros((256, 3), np.uint8)
    palette[IGNORE_VALUE] = IGNORED_COLOUR
    for one in table.classes:
        palette[one.value] = one.colour
    return palette


def draw_sheet(samples: Iterable[tuple[np.ndarray, np.ndarray]], table: ClassTable) -> bytes:
    """A PNG of pictures (H, W, 3) uint8 beside their masks (H, W) uint8, and a legend."""
    palette = palette_of(table)
    tiles = [_tile(picture, palette[mask]) for picture, mask in samples]
    rows = -(-len(tiles) // 2)
    legend_rows = -(-(len(table) + 1) // COLUMNS)
    width = 2 * (2 * TILE_PX + 2 * MARGIN_PX) + MARGIN_PX
    height = rows * (TILE_PX + MARGIN_PX) + legend_rows * LINE_PX + 3 * MARGIN_PX
    sheet = Image.new("RGB", (width, height), PAPER)
    for number, tile in enumerate(tiles):
        left = MARGIN_PX + number % 2 * (2 * TILE_PX + 2 * MARGIN_PX)
        sheet.paste(tile, (left, MARGIN_PX + number // 2 * (TILE_PX + MARGIN_PX)))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    top = rows * (TILE_PX + MARGIN_PX) + 2 * MARGIN_PX
    entries = [*((f"{one.value} {one.name}", one.colour) for one in table.classes), ("ignored", IGNORED_COLOUR)]
    for number, (text, colour) in enumerate(entries):
        left, line = MARGIN_PX + number % COLUMNS * (width // COLUMNS), top + number // COLUMNS * LINE_PX
        draw.rectangle((left, line + 2, left + 12, line + 12), fill=colour, outline=INK)
        draw.text((left + 18, line), text, INK, font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _tile(picture: np.ndarray, mask: np.ndarray) -> Image.Image:
    """A picture and its mask, side by side."""
    tile = Image.new("RGB", (2 * TILE_PX, TILE_PX), PAPER)
    for number, (pixels, way) in enumerate(((picture, Image.Resampling.BILINEAR), (mask, Image.Resampling.NEAREST))):
        image = Image.fromarray(pixels)
        scale = TILE_PX / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), way)
        tile.paste(image, (number * TILE_PX + (TILE_PX - image.width) // 2, (TILE_PX - image.height) // 2))
    return tile
