"""Runs the trials of one job in several worker processes side by side, each with a log of its own.

A small model leaves most of a GPU idle. The job itself stays one task of Slurm: it starts the workers, forwards signals
to them, waits until all have ended, and is requeued as any other job is. A free worker takes the next trial. A worker
whose job is killed sees its input end, saves and ends too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import submitit

from petseg.footprint import gpus
from petseg.training import interrupt
from shards.command import INTERRUPTED, OK, Interrupted

REQUEUE = 76  # a worker's exit code: interrupted by a signal that asks for a requeue
NODE_FAULT = 77  # a worker's exit code: the node lacks GPUs that it should have
POLL_S = 0.1
# killed by a signal before it installed handlers: it had begun nothing
UNREADY = {-signal.SIGTERM: INTERRUPTED, -interrupt.REQUEUE_SIGNAL: REQUEUE}
INDEX_BYTES = 4  # a read of so few bytes from a pipe is atomic


@dataclass(frozen=True)
class Order:
    """A worker's instructions, sent as a line on its input."""

    threads: int
    slot: int  # from 1; its log is named as that of such a rank
    at_once: int
    queue: int  # a file descriptor: a pipe with the indices of the folders that nobody has taken
    folders: tuple[str, ...]
    named: tuple[str, ...] = ()  # shard sets, as jobs.node.task.TrialTask has them


class WorkerFailed(Exception):
    """Some workers failed; the others have worked to the end."""


def work_off(folders: Sequence[str], at_once: int, threads: int, named: tuple[str, ...] = ()) -> None:
    """Train the trials of these folders, `at_once` at a time; returns when all have ended.

    Raises Interrupted where one was interrupted, NodeFault where the node fails all, WorkerFailed where one failed or
    was killed.
    """
    environment = submitit.JobEnvironment()
    reader, writer = os.pipe()
    if len(folders) * INDEX_BYTES > _capacity(writer):
        raise ValueError(f"{len(folders)} trials in one job: too many; lower --trials-per-job")
    for index in range(len(folders)):
        os.write(writer, index.to_bytes(INDEX_BYTES, "big"))
    os.close(writer)
    count = min(at_once, len(folders))
    workers = [
        start(Order(threads, slot, count, reader, tuple(folders), named), environment) for slot in range(1, count + 1)
    ]
    os.close(reader)
    codes = await_all(workers)
    if REQUEUE in codes or INTERRUPTED in codes:
        raise Interrupted("workers were interrupted", REQUEUE in codes)
    if NODE_FAULT in codes:
        slots = ", ".join(str(slot) for slot, code in enumerate(codes, start=1) if code == NODE_FAULT)
        raise gpus.NodeFault(f"{gpus.place(os.environ)} was given GPUs, and workers {slots} see none: see their logs")
    if bad := {slot: code for slot, code in enumerate(codes, start=1) if code != OK}:
        raise WorkerFailed("; ".join(f"worker {slot} {_how(code)}" for slot, code in bad.items()))


def start(order: Order, environment: submitit.JobEnvironment) -> subprocess.Popen[str]:
    folder = Path(os.environ["SUBMITIT_FOLDER"])
    with (folder / f"{environment.job_id}_{order.slot}_log.out").open("a") as log:
        process = subprocess.Popen(
            # the last word is the folder of logs, as in submitit's own commands: jobs.state.processes knows it by that
            [sys.executable, "-u", "-m", "jobs.node.worker", "submitit", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            pass_fds=[order.queue],
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # a signal has ended it already: its exit code will show
        process.stdin.write(json.dumps(asdict(order)) + "\n")
        process.stdin.flush()  # and it stays open: its end is ours
    return process


def await_all(workers: Sequence[subprocess.Popen[str]]) -> list[int]:
    """Wait for the workers, forwarding signals that this process gets; returns their exit codes."""
    handed_on = 0
    while any(worker.poll() is None for worker in workers):
        for number in interrupt.received()[handed_on:]:
            handed_on += 1
            for worker in workers:
                worker.send_signal(number)  # nothing happens to one that has ended
        time.sleep(POLL_S)
    codes = [worker.wait() for worker in workers]
    return [UNREADY.get(code, code) for code in codes]


def take(order: Order) -> Iterator[str]:
    """The folders of trials that no other worker has taken, one after the other."""
    while index := os.read(order.queue, INDEX_BYTES):
        yield order.folders[int.from_bytes(index, "big")]


def read_order() -> Order:
    """Read this worker's order from its input; from then on the end of the input raises SIGTERM."""
    content = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, name="job", daemon=True).start()
    return Order(**content | {name: tuple(content[name]) for name in ("folders", "named")})


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not by sys.stdin: its lock, held here, would be in the way at the end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _capacity(pipe: int) -> int:
    """Bytes that a pipe holds."""
    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


def _how(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
