"""Work spread over processes: results in order, memory bounded, no orphans when the parent is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from shards.command import Failure

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # items in flight per worker: none idles while the results in front of it are written


class WorkerLost(Failure):
    """A worker process died under its work, which says nothing against what the others had done."""


def default_workers() -> int:
    """The cores this process may use: fewer than the machine's inside a Slurm job."""
    return len(os.sched_getaffinity(0))


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], *, num_workers: int) -> Iterator[Result]:
    """`map(function, items)` over processes; `function` must be importable by name (or a partial of such a one).

    With one worker all happens in this process. Raises WorkerLost if a worker process is killed.
    """
    if num_workers <= 1:
        yield from map(function, items)
        return
    # spawn: a fork of a process with threads can hang, and Python warns of it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_die_with_parent) as executor:
        queue = iter(items)
        futures: deque[Future[Result]] = deque()
        try:
            for item in islice(queue, AHEAD * num_workers):
                futures.append(executor.submit(function, item))
            while futures:
                result = futures.popleft().result()
                futures.extend(executor.submit(function, item) for item in islice(queue, 1))
                yield result
        except BrokenProcessPool:
            raise WorkerLost("a worker process was killed (out of memory?): try fewer --workers") from None
        finally:
            for future in futures:
                future.cancel()


def _die_with_parent() -> None:
    # A pool's workers outlive a parent that is killed by SIGKILL: they wait on a queue that they themselves hold open.
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent alone says so

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
