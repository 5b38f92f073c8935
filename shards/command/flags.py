"""The words of a command line as a dataclass, by tyro; its help and its complaints as this project words them."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO, TypeVar

from shards.command import WRONG_USE, typed

EXAMPLE = ("python ", "accelerate ")  # what a line that can be typed begins with
HELP_MARGIN = 2  # columns that the help text leaves free
DESCRIPTION = "{description}"  # stands in tyro's help for a text of ours
TIED = "\N{NO-BREAK SPACE}"
UNWRAPPED = 10_000  # columns of a terminal on which tyro breaks no line

Parsed = TypeVar("Parsed")


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
