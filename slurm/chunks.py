"""How many jobs become arrays that the site takes, and share one limit on the jobs that run at a time.

Slurm throttles each array on its own (`--array=0-49%20`), so a limit on all of them has to be shared out. Arrays run
side by side in lanes, each with its share of the limit and of the jobs; where a lane has more jobs than an array may
have, its arrays follow each other. One lane whose arrays wait for each other would keep the limit too, but could never
run more jobs at a time than an array has, and would run dry at each array's end until the last of its jobs is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest


@dataclass(frozen=True)
class Chunk:
    """One array: its jobs' indices among all, how many of them run at a time, and the chunk that it waits for."""

    indices: range
    throttle: int
    lane: int
    after: int | None = None  # index of the chunk before it in its lane


def plan_chunks(count: int, max_array_size: int, max_parallel: int) -> list[Chunk]:
    """The arrays of `count` jobs of which `max_parallel` run at a time, in the order in which they are submitted."""
    arrays = -(-count // max_array_size)
    if max_parallel >= count or arrays <= 1:
        starts = range(0, count, max_array_size)
        chunks = [range(start, min(start + max_array_size, count)) for start in starts]
        return [Chunk(indices, min(len(indices), max_parallel), lane) for lane, indices in enumerate(chunks)]
    throttles = split_evenly(max_parallel, min(arrays, max_parallel))
    ends = [count * total // max_parallel for total in accumulate(throttles)]
    jobs = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    sizes = [split_evenly(number, -(-number // max_array_size)) for number in jobs]
    planned: list[Chunk] = []
    last: dict[int, int] = {}  # lane -> its latest chunk
    for row in zip_longest(*sizes, fillvalue=0):
        for lane, size in enumerate(row):
            if size:
                start = planned[-1].indices.stop if planned else 0
                planned.append(Chunk(range(start, start + size), throttles[lane], lane, last.get(lane)))
                last[lane] = len(planned) - 1
    return planned


def throttle_of_last(planned: Sequence[Chunk], index: int, max_parallel: int) -> int:
    """How many jobs of a chunk may run at a time if no later one is submitted: its share and those of empty lanes."""
    lane = planned[index].lane
    others = {chunk.lane: chunk.throttle for chunk in planned[:index] if chunk.lane != lane}
    return max_parallel - sum(others.values())


def split_evenly(count: int, parts: int) -> list[int]:
    """Split `count` into `parts` whole numbers that differ by one at most, the larger ones first."""
    each, rest = divmod(count, parts)
    return [each + 1] * rest + [each] * (parts - rest)
