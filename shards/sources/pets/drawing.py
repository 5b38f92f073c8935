"""One drawn pet: a picture, and the trimap that a careful annotator would have made of it.

The background holds shapes in the colours and the hair texture of pets, so neither a threshold on colour nor one on
texture finds the animal: a network has to learn its shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from shards.sources.pets.silhouettes import Part, pose_pet

Colour = tuple[int, int, int]
Floats = np.ndarray  # float32

FUR: dict[str, Colour] = {
    "black": (38, 35, 36),
    "brown": (84, 56, 38),
    "chocolate": (112, 74, 50),
    "red": (168, 98, 54),
    "golden": (204, 154, 92),
    "tan": (182, 138, 94),
    "sand": (200, 180, 148),
    "cream": (230, 212, 182),
    "white": (240, 236, 230),
    "grey": (134, 132, 130),
    "blue": (100, 106, 118),
    "pink": (214, 168, 150),
}
SCENERY: tuple[Colour, ...] = (
    (88, 122, 58), (60, 92, 48), (134, 148, 88), (150, 180, 210), (196, 206, 214), (120, 84, 60), (166, 60, 52),
    (58, 78, 120), (214, 206, 190), (90, 90, 94), (186, 160, 60), (132, 100, 130),
)  # fmt: skip
SUPERSAMPLING = 2
BORDER_SIGMA = 0.0165  # of the longer side: gives the border 12 % of the pixels, as in the real trimaps
BORDER_LEVELS = (38, 217)  # of 255: a blurred straight edge passes these at -1 and +1 sigma
PET, BACKGROUND, BORDER = 1, 2, 3


@dataclass(frozen=True)
class Style:
    """The looks of a breed. `pattern` is plain, tabby, patches, spots, points or mask."""

    species: str
    base: str
    second: str
    pattern: str
    hair: float  # 0 naked to 1 long


@dataclass(frozen=True)
class _Coat:
    """The colours of one pet, and the pattern in which the second lies on the first."""

    base: Colour
    second: Colour
    pattern: str


def draw_pet(rng: np.random.Generator, look: Style, longer_side_px: int) -> tuple[Image.Image, Image.Image]:
    """A picture (H, W, 3) and its trimap (H, W) with the values 1, 2, 3; longer side 60 to 100 % of the limit."""
    longer = max(32, round(longer_side_px * rng.uniform(0.6, 1.0)))
    shorter = max(24, round(longer * rng.choice([0.67, 0.75, 0.75, 1.0, rng.uniform(0.6, 1.0)])))
    width, height = (longer, shorter) if rng.random() < 0.65 else (shorter, longer)
    parts = pose_pet(rng, look.species, width, height)
    base, second = (_jitter(rng, FUR[name], 14) for name in (look.base, look.second))
    albedo, alpha = _paint(rng, parts, (width, height), _Coat(base, second, look.pattern))
    hair = _hair(rng, (width, height), rng.uniform(0, 180), longer * 0.012)
    alpha = _ruffle(alpha, hair, look.hair, longer)
    cover = np.asarray(alpha, np.float32)[..., None] / 255
    coarse = alpha.reduce(4).filter(ImageFilter.GaussianBlur(longer * 0.05 / 4))
    dome = np.asarray(coarse.resize(alpha.size, Image.Resampling.BILINEAR), np.float32) / 255
    fur = _light(rng, albedo, dome, hair * (0.25 + 0.75 * look.hair), longer)
    scene = _scene(rng, (width, height), (base, second))
    shadow = 1 - np.float32(rng.uniform(0, 0.4)) * dome[..., None]
    picture = scene * shadow * (1 - cover) + fur * cover
    return _photograph(rng, picture), trimap_of(alpha, longer)


def trimap_of(alpha: Image.Image, longer: int) -> Image.Image:
    """Pet and background where the outline is clear, the border class along it."""
    outline = alpha.point([0] * 128 + [255] * 128).filter(ImageFilter.GaussianBlur(longer * BORDER_SIGMA))
    low, high = BORDER_LEVELS
    return outline.point([BACKGROUND] * low + [BORDER] * (high - low) + [PET] * (256 - high))


def _jitter(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    red, green, blue = np.clip(np.array(colour) * rng.normal(1, 0.08) + rng.normal(0, spread / 2, 3), 8, 250)
    return int(red), int(green), int(blue)


def _paint(
    rng: np.random.Generator, parts: list[Part], size: tuple[int, int], coat: _Coat
) -> tuple[Floats, Image.Image]:
    """Colours (H, W, 3) of the pet without light, and its outline (H, W), antialiased."""
    large = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
    colours, alpha, faces = Image.new("RGB", large, coat.base), Image.new("L", large), Image.new("L", large)
    draw, draw_alpha, draw_faces = ImageDraw.Draw(colours), ImageDraw.Draw(alpha), ImageDraw.Draw(faces)
    seconds = {"points": ("ear", "leg", "tail", "muzzle"), "mask": ("ear", "muzzle"), "patches": ("muzzle", "chest")}
    for part in parts:
        points = [(float(x), float(y)) for x, y in part.outline * SUPERSAMPLING]
        if part.colour is not None:
            draw.polygon(points, fill=part.colour)
            draw_faces.polygon(points, fill=255)
            continue
        colour = coat.second if part.role in seconds.get(coat.pattern, ()) else coat.base
        draw.polygon(points, fill=tuple(int(value * part.shade) for value in colour))
        draw_alpha.polygon(points, fill=255)
        draw_faces.polygon(points, fill=0)
    small = colours.reduce(SUPERSAMPLING)
    sharp = np.asarray(small, np.float32)
    soft = np.asarray(small.filter(ImageFilter.GaussianBlur(1.2)), np.float32)
    soft = _pattern(rng, soft, coat.pattern, coat.second)
    face = np.asarray(faces.reduce(SUPERSAMPLING), np.float32)[..., None] / 255
    return soft * (1 - face) + sharp * face, alpha.reduce(SUPERSAMPLING)


def _pattern(rng: np.random.Generator, colours: Floats, pattern: str, second: Colour) -> Floats:
    height, width = colours.shape[:2]
    if pattern == "tabby":
        cloud = _cloud(rng, (width, height), 5)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(width, height)
        angle = rng.uniform(0, np.pi)
        wave = np.sin(rng.uniform(50, 80) * (x * np.cos(angle) + y * np.sin(angle)) + 5 * cloud)
        weight = 0.65 * np.clip(wave, 0, 1)
    elif pattern in ("patches", "spots"):
        cloud = _cloud(rng, (width, height), 4 if pattern == "patches" else 16)
        weight = np.clip((cloud - 0.25) * 8, 0, 1)
    else:
        return colours
    return colours * (1 - weight[..., None]) + np.array(second, np.float32) * weight[..., None]


def _light(rng: np.random.Generator, albedo: Floats, dome: Floats, hair: Floats, longer: int) -> Floats:
    """Rounded shading from the blurred outline `dome` (H, W), a light from one side, and hair."""
    slope_y, slope_x = np.gradient(dome)
    angle = rng.uniform(-np.pi, 0)
    across, down = (np.float32(longer * 0.05 * value) for value in (np.cos(angle), np.sin(angle)))
    light = 0.72 + 0.3 * dome - 0.4 * (slope_x * across + slope_y * down) + 0.16 * hair
    lit: Floats = albedo * light[..., None]
    return lit


def _ruffle(alpha: Image.Image, hair: Floats, length: float, longer: int) -> Image.Image:
    """The outline, frayed by hair of the given length."""
    if length < 0.1:
        return alpha
    soft = np.asarray(alpha.filter(ImageFilter.GaussianBlur(longer * 0.012 * length)), np.float32)
    frayed = np.clip((soft - 127.5 + 45 * hair) * 3 + 127.5, 0, 255)
    return Image.fromarray(frayed.astype(np.uint8))


def _cloud(rng: np.random.Generator, size: tuple[int, int], cells: int) -> Floats:
    """Smooth noise (H, W) of about unit spread, with so many cells along the longer side."""
    width, height = size
    across, down = (max(2, round(cells * side / max(size))) for side in size)
    noise = Image.fromarray(rng.standard_normal((down + 1, across + 1)).astype(np.float32))
    return np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))


def _hair(rng: np.random.Generator, size: tuple[int, int], angle: float, thickness: float) -> Floats:
    """Noise (H, W) drawn out in one direction; values about -1 to 1."""
    width, height = size
    # One bilinear look-up turns and stretches a small field of noise: seven times longer than thick.
    fine = max(0.7, thickness * 0.6)
    side = int(np.hypot(width, height)) + 2
    noise = rng.integers(0, 256, (int(side / fine) + 3, int(side / (7 * fine)) + 3), np.uint8)
    cos, sin = float(np.cos(np.radians(angle))), float(np.sin(np.radians(angle)))
    across, down = 1 / (7 * fine), 1 / fine
    middle = (noise.shape[1] / 2, noise.shape[0] / 2)
    affine = (
        cos * across, sin * across, middle[0] - (cos * width + sin * height) / 2 * across,
        -sin * down, cos * down, middle[1] - (-sin * width + cos * height) / 2 * down,
    )  # fmt: skip
    field = Image.fromarray(noise).transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return (np.asarray(field, np.float32) - 128) / 90


def _scene(rng: np.random.Generator, size: tuple[int, int], pet_colours: tuple[Colour, Colour]) -> Floats:
    """A background (H, W, 3): two grounds with a horizon, and clutter of which half has a pet's colour and hair."""
    height, longer = size[1], max(size)

    def colour() -> Colour:
        pool = (*SCENERY, *FUR.values(), *pet_colours, *pet_colours)
        return _jitter(rng, pool[rng.integers(len(pool))], 24)

    y = np.arange(height, dtype=np.float32)[:, None] / height + 0.06 * _cloud(rng, size, 3)
    steepness, horizon = np.float32(rng.choice([6, 40, 120])), np.float32(rng.uniform(0.2, 0.9))
    upper = 1 / (1 + np.exp(np.clip((y - horizon) * steepness, -30, 30)))[..., None]
    top, bottom = np.array(colour(), np.float32), np.array(colour(), np.float32)
    ground = bottom + (top - bottom) * upper
    clutter, mask = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8)), Image.new("L", size)
    draw, draw_mask = ImageDraw.Draw(clutter), ImageDraw.Draw(mask)
    for _ in range(rng.integers(3, 11)):
        outline = _blob(rng, size, longer * rng.uniform(0.06, 0.32))
        draw.polygon(outline, fill=colour())
        draw_mask.polygon(outline, fill=int(rng.choice([0, 255])))
    blur = ImageFilter.GaussianBlur(longer * float(rng.choice([0.002, 0.006, 0.02])))
    hairy = np.asarray(mask.filter(blur), np.float32) / 255
    texture = _hair(rng, size, rng.uniform(0, 180), longer * 0.012) * hairy
    rough = _hair(rng, size, rng.uniform(0, 180), longer * rng.uniform(0.008, 0.05)) * (1 - hairy)
    light = 1 + 0.16 * texture + np.float32(rng.uniform(0.03, 0.2)) * rough + 0.12 * _cloud(rng, size, 3)
    scene: Floats = np.asarray(clutter.filter(blur), np.float32) * light[..., None]
    return scene


