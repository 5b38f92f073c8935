"""Pictures with their masks drawn over them, for reports, wandb and evaluation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.classes import IGNORE_VALUE
from shards.files import write_whole

PREDICTION_RGB = (0, 158, 115)  # Okabe and Ito's palette, which colour-blind readers can distinguish
MISSED_RGB = (230, 159, 0)
WRONG_RGB = (213, 94, 0)
TRUTH_RGB = (255, 255, 255)
CAPTION_PX = 16

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def draw_overlay(image: Pixels, truth: Mask, prediction: Mask) -> Pixels:
    """(H, W, 3) uint8 and two (H, W) masks -> the tinted picture with the true outline in white.

    What was found is green, what was missed yellow, and background that was taken for it red.
    """
    drawn = image.astype(np.float32)
    for mask, colour in (
        (truth & prediction, PREDICTION_RGB),
        (truth & ~prediction, MISSED_RGB),
        (~truth & prediction, WRONG_RGB),
    ):
        drawn[mask] = 0.55 * drawn[mask] + 0.45 * np.array(colour, dtype=np.float32)
    drawn[outline(truth)] = TRUTH_RGB
    return drawn.astype(np.uint8)


def draw_classes(image: Pixels, truth: Pixels, prediction: Pixels, colours: Sequence[tuple[int, int, int]]) -> Pixels:
    """(H, W, 3) uint8 and (H, W) uint8 classes -> the picture tinted in the colours of the predicted classes.

    The outlines of the true classes are white. Where the predicted class is wrong it is hatched; pixels that do not
    count (255) keep the picture.
    """
    palette = np.array([*colours, *[(0, 0, 0)] * (256 - len(colours))], dtype=np.float32)
    counts = truth != IGNORE_VALUE
    drawn = image.astype(np.float32)
    drawn[counts] = 0.45 * drawn[counts] + 0.55 * palette[prediction[counts]]
    rows, columns = np.indices(truth.shape)
    hatched = counts & (truth != prediction) & ((rows + columns) % 6 < 2)
    drawn[hatched] = WRONG_RGB
    edges = np.zeros(truth.shape, dtype=bool)
    for one in np.unique(truth[counts]):
        edges |= outline(truth == one)
    drawn[edges & counts] = TRUTH_RGB
    return drawn.astype(np.uint8)


def draw_mask(image: Pixels, mask: Pixels, colours: Sequence[tuple[int, int, int]], plain: Sequence[int]) -> Pixels:
    """(H, W, 3) uint8 and (H, W) uint8 classes -> the picture tinted in the colours of the classes, with outlines.

    plain: classes whose pixels keep the picture
    """
    palette = np.array(colours, dtype=np.float32)
    tinted = ~np.isin(mask, np.array(plain, dtype=np.uint8))
    drawn = image.astype(np.float32)
    drawn[tinted] = 0.55 * drawn[tinted] + 0.45 * palette[mask[tinted]]
    for one in np.unique(mask[tinted]):
        edge = outline(mask == one)
        drawn[edge] = palette[one]
    return drawn.astype(np.uint8)


def outline(mask: Mask) -> Mask:
    """Pixels of the mask that touch a pixel outside it (4-neighbourhood)."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def draw_sheet(pictures: Sequence[tuple[str, Pixels]], columns: int, size_px: int = 192) -> Image.Image:
    """Captioned pictures in rows, each as high as its highest picture; the longer sides are scaled to size_px."""
    scaled = [(caption, _scaled(pixels, size_px)) for caption, pixels in pictures]
    rows = [scaled[first : first + columns] for first in range(0, len(scaled), columns)]
    heights = [CAPTION_PX + max(picture.height for _, picture in row) for row in rows]
    sheet = Image.new("RGB", (columns * size_px, sum(heights)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(CAPTION_PX * 0.7)
    for number, row in enumerate(rows):
        y = sum(heights[:number])
        for column, (caption, picture) in enumerate(row):
            x = column * size_px
            sheet.paste(picture, (x + (size_px - picture.width) // 2, y + CAPTION_PX))
            pen.text((x + 2, y), caption, fill="black", font=font)
    return sheet


def _scaled(pixels: Pixels, size_px: int) -> Image.Image:
    height, width = (max(1, round(side * size_px / max(pixels.shape[:2]))) for side in pixels.shape[:2])
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def picture_format(path: Path) -> str:
    """The format that the suffix of a picture's name says; raises ValueError for a suffix that says none."""
    kind = Image.registered_extensions().get(path.suffix.lower(), "")
    if kind not in Image.SAVE:
        raise ValueError(f"{path}: the suffix says the format of a picture, as in .png or .jpg")
    return kind


def save_image(image: Image.Image, path: Path) -> None:
    """Write a picture so that it appears whole; the format follows the name's suffix, as `picture_format` says."""
    kind = picture_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    image.save(content, kind)
    write_whole(path, content.getvalue())
