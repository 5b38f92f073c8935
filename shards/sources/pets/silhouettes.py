"""The outline of a posed pet, as polygons from back to front: body, head, ears, legs, tail, and a face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

Points = np.ndarray  # (N, 2) float, x to the right, y down
DARK, NOSE = (22, 18, 18), (52, 38, 38)
IRIS = ((120, 96, 40), (92, 124, 70), (96, 60, 34), (110, 140, 160))


@dataclass(frozen=True)
class Part:
    """One polygon. A `colour` of its own marks a feature of the face: it lies on the pet and adds nothing to it."""

    role: str
    outline: Points
    shade: float = 1.0
    colour: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Head:
    """Where a head is, how large, and which way it looks."""

    x: float
    y: float
    size: float  # half the skull's width
    in_profile: bool


def pose_pet(rng: np.random.Generator, species: str, width: int, height: int) -> list[Part]:
    """A pet in a random pose, in pixel coordinates of a picture of this size."""
    pose = POSES[rng.choice(list(POSES), p=[0.3, 0.25, 0.2, 0.25])]
    parts = pose(rng, species)
    turn = rng.normal(0, 0.12)
    flip = rng.choice([-1.0, 1.0])
    matrix = np.array([[np.cos(turn) * flip, np.sin(turn)], [-np.sin(turn) * flip, np.cos(turn)]])
    matrix = matrix * rng.uniform(0.88, 1.12, (1, 2))
    outlines = [part.outline @ matrix for part in parts]
    everything = np.concatenate(outlines)
    low, high = everything.min(0), everything.max(0)
    size = np.array([width, height])
    scale = (size / (high - low)).min() * rng.uniform(0.82, 1.2)
    room = size - (high - low) * scale
    at = room * (0.5 + rng.uniform(-0.45, 0.45, 2))
    if pose is portrait:
        at[1] = max(room[1], room[1] * 0.5) + 0.04 * height  # shoulders reach past the lower edge
    return [replace(part, outline=(outline - low) * scale + at) for part, outline in zip(parts, outlines, strict=True)]


def ellipse(x: float, y: float, across: float, down: float, angle: float = 0.0) -> Points:
    """Polygon of an ellipse with these half axes, turned by `angle` radians."""
    steps = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    cos, sin = across * np.cos(steps), down * np.sin(steps)
    return np.stack(
        [x + cos * np.cos(angle) - sin * np.sin(angle), y + cos * np.sin(angle) + sin * np.cos(angle)], axis=1
    )


def limb(start: tuple[float, float], bend: tuple[float, float], end: tuple[float, float], *widths: float) -> Points:
    """A tapering tube along a quadratic Bezier curve, with a round end."""
    t = np.linspace(0, 1, 10)[:, None]
    middle = (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(bend) + t**2 * np.array(end)
    along = np.gradient(middle, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) * np.linspace(widths[0], widths[-1], 10)[:, None]
    cap = middle[-1] + along[-1] * widths[-1]
    return np.concatenate([middle + normal, cap[None], (middle - normal)[::-1]])


def standing(rng: np.random.Generator, species: str) -> list[Part]:
    slim = rng.uniform(0.18, 0.26) * (0.9 if species == "cat" else 1.0)
    foot = slim + rng.uniform(0.24, 0.42)
    parts = [Part("tail", _tail(rng, (-0.46, -0.1)))]
    for x, shade in ((-0.34, 0.72), (0.33, 0.72), (-0.4, 1.0), (0.4, 1.0)):
        step = x + rng.normal(0, 0.08)
        knee = (x + rng.normal(0, 0.06), foot / 2)
        parts.append(Part("leg", limb((x, 0.02), knee, (step, foot), 0.11, 0.05), shade))
        parts.append(Part("leg", ellipse(step + 0.03, foot + 0.01, 0.075, 0.045), shade))
    parts += [
        Part("body", ellipse(0, 0, 0.5, slim)),
        Part("body", ellipse(-0.34, 0.0, 0.2, slim * 1.02), 0.97),
        Part("chest", ellipse(0.33, 0.02, 0.22, slim * 1.1)),
    ]
    head_x, head_y = 0.62 + rng.uniform(-0.06, 0.06), -0.3 + rng.uniform(-0.14, 0.16)
    parts.append(Part("body", limb((0.34, -0.04), (0.48, -0.16), (head_x, head_y), 0.19, 0.12)))
    return parts + draw_head(
        rng, species, Head(head_x + 0.03, head_y - 0.03, rng.uniform(0.17, 0.23), rng.random() < 0.65)
    )


def sitting(rng: np.random.Generator, species: str) -> list[Part]:
    wide = rng.uniform(0.25, 0.34)
    side = rng.choice([-1, 1])
    parts = [
        Part("tail", limb((side * 0.2, 0.52), (side * 0.55, 0.62), (side * rng.uniform(0.45, 0.7), 0.4), 0.06, 0.035)),
        Part("leg", ellipse(-wide * 0.85, 0.47, 0.18, 0.15), 0.84),
        Part("leg", ellipse(wide * 0.85, 0.47, 0.18, 0.15), 0.84),
        Part("body", ellipse(0, 0.22, wide, 0.42)),
        Part("chest", ellipse(0, 0.08, wide * 0.66, 0.26), 1.05),
    ]
    for x in (-0.11, 0.11):
        parts.append(Part("leg", limb((x, 0.12), (x * 1.25, 0.4), (x, 0.6), 0.09, 0.058), 0.96))
        parts.append(Part("leg", ellipse(x, 0.62, 0.08, 0.05), 0.96))
    return parts + draw_head(
        rng, species, Head(rng.normal(0, 0.05), -0.36, rng.uniform(0.2, 0.28), rng.random() < 0.25)
    )


def lying(rng: np.random.Generator, species: str) -> list[Part]:
    thick = rng.uniform(0.17, 0.24)
    reach = rng.uniform(0.62, 0.85)
    parts = [
        Part("tail", limb((-0.5, 0.14), (-0.75, 0.3), (rng.uniform(-0.6, -0.2), 0.3), 0.06, 0.03)),
        Part("leg", limb((0.3, 0.14), (0.5, 0.16), (reach * 0.9, 0.2), 0.09, 0.05), 0.76),
        Part("body", ellipse(0, 0.08, 0.55, thick)),
        Part("body", ellipse(-0.33, 0.1, 0.25, thick), 0.93),
        Part("leg", limb((-0.36, 0.22), (-0.2, 0.26), (-0.02, 0.27), 0.09, 0.05), 0.9),
        Part("chest", ellipse(0.34, 0.05, 0.22, thick)),
        Part("leg", limb((0.34, 0.18), (0.5, 0.25), (reach, 0.26), 0.085, 0.055)),
    ]
    x, y = rng.uniform(0.4, 0.56), rng.uniform(-0.26, -0.08)
    parts.append(Part("body", ellipse((0.34 + x) / 2, (0.02 + y) / 2, 0.2, 0.19)))
    return parts + draw_head(rng, species, Head(x, y, rng.uniform(0.17, 0.23), rng.random() < 0.4))


def portrait(rng: np.random.Generator, species: str) -> list[Part]:
    lean = rng.normal(0, 0.08)
    parts = [
        Part("body", ellipse(lean, 0.95, rng.uniform(0.5, 0.75), 0.55), 0.92),
        Part("body", limb((lean, 0.95), (lean, 0.5), (0, 0.05), 0.48, 0.3), 0.95),
        Part("chest", ellipse(lean, 0.72, 0.26, 0.34), 1.03),
    ]
    return parts + draw_head(rng, species, Head(0, 0, rng.uniform(0.36, 0.42), rng.random() < 0.2))


POSES: dict[str, Callable[[np.random.Generator, str], list[Part]]] = {
    "standing": standing,
    "sitting": sitting,
    "lying": lying,
    "portrait": portrait,
}


def draw_head(rng: np.random.Generator, species: str, head: Head) -> list[Part]:
    """Skull, ears, muzzle, eyes and nose."""
    size, in_profile = head.size, head.in_profile
    iris = IRIS[rng.integers(len(IRIS))]
    ears = [Part("ear", outline, 0.86) for outline in _ears(rng, species, size, in_profile)]
    long = size * (0.3 if species == "cat" else rng.uniform(0.42, 0.75))
    parts = [Part("head", ellipse(0, 0, size, size * 0.9))]
    if in_profile:
        tip = size * 0.75 + long
        parts += [
            Part(
                "muzzle",
                limb((size * 0.4, size * 0.2), (size, size * 0.25), (tip, size * 0.3), size * 0.45, size * 0.24),
            ),
            Part("", ellipse(tip + size * 0.12, size * 0.18, size * 0.13, size * 0.11), colour=NOSE),
            Part("", ellipse(size * 0.45, -size * 0.22, size * 0.13, size * 0.13), colour=iris),
            Part("", ellipse(size * 0.47, -size * 0.22, size * 0.08, size * 0.1), colour=DARK),
        ]
    else:
        parts.append(Part("muzzle", ellipse(0, size * 0.42, size * 0.5, long * 0.9), 1.04))
        for eye in (-0.42, 0.42):
            parts += [
                Part("", ellipse(eye * size, -size * 0.1, size * 0.16, size * 0.15), colour=iris),
                Part("", ellipse(eye * size, -size * 0.1, size * 0.08, size * 0.13), colour=DARK),
            ]
        parts.append(Part("", ellipse(0, size * 0.3, size * 0.14, size * 0.1), colour=NOSE))
        parts.append(
            Part("", limb((0, size * 0.35), (0, size * 0.45), (0, size * 0.52), size * 0.02, 0.01), colour=DARK)
        )
    hanging = species == "dog" and ears[0].role == "ear" and ears[0].outline[:, 1].max() > size * 0.3
    ordered = parts[:1] + ears + parts[1:] if hanging else ears + parts
    tilt = rng.normal(0, 0.15)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    return [replace(part, outline=part.outline @ turn + (head.x, head.y)) for part in ordered]


def _ears(rng: np.random.Generator, species: str, size: float, in_profile: bool) -> list[Points]:
    places = (-0.35, 0.2) if in_profile else (-0.62, 0.62)
    is_hanging = species == "dog" and rng.random() < 0.65
    length = size * (rng.uniform(0.75, 1.05) if species == "cat" else rng.uniform(0.7, 1.25))
    ears = []
    for place in places[:1] if in_profile and is_hanging else places:
        root = place * size
        if is_hanging:
            out = np.sign(place) * size * (0.1 if in_profile else 0.42)
            ears.append(
                limb(
                    (root, -size * 0.55),
                    (root + out * 1.5, -size * 0.4),
                    (root + out, length * 0.7),
                    size * 0.2,
                    size * 0.22,
                )
            )
        else:
            lean = np.sign(place) * size * (0.2 if not in_profile else 0.05)
            wide = size * 0.36
            ears.append(
                np.array([(root - wide, -size * 0.5), (root + lean, -size * 0.5 - length), (root + wide, -size * 0.5)])
            )
    return ears


def _tail(rng: np.random.Generator, root: tuple[float, float]) -> Points:
    x, y = root
    tip = (x - rng.uniform(0.15, 0.45), y + rng.uniform(-0.5, 0.35))
    return limb(root, (x - rng.uniform(0.2, 0.4), y + rng.uniform(-0.2, 0.2)), tip, 0.07, rng.uniform(0.025, 0.06))
