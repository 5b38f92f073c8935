"""How every command begins and ends: its words are read, and what it raises becomes one line and an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import inspect
import io
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from shards.cause import Cause

OK = 0
WRONG_USE = 2  # a ValueError or OSError other than a full disk: the message names the value and the next step
FAILED = 3  # not worth retrying: data, code, NaN
NOT_KNOWN = 4  # Slurm does not say where jobs stand: ask again when it answers
INTERRUPTED = 75  # saved, or not possible now, as on a full disk: run me again
CANCELLED = 130  # Ctrl-C, as a shell reports it
EXAMPLE = ("python ", "accelerate ")  # what a line that can be typed begins with
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # on the disk, in a quota
HELP_MARGIN = 2  # columns that the help text leaves free
DESCRIPTION = "{description}"  # stands in tyro's help for a text of ours
TIED = "\N{NO-BREAK SPACE}"
# what a terminal obeys instead of showing it, and what hides or turns round the text beside it: control characters but
# for tab and line feed, soft and zero-width ones, line separators, directions (Unicode TR 36), lone surrogates, tags
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
UNWRAPPED = 10_000  # columns of a terminal on which tyro breaks no line

Parsed = TypeVar("Parsed")

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


def parse(
    command: Callable[..., Parsed] | types.UnionType,
    argv: Sequence[str] | None,
    description: str | None,
    default: Parsed | None = None,
    positional: bool = False,
) -> Parsed:
    """The command line as an instance of the dataclass `command`.

    `--help` shows `description` and all options with what they do; `-h` only their names and defaults.
    positional: fields without a default need no flag
    Raises ValueError for words that are not understood, in one line.
    """
    import tyro  # not in processes that only raise a Failure

    for one in typing.get_args(command) if isinstance(command, types.UnionType) else (command,):
        join_help(one)
    words = list(sys.argv[1:] if argv is None else argv)
    kinds: Any = command

    def read() -> Parsed:
        return tyro.cli(
            kinds,
            prog=_module_name(),
            args=words,
            compact_help="-h" in words and "--help" not in words,
            description=DESCRIPTION,
            default=tyro.MISSING_NONPROP if default is None else default,
            config=(tyro.conf.PositionalRequiredArgs,) if positional else (),
        )

    said = io.StringIO()
    with _help_shows(description or ""):
        try:
            with contextlib.redirect_stderr(said):
                return read()
        except SystemExit as ended:
            if ended.code != WRONG_USE:
                raise
            said = io.StringIO()
        finally:
            sys.stderr.write(said.getvalue())
    raise ValueError(_complaint(read))


def _complaint(read: Callable[[], Any]) -> str:
    """What tyro says of words that it does not understand, in one line instead of a box."""
    box, columns = _Caught(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(UNWRAPPED)
    try:
        with contextlib.redirect_stdout(box), contextlib.redirect_stderr(box), contextlib.suppress(SystemExit):
            read()
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return _unboxed(box.getvalue())


def _unboxed(box: str) -> str:
    """The text of tyro's box of an error: what is wrong, the flags that come near, and where to read on."""
    lines = [line.strip().strip("│").strip() for line in box.splitlines() if line.strip()[:1] not in "╭╰"]
    problem, *rest = re.split(r"\n─+\n", "\n".join(lines))
    what = " ".join(problem.split())
    if found := re.match(r"Error parsing (?!-)\S+: ", what):
        return what[found.end() :]  # of a rule of ours, which names the value; the dataclass's name says nothing
    what = re.sub(r"^Error parsing (-\S+): invalid literal for int\(\).*: (.+)", r"\1 \2: must be a whole number", what)
    what = re.sub(r"^Error parsing (-\S+): could not convert string to float: (.+)", r"\1 \2: must be a number", what)
    near = re.findall(r"^--[\w.-]+", next((part for part in rest if part.startswith("Perhaps")), ""), re.MULTILINE)
    meant = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    return f"{what[:1].lower()}{what[1:].rstrip('.')}{meant} (`{_typed_name()} --help` shows all options)"