def _blob(rng: np.random.Generator, size: tuple[int, int], radius: float) -> list[tuple[float, float]]:
    """A rounded thing, a box or a bar somewhere in the picture."""
    corners = int(rng.choice([4, 4, 5, 24, 24]))
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, np.pi)
    radii = radius * (1 + (0.25 if corners < 24 else 0.05) * rng.standard_normal(corners))
    stretch, tilt = rng.uniform(0.25, 1), rng.uniform(0, np.pi)
    x, y = radii * np.cos(angles), radii * np.sin(angles) * stretch
    left, top = rng.uniform(0, size[0]), rng.uniform(0, size[1])
    turned = (x * np.cos(tilt) - y * np.sin(tilt) + left, x * np.sin(tilt) + y * np.cos(tilt) + top)
    return list(zip(*(values.tolist() for values in turned), strict=True))


def _photograph(rng: np.random.Generator, picture: Floats) -> Image.Image:
    """Exposure, white balance and sensor noise."""
    gain = (rng.uniform(0.8, 1.15) * (1 + rng.normal(0, 0.04, 3))).astype(np.float32)
    noise = rng.standard_normal(picture.shape[:2], np.float32) * np.float32(rng.uniform(1, 7))
    picture = (picture - 118) * gain + noise[..., None] + np.float32(118 + rng.uniform(-22, 22))
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
