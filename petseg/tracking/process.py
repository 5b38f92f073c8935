"""The caller's end of petseg.tracking.client: a process with wandb's client, its commands and its answers."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Answer = dict[str, Any]


@dataclass(frozen=True)
class RunSettings:
    """What the client needs to open a run in wandb, and where the run's numbers are."""

    folder: str
    id: str
    group: str
    job_type: str
    tags: Sequence[str]
    config: Mapping[str, Any]
    project: str
    entity: str
    mode: str  # online | offline
    wandb_dir: str  # where the client keeps its files
    init_timeout_s: float
    finish_timeout_s: float
    name: str = ""  # shown in place of the id; empty = the id
    program: str = "petseg/train.py"  # the script that was started
    commit: str = ""  # git commit of the code; empty = not known
    remote: str = ""  # address of the git repository
    first_epoch: int = 0  # rows before it are not sent, even if wandb lacks them
    watched_pid: int = 0  # the process whose load is recorded; 0 = this is a replay
    host: str = ""  # where a replayed run trained
    confirm_s: float = 0.0  # how long wandb may take at the end to show what it was sent; 0 = do not ask


class WandbProcess:
    """A process with wandb's client. Only `wait_for` waits for it, and only for a limited time."""

    def __init__(self, on_answer: Callable[[Answer], None] | None = None) -> None:
        """on_answer: called from a thread with each answer, or with each error, which has "error" and "text"."""
        environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # a client's own
        self._process = subprocess.Popen(
            [sys.executable, "-m", "petseg.tracking.client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the training, which ends the client when it has sent all
            env=environment,
        )
        assert self._process.stdin is not None
        self._input = self._process.stdin.fileno()
        os.set_blocking(self._input, False)
        self._answers: queue.Queue[Answer] = queue.Queue()
        self._on_answer, self._closing = on_answer, False
        self._reader = threading.Thread(target=self._read, name="wandb", daemon=True)
        self._reader.start()

    def send(self, **command: Any) -> None:
        """Send the client a command; it is dropped if the client has ended or its pipe is full."""
        line = (json.dumps(command) + "\n").encode()
        with contextlib.suppress(OSError):  # BlockingIOError and BrokenPipeError
            if os.write(self._input, line) < len(line):
                self._process.kill()  # half a line is no command

    def wait_for(self, word: str, timeout_s: float) -> Answer | None:
        """The answer that has this word, or an error; None if neither comes in time."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                answer = self._answers.get(timeout=left_s)
                if word in answer or "error" in answer:
                    return answer
        return None

    def kill(self) -> None:
        """End the client, whatever it is doing; `on_answer` and `wait_for` get an error."""
        self._process.kill()

    def close(self) -> None:
        """End the client, and close its pipes and the thread that reads them."""
        self._closing = True
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._take(json.loads(line))
        if not self._closing:
            self._take({"error": "RuntimeError", "text": "its client has ended"})

    def _take(self, answer: Answer) -> None:
        if self._on_answer:
            self._on_answer(answer)
        self._answers.put(answer)
