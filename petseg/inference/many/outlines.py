"""Outlines of masks along the edges of their pixels, as polygons that COCO's own API turns into the same mask again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Corner = tuple[int, int]  # x, y of a corner of pixels: (0, 0) to (W, H)
Ring = list[Corner]  # closed; the last corner is followed by the first


def polygons_of(mask: NDArray[np.bool_]) -> list[list[int]]:
    """(H, W) -> x, y, x, y ... for each part whose pixels share edges.

    COCO's polygons have no holes. A hole is entered and left by the same way, a cut of no width, which is nothing to
    whoever counts crossings (the even-odd rule).
    """
    labels, _ = ndimage.label(mask)
    polygons = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        outer, *holes = _rings(labels[rows, columns] == number)
        outline = _with_cuts(outer, holes)
        polygons.append([value for x, y in outline for value in (x + columns.start, y + rows.start)])
    return polygons


def _with_cuts(outer: Ring, holes: Sequence[Ring]) -> Ring:
    """One line around a part and its holes, from the first corner straight down or up, then across to each hole."""
    home, line = outer[0], list(outer)
    for hole in holes:
        gate = (home[0], hole[0][1])
        line += [home, gate, *hole, hole[0], gate]
    return [corner for corner, following in zip(line, [*line[1:], home], strict=True) if corner != following]


def _rings(mask: NDArray[np.bool_]) -> Iterator[Ring]:
    """The lines around a part and then around its holes, with the part on the right hand."""
    steps = _steps(mask)
    for start in sorted(steps):  # the topmost of a line's leftmost corners, from which only one way leads on
        if start not in steps:
            continue
        ring, here, before = Ring(), start, (0, 0)
        while True:
            ways = steps[here]
            # where pixels touch at a corner alone, the line stays at the pixel that it follows: it turns right
            right = (-before[1], before[0])
            way = right if right in ways else ways[0]
            ways.remove(way)
            if not ways:
                del steps[here]
            if way != before:
                ring.append(here)
            before, here = way, (here[0] + way[0], here[1] + way[1])
            if here == start:
                break
        yield ring


def _steps(mask: NDArray[np.bool_]) -> dict[Corner, list[tuple[int, int]]]:
    """From each corner on an edge of the mask the steps (dx, dy) along it."""
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    sides = (  # neighbour, where the step begins as seen from the pixel, and where it goes
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (0, 1)),
        (padded[2:, 1:-1], (1, 1), (-1, 0)),
        (padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    steps: dict[Corner, list[tuple[int, int]]] = {}
    for neighbour, (x, y), way in sides:
        rows, columns = np.nonzero(inner & ~neighbour)
        for corner in zip((columns + x).tolist(), (rows + y).tolist(), strict=True):
            steps.setdefault(corner, []).append(way)
    return steps