def _typed_name() -> str:
    """How this process was started, such as `python jobs/sweep.py`."""
    return _module_name() or typed(sys.argv[0])


def typed(script: str, *words: object) -> str:
    """A command of ours as it can be typed, such as `python jobs/status.py 'runs/my lab'`."""
    return shlex.join(["python", script, *map(str, words)])


def _module_name() -> str | None:
    """How this process was started, if that was by `python -m`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else None


class _Caught(io.StringIO):
    """What tyro prints, drawn as for a terminal that gets it, or as for a file that takes its box drawing."""

    def __init__(self, terminal: TextIO | None = None) -> None:
        super().__init__()
        self.terminal = terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.terminal.encoding if self.terminal else "utf-8"

    def isatty(self) -> bool:
        return self.terminal.isatty() if self.terminal else False


@contextlib.contextmanager
def _help_shows(description: str) -> Iterator[None]:
    """Put the description into tyro's help, which would run its lines together."""
    terminal = sys.stdout
    caught = _Caught(terminal)
    with contextlib.redirect_stdout(caught):
        try:
            yield
        finally:
            terminal.write(caught.getvalue().replace(DESCRIPTION, help_text(description)))


def help_text(docstring: str) -> str:
    """A module's docstring for the terminal: prose wrapped, and each example on lines of its own that can be copied."""
    width = shutil.get_terminal_size().columns - HELP_MARGIN
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join("\n".join(_help_lines(paragraph, width)) for paragraph in paragraphs)


def _help_lines(paragraph: str, width: int) -> Iterator[str]:
    """An example is a line; a line that is indented further than the one before it goes on with it, and so does one at
    the margin after another there."""
    lines: list[str] = []
    for line in paragraph.replace("\\\n", "").splitlines():  # an example may go on after a backslash
        before = lines[-1] if lines else ""
        goes_on = before and not any(one.lstrip().startswith(EXAMPLE) for one in (before, line))
        if goes_on and (_indent(line) > _indent(before) > 0 or _indent(line) == _indent(before) == 0):
            lines[-1] += f" {line.lstrip()}"
        else:
            lines.append(line)
    for line in lines:
        if line.lstrip().startswith(EXAMPLE):
            yield from _wrap_example(line.strip(), width)
        else:
            hanging = " " * (_indent(line) + 2 if _indent(line) else 0)
            yield from textwrap.wrap(line, width, subsequent_indent=hanging, break_on_hyphens=False)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _wrap_example(line: str, width: int) -> list[str]:
    """One command, indented, and broken with backslashes where the terminal is too narrow, by choice before a flag."""
    if len(line) + 4 <= width:
        return [f"    {line}"]
    tied = re.sub(r"(?<= --)\S+( +(?!-)\S+)+", lambda found: re.sub(" +", TIED, found[0]), line)
    lines = textwrap.wrap(
        tied, width - 2, initial_indent=" " * 4, subsequent_indent=" " * 8, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return [part.replace(TIED, " ") + " \\" * (part != lines[-1]) for part in lines]


def join_help(command: Any) -> None:
    """Give each field of a dataclass, and of those in it, its docstring as one line of help.

    tyro would keep the line breaks of the source, which are too far apart for the box that it draws.
    """
    import docstring_parser

    if not dataclasses.is_dataclass(command) or not isinstance(command, type):
        return
    documented: dict[str, str | None] = {}
    for base in reversed(command.__mro__[:-1]):
        documented |= {one.arg_name: one.description for one in docstring_parser.parse_from_object(base).params}
    for name, kind in typing.get_type_hints(command).items():
        join_help(kind)
        field = command.__dataclass_fields__.get(name)
        if field and (text := documented.get(name)) and "help" not in field.metadata:
            text = " ".join(text.split())
            field.metadata = types.MappingProxyType({**field.metadata, "help": text})


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
