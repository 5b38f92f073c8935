"""The other end of petseg.tracking.client: a wandb client that can be told things, asked, and left behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Answer = dict[str, Any]


class WandbProcess:
    """A process with wandb's client. No method waits for it, but `wait_for`, which says how long."""

    def __init__(self, on_answer: Callable[[Answer], None] | None = None) -> None:
        """on_answer: called from a thread for each answer, and for each error, which has "error" and "text"."""
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
        """Tell the client something; where it does not listen any more, or has a full pipe to read, nothing happens."""
        line = (json.dumps(command) + "\n").encode()
        with contextlib.suppress(OSError):  # BlockingIOError and BrokenPipeError
            if os.write(self._input, line) < len(line):
                self._process.kill()  # half a line is no command

    def wait_for(self, word: str, timeout_s: float) -> Answer | None:
        """The answer with that word, or an error; None if neither comes in time."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                answer = self._answers.get(timeout=left_s)
                if word in answer or "error" in answer:
                    return answer
        return None

    def kill(self) -> None:
        """End the client, whatever it is doing: who waits for it hears of it."""
        self._process.kill()

    def close(self) -> None:
        """End the client and all that belongs to it."""
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
