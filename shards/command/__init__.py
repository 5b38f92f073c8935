"""How every command begins and ends: what it raises becomes one line and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from shards.cause import Cause

OK = 0
WRONG_USE = 2  # a ValueError or OSError other than a full disk: the message names the value and the next step
FAILED = 3  # not worth retrying: data, code, NaN
NOT_KNOWN = 4  # Slurm does not say where jobs stand: ask again when it answers
INTERRUPTED = 75  # saved, or not possible now, as on a full disk: run me again
CANCELLED = 130  # Ctrl-C, as a shell reports it
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # on the disk, in a quota
# what a terminal obeys instead of showing it, and what hides or turns round the text beside it: control characters but
# for tab and line feed, soft and zero-width ones, line separators, directions (Unicode TR 36), lone surrogates, tags
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)


logger = logging.getLogger(__name__)


class Interrupted(RuntimeError):
    """Work that was asked to stop and can go on: what is done is saved, and the same command goes on with it.

    requeue: whoever asked wants the job to be started again right away.
    """

    def __init__(self, message: str, requeue: bool = False) -> None:
        super().__init__(message)
        self.requeue = requeue


class Unavailable(OSError):
    """An outside service that takes or answers nothing now: nothing is wrong, and the same command may do later."""


class NotKnown(RuntimeError):
    """What the command has to know first cannot be found out now, because Slurm does not answer."""


class Failure(RuntimeError):
    """Work that went wrong for a reason that a second try would meet again (damaged data, NaN loss).

    cause: the kind of reason, which whoever started the work acts on.
    """

    def __init__(self, message: str, cause: Cause | None = None) -> None:
        super().__init__(message)
        self.cause = cause


def printable(text: str) -> str:
    """The text with all that a terminal would obey or hide shown as an escape, such as \\x1b; lines stay lines."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def without_secrets(text: str) -> str:
    """The text without wandb's key, and without user, password and query in its addresses."""
    if key := os.environ.get("WANDB_API_KEY"):
        text = text.replace(key, "***")
    text = re.sub(r"(\w://)[^/\s'\"?]*@", r"\1", text)
    text = re.sub(r"(\w://)[^/\s'\"]*:[^/\s'\"]*@", r"\1", text)  # a password may hold a question mark
    return re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\")]*", r"\1", text)


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run `main` with the arguments less `--debug`, and turn what it raises into a line and an exit code.

    With `--debug` the traceback is printed too.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # by shards/preamble.py, during the imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    handler = _CurrentStderr()
    handler.setFormatter(_Printable(f"%(asctime)s{_rank()} %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler])
    for noisy in ("PIL", "filelock", "urllib3", "git", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return main(args)
    except KeyboardInterrupt as error:
        return _say(f"interrupted: {error}" if error.args else "interrupted", CANCELLED, debug)
    except Interrupted as error:
        return _say(f"interrupted: {error}", INTERRUPTED, debug)
    except Unavailable as error:
        return _say(f"not now: {error}; run the same command again later", INTERRUPTED, debug)
    except NotKnown as error:
        return _say(f"not known: {error}", NOT_KNOWN, debug)
    except Failure as error:
        return _say(f"failed: {error}", FAILED, debug)
    except OSError as error:
        if error.errno in NO_ROOM:
            again = "make room, then run the same command again"
            return _say(f"no room: {_describe(error)}; {again}", INTERRUPTED, debug)
        return _say(f"error: {_describe(error)}", WRONG_USE, debug)
    except ValueError as error:
        return _say(f"error: {error}", WRONG_USE, debug)
    except Exception as error:  # the last boundary: a bug of ours, shown as one
        return _say(f"bug: {type(error).__name__}: {error} (run again with --debug for the traceback)", FAILED, debug)


def _describe(error: OSError) -> str:
    """`Permission denied: /home/me/runs/lab`: by its whole path, since a relative one may lie in the wrong folder."""
    paths = [name for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
    if not (error.strerror and paths):
        return str(error)
    return f"{error.strerror}: {' -> '.join(str(Path(name).absolute()) for name in paths)}"


def typed(script: str, *words: object) -> str:
    """A command of ours as it can be typed, such as `python jobs/status.py 'runs/my lab'`."""
    return shlex.join(["python", script, *map(str, words)])


class _Printable(logging.Formatter):
    """For a terminal: a message can hold the names and words of a stranger's files."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


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
        sys.stderr.write(printable(traceback.format_exc()))
    sys.stderr.write(printable(line) + "\n")
    return code
