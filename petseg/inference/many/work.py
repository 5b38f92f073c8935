"""Predicts many pictures: while a batch is computed, threads read the next one and write the masks of the one before.

Memory holds three batches, however many pictures there are.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from petseg.data.decode import Pixels
from petseg.inference.many.inputs import Input
from petseg.inference.many.outputs import OutputFolder, Row
from petseg.inference.pictures import without_warnings
from petseg.inference.predictor import Options, Predictor

Read = tuple[Input, Pixels | str]  # pixels, or why there are none
Written = list[Row | Future[Row]]  # a batch whose files are being written


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
        """Predict and write the pictures; those that cannot be read are noted with the reason.

        advance: gets the number of pictures of each batch, once it is on disk. If it raises, or with Ctrl-C, the
        batches that were computed are written and noted before the run ends.
        """
        behind = deque[Written]()
        with (
            without_warnings(),  # here, in the thread whose other filters are set and restored within
            ThreadPoolExecutor(self.threads, thread_name_prefix="pictures") as pool,
            closing(read_ahead(items, pool, self.batch_size + self.threads)) as ahead,
        ):
            try:
                while batch := list(islice(ahead, self.batch_size)):
                    behind.append(self._predict(batch, pool))
                    if len(behind) > 1:
                        self._note_first(behind, advance)
            finally:
                while behind:
                    self._note_first(behind, advance)

    def _predict(self, batch: Sequence[Read], pool: ThreadPoolExecutor) -> Written:
        """Compute a batch, and begin to write it."""
        start = time.monotonic()
        good = [(item, pixels) for item, pixels in batch if not isinstance(pixels, str)]
        predictions = list(self.predictor.predictions([pixels for _, pixels in good], self.options))
        seconds = (time.monotonic() - start) / max(1, len(good))
        bad = [Row(item.name, item.shown, error=why) for item, why in batch if isinstance(why, str)]
        pairs = zip((item for item, _ in good), predictions, strict=True)
        return [*bad, *(pool.submit(self.output.write, item, one, seconds) for item, one in pairs)]

    def _note_first(self, behind: deque[Written], advance: Callable[[int], None]) -> None:
        """Add the rows of the oldest batch to the journal, once its files are there."""
        rows = [one if isinstance(one, Row) else one.result() for one in behind[0]]
        self.output.note(rows, self.rank)
        behind.popleft()  # not before, or Ctrl-C during the wait would lose the batch
        advance(len(rows))


def read_ahead(items: Sequence[Input], pool: ThreadPoolExecutor, ahead: int) -> Generator[Read, None, None]:
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
