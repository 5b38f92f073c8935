"""Predicts many pictures: read ahead by threads, through the network in batches, written while the next ones come.

Memory holds a few batches, however many pictures there are.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

from petseg.data.decode import Pixels
from petseg.inference.many.inputs import Input
from petseg.inference.many.outputs import OutputFolder, Row
from petseg.inference.predictor import Options, Predictor

Read = tuple[Input, Pixels | str]  # pixels, or why there are none


@dataclass(frozen=True)
class Work:
    """How the pictures of one process are predicted."""

    predictor: Predictor
    options: Options
    output: OutputFolder
    batch_size: int
    threads: int
    rank: int | str = 0  # names the journal

    def run(self, items: Sequence[Input], advance: Callable[[int], None]) -> None:
        """Predict and write the pictures; those that cannot be read are noted with the reason."""
        with ThreadPoolExecutor(self.threads, thread_name_prefix="pictures") as pool:
            ahead = read_ahead(items, pool, self.batch_size + self.threads)
            while batch := list(islice(ahead, self.batch_size)):
                start = time.monotonic()
                rows = [Row(item.name, item.shown, error=why) for item, why in batch if isinstance(why, str)]
                good = [(item, pixels) for item, pixels in batch if not isinstance(pixels, str)]
                predictions = list(self.predictor.predictions([pixels for _, pixels in good], self.options))
                seconds = (time.monotonic() - start) / max(1, len(good))
                write = partial(self.output.write, seconds=seconds)
                rows += pool.map(write, [item for item, _ in good], predictions)
                self.output.note(rows, self.rank)
                advance(len(batch))


def read_ahead(items: Sequence[Input], pool: ThreadPoolExecutor, ahead: int) -> Iterator[Read]:
    """The items with their pixels, in order; at most `ahead` pictures wait in memory."""
    queue, waiting = iter(items), deque[Future[Read]]()
    try:
        waiting.extend(pool.submit(_read, item) for item in islice(queue, ahead))
        while waiting:
            read = waiting.popleft().result()
            waiting.extend(pool.submit(_read, item) for item in islice(queue, 1))
            yield read
    finally:
        for future in waiting:
            future.cancel()


def _read(item: Input) -> Read:
    try:
        return item, item.read()
    except ValueError as error:
        return item, str(error)
