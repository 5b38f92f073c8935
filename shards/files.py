"""Files appear whole, and those that could be a stranger's are read without being led astray.

A run folder or a shard set may come from anybody. A name in it can be that of a link out of the folder, or of a FIFO
that nobody writes to; JSON can be nested until the parser's stack ends, or be larger than memory; a text can hold
escapes that a terminal obeys. What is read here is a regular file of the folder, bounded, and fit to be shown.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import stat
import types
import typing
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from io import BufferedReader, BufferedWriter, FileIO
from pathlib import Path
from typing import Any, TypeVar

from shards.command import printable

Kind = TypeVar("Kind")

HALF_WRITTEN = re.compile(r"\..+\.[0-9a-f]{12}\.tmp", re.DOTALL)  # of `writing_whole`, when its process is killed
MAX_JSON_BYTES = 64 << 20  # the sweep.json of 100,000 trials has 20 MB
_FILE_KINDS = (
    (stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


class NotRegular(OSError):
    """A name that should be a file's is that of a link, a folder, a FIFO or a device."""


def open_regular(path: Path, *, follow: bool = True) -> BufferedReader:
    """Open a regular file for reading, without ever waiting for a writer as an open of a FIFO does.

    follow: take the file that a symbolic link points to. Raises NotRegular, FileNotFoundError and other OSErrors.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    require_regular(path, path.stat() if follow else path.lstat())  # before: opening a device can act on it
    file = open(os.open(path, flags), "rb")  # noqa: PTH123, SIM115 - Path.open takes no flags, and the caller closes it
    try:
        require_regular(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: Path, *, follow: bool = True) -> bytes:
    """The bytes of a regular file; raises as `open_regular`."""
    with open_regular(path, follow=follow) as file:
        return file.read()


def require_regular(path: Path, found: os.stat_result) -> None:
    """Raises NotRegular that says what the path is, unless it is a regular file."""
    if not stat.S_ISREG(found.st_mode):
        kind = next((word for is_kind, word in _FILE_KINDS if is_kind(found.st_mode)), "no file")
        raise NotRegular(f"{path} is {kind}, not a regular file")


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that it appears whole or not at all: aside, fsync, rename.

    Raises OSError that names the file; nothing stays aside then, which a full disk would have to hold.
    """
    with writing_whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def writing_whole(path: Path) -> Iterator[BufferedWriter]:
    """A file to write, in pieces, that appears when the block ends without an error; as `write_whole`."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # processes of two nodes can share a pid
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise named(error, path) from None
        raise


def named(error: OSError, path: Path) -> OSError:
    """Add the file's name to an error of write or fsync, which leave it out; one that has a name stays as it is."""
    return error if error.filename is not None else type(error)(error.errno, error.strerror, str(path))


def fsync(path: Path) -> None:
    """Have what a file or a folder holds on the disk, as far as the disk tells."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def decode_json(content: bytes | str) -> Any:
    """A JSON text's value; raises ValueError, for one whose nesting would end the parser's stack too."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_bounded(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of a regular file that is no link.

    Raises NotRegular, FileNotFoundError and other OSErrors, and ValueError that names a file that is too large.
    """
    with open_regular(path, follow=False) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes:,} bytes, which no file of its kind is")
    return content


def parse_json(content: bytes | str, name: Path | str) -> Any:
    """The value of a JSON text, whose strings are made printable; raises ValueError that names its file.

    A number of more than 64 bits is refused: arithmetic on it fails later, in one place or another.
    """
    try:
        return _printable(decode_json(content))
    except ValueError as error:  # of UnicodeDecodeError's kind too
        raise ValueError(f"{name} is damaged ({error})") from None


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value of a JSON file, whose strings are made printable; raises as `read_bounded` and `parse_json`."""
    return parse_json(read_bounded(path, max_bytes), path)


def read_json_object(path: Path, advice: str = "") -> dict[str, Any]:
    """A JSON file's object; raises ValueError that names the file if it holds anything else, else as `read_json`.

    advice: the next step, which follows such a message
    """
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path} is damaged (it holds a {type(content).__name__}, not an object)")
    except ValueError as error:
        raise ValueError(f"{error}: {advice}" if advice else str(error)) from None
    return content


def read_as(kind: type[Kind], path: Path, advice: str) -> Kind:
    """The dataclass that a JSON file holds; raises ValueError as `read_json_object`, and for other fields or types."""
    content = read_json_object(path, advice)
    try:
        return build(kind, content)
    except TypeError as error:
        known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
        needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}  # type: ignore[arg-type]
        other = not needed <= content.keys() <= known
        what = "was written by another version" if other else "is damaged"
        raise ValueError(f"{path} {what} ({error}): {advice}") from None


def read_text_file(path: Path, what: str) -> str:
    """The text of a regular file, without the mark (BOM) that some editors put before it.

    what: the file's kind, in words. Raises ValueError that names the file if it is not UTF-8, and as `read_regular`.
    """
    try:
        return read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}, byte {error.start}): save {what} as UTF-8") from None


def build(kind: type[Kind], content: Any) -> Kind:
    """The dataclass whose fields a JSON object gives; raises TypeError for other fields, or a value of another type.

    A whole number does for a float; numbers beyond 64 bits, which arithmetic fails at later, do for nothing.
    """
    if not isinstance(content, dict):
        raise TypeError(f"a {type(content).__name__} where an object is expected")
    hints = _type_hints(kind)
    for one in fields(kind):  # type: ignore[arg-type]
        if one.name in content and not _fits(content[one.name], hints[one.name]):
            raise TypeError(f"{one.name} is {str(content[one.name])[:80]!r}")
    return kind(**content)


# cached, as it compiles every annotation: 0.3 ms, for each file of a sweep
_type_hints: Callable[[type], dict[str, Any]] = functools.cache(typing.get_type_hints)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _fits(value, inner[0])
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if type(value) is int and hint in (int, float):
        return abs(value) < 2**63
    return hint is Any or type(value) is hint


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if type(value) is int and abs(value) >= 2**63:
        raise ValueError("it holds a number of more than 64 bits")
    if isinstance(value, list):
        return [_printable(one) for one in value]
    if isinstance(value, dict):
        return {printable(name): _printable(one) for name, one in value.items()}
    return value


def open_to_append(path: Path) -> FileIO:
    """A file to add to, unbuffered, made if it is not there; raises NotRegular for a link, or anything but a file."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            require_regular(path, path.lstat())
        raise
    file = FileIO(descriptor, "a+")
    try:
        require_regular(path, os.fstat(descriptor))
    except BaseException:
        file.close()
        raise
    return file


def append(path: Path, text: str) -> None:
    """Add whole lines to a file, on disk when this returns; raises as `open_to_append`, with the file's name.

    A last line that a kill cut short is ended first, and what does not fit on the disk leaves no half a line.
    """
    rest = text.encode()
    with open_to_append(path) as file:
        end = os.fstat(file.fileno()).st_size
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            rest = b"\n" + rest
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError as error:
            os.ftruncate(file.fileno(), end)
            raise named(error, path) from None


def require_own_folder(path: Path) -> None:
    """Raises NotRegular if the path is a link, or is there and no folder: what is written goes nowhere else."""
    if path.is_symlink():
        raise NotRegular(f"{path} is a symbolic link, and what is written there would go elsewhere: put a folder there")
    if path.exists() and not path.is_dir():
        raise NotRegular(f"{path} is no folder: move it away")
