"""The boundary of every command: exceptions end here, as one readable line and a stable exit code."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TextIO

OK = 0
WRONG_USE = 2  # a ValueError or OSError: the message names the value and the next step
FAILED = 3  # not worth retrying: data, code, NaN
INTERRUPTED = 75  # saved: run me again
CANCELLED = 130  # Ctrl-C, as a shell reports it

logger = logging.getLogger(__name__)


class Interrupted(RuntimeError):
    """Work that was asked to stop and can go on: what is done is saved, and the same command goes on with it.

    requeue: whoever asked wants the job to be started again right away.
    """

    def __init__(self, message: str, requeue: bool = False) -> None:
        super().__init__(message)
        self.requeue = requeue


class Failure(RuntimeError):
    """Work that went wrong for a reason that a second try would meet again (damaged data, NaN loss)."""


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run `main` with the arguments less `--debug`, and turn what it raises into a line and an exit code.

    With `--debug` the traceback is printed too.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        format=f"%(asctime)s{_rank()} %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        handlers=[_CurrentStderr()],
    )
    for noisy in ("PIL", "matplotlib", "filelock", "urllib3", "git", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return main(args)
    except KeyboardInterrupt:
        return _say("interrupted", CANCELLED, debug)
    except Interrupted as error:
        return _say(f"interrupted: {error}", INTERRUPTED, debug)
    except Failure as error:
        return _say(f"failed: {error}", FAILED, debug)
    except (ValueError, OSError) as error:
        return _say(f"error: {error}", WRONG_USE, debug)
    except Exception as error:  # the last boundary: a bug of ours, shown as one
        return _say(f"bug: {type(error).__name__}: {error} (run again with --debug for the traceback)", FAILED, debug)


class _CurrentStderr(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is at that moment: a progress bar stands in for it, and prints above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


def _rank() -> str:
    """Which process of a distributed run speaks."""
    return f" rank {os.environ['RANK']}" if "RANK" in os.environ else ""


def _say(line: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    sys.stderr.write(line + "\n")
    return code
