"""What is read and written one file at a time: only regular files, bounded, whole, and with their names in errors."""

from __future__ import annotations

import errno
import os
import socket
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from shards import files
from shards.files import (
    HALF_WRITTEN,
    NotRegular,
    append,
    build,
    named,
    open_regular,
    open_to_append,
    parse_json,
    read_bounded,
    read_json,
    read_regular,
    read_text_file,
    require_own_folder,
    write_whole,
    writing_whole,
)


def a_folder(path: Path) -> str:
    path.mkdir()
    return "a folder"


def a_fifo(path: Path) -> str:
    os.mkfifo(path)
    return "a FIFO"


def a_link(path: Path) -> str:
    target = path.with_name("target")
    target.write_text("theirs")
    path.symlink_to(target)
    return "a symbolic link"


def a_socket(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
    return "a socket"


@pytest.mark.parametrize("make_one", [a_folder, a_fifo, a_link, a_socket])
@pytest.mark.parametrize(
    "use", [lambda path: open_regular(path, follow=False), read_bounded, read_json, lambda path: append(path, "x")],
    ids=["open", "bounded", "json", "append"],
)  # fmt: skip
def test_what_is_no_file_is_neither_read_nor_written(
    tmp_path: Path, make_one: Callable[[Path], str], use: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    kind = make_one(Path("it"))
    with pytest.raises(NotRegular) as error:
        use(Path("it"))
    assert str(error.value) == f"it is {kind}, not a regular file"
    if make_one is a_link:
        assert Path("target").read_text() == "theirs"


def test_a_link_is_followed_where_that_is_asked_for(tmp_path: Path) -> None:
    a_link(tmp_path / "it")
    assert read_regular(tmp_path / "it") == b"theirs"
    with pytest.raises(NotRegular):
        read_regular(tmp_path / "it", follow=False)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nowhere", follow=False)


@pytest.mark.parametrize(("use", "look"), [(open_regular, 2), (open_to_append, 1)])
def test_what_became_another_thing_as_it_was_opened_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], object], look: int
) -> None:
    path = tmp_path / "it"
    path.write_text("x")
    looks: list[Path] = []

    def require(path: Path, found: os.stat_result) -> None:
        looks.append(path)
        if len(looks) == look:
            raise NotRegular("it is a FIFO by now")

    monkeypatch.setattr(files, "require_regular", require)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(NotRegular, match="by now"):
        use(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert looks == [path] * look


def test_a_file_may_have_as_many_bytes_as_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "it.json"
    path.write_text("12345")
    assert read_bounded(path, 5) == b"12345"
    assert read_json(path, 5) == 12345
    for read in (read_bounded, read_json):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
            read(path, 4)
        assert str(error.value) == f"{path} is larger than 4 bytes, which no file of its kind is"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["a\\u001bb", {"k\\u001b": "\\u202e"}]', ["a\\x1bb", {"k\\x1b": "\\u202e"}]),
        (str(2**63 - 1), 2**63 - 1), (str(1 - 2**63), 1 - 2**63), ("[1e300, null, true]", [1e300, None, True]),
    ],
)  # fmt: skip
def test_strings_of_json_can_be_shown(text: str, value: object) -> None:
    assert parse_json(text, "it") == value


@pytest.mark.parametrize("number", [2**63, -(2**63)])
@pytest.mark.parametrize("around", ["{}", "[1, {}]", '{{"a": [{{"b": {}}}]}}'])
def test_numbers_that_no_arithmetic_takes_are_refused(number: int, around: str) -> None:
    with pytest.raises(ValueError, match=r"^it is damaged \(it holds a number of more than 64 bits\)$"):
        parse_json(around.format(number), "it")


@pytest.mark.parametrize("content", ["", "{", b"\xff\xfe", "[" * 100_000])
def test_what_is_no_json_is_named(content: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"^it is damaged \(.+\)$"):
        parse_json(content, "it")


def test_a_text_has_no_mark_and_is_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("ü".encode("utf-8-sig"))
    assert read_text_file(path, "the list") == "ü"
    path.write_bytes(b"ab\xff")
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
        read_text_file(path, "the list")
    assert str(error.value) == f"{path} is not UTF-8 (invalid start byte, byte 2): save the list as UTF-8"


def test_a_file_appears_once_it_is_written_and_an_error_leaves_none(tmp_path: Path, synced: list[str]) -> None:
    path = tmp_path / "it"
    with writing_whole(path) as file:
        file.write(b"one")
        (aside,) = tmp_path.iterdir()
        assert HALF_WRITTEN.fullmatch(aside.name)
        assert not path.exists()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"one"]
    assert synced == [aside.name]  # under its first name: before it has the other
    with pytest.raises(KeyboardInterrupt), writing_whole(path):
        raise KeyboardInterrupt
    with pytest.raises(OSError, match=rf"^\[Errno {errno.EIO}\] out: '{path}'$"), writing_whole(path):
        raise OSError(errno.EIO, "out")
    write_whole(path, "zwei ü")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["zwei ü"]


def test_an_error_gets_a_name_unless_it_has_one() -> None:
    with_name = OSError(errno.EIO, "out", "theirs")
    assert named(with_name, Path("ours")) is with_name
    without = named(PermissionError(errno.EACCES, "no"), Path("ours"))
    assert (type(without), without.errno, without.strerror, without.filename) == (PermissionError, 13, "no", "ours")


@pytest.mark.parametrize(
    ("before", "after"), [(None, "new\n"), ("", "new\n"), ("a\n", "a\nnew\n"), ("ha", "ha\nnew\n")]
)
def test_lines_are_added_behind_whole_lines(tmp_path: Path, synced: list[str], before: str | None, after: str) -> None:
    path = tmp_path / "log"
    if before is not None:
        path.write_text(before)
    append(path, "new\n")
    assert path.read_text() == after
    assert synced == ["log"]


def test_lines_that_do_not_fit_leave_no_half(small_disk: Callable[[int], Path]) -> None:
    path = small_disk(16 * 1024) / "log"
    append(path, "first\nsec")
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        append(path, "x" * 64 * 1024)
    assert path.read_text() == "first\nsec"
    append(path, "third\n")
    assert path.read_text() == "first\nsec\nthird\n"


def test_a_folder_to_write_in_is_no_link(tmp_path: Path) -> None:
    require_own_folder(tmp_path / "nowhere")
    require_own_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotRegular, match=r"/file is no folder: move it away$"):
        require_own_folder(tmp_path / "file")
    for target in (tmp_path, tmp_path / "nowhere"):
        (tmp_path / "link").symlink_to(target)
        with pytest.raises(NotRegular, match=r"/link is a symbolic link, and what is written there would go elsewhere"):
            require_own_folder(tmp_path / "link")
        (tmp_path / "link").unlink()


@dataclass(frozen=True)
class Note:
    name: str = ""
    count: int = 0
    share: float = 0.0
    is_on: bool = False
    kind: Literal["a", "b"] = "a"
    label: str | None = None
    either: int | str = 0
    size: Annotated[int, "at least 1"] = 1
    counts: dict[str, int] | None = None
    extra: Any = None


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("name", ["", "x"], [1, None]),
        ("count", [0, -3, 2**63 - 1], [True, 1.0, "1", 2**63, -(2**63)]),
        ("share", [0.5, 1, float("inf")], ["x", True, 2**63]),
        ("is_on", [True], [1, 0, None]),
        ("kind", ["a", "b"], ["c", None]),
        ("label", [None, "x"], [1]),
        ("either", [1, "x"], [None, 1.5]),
        ("size", [7], ["x", True]),
        ("counts", [None, {}, {"a": 1}], [{"a": "x"}, {1: 1}, [], {"a": True}]),
        ("extra", [None, [1], "x"], []),
    ],
)
def test_a_field_takes_values_of_its_type_alone(field: str, good: list, bad: list) -> None:
    for value in good:
        assert getattr(build(Note, {field: value}), field) == value
    for value in bad:
        with pytest.raises(TypeError) as error:
            build(Note, {field: value})
        assert str(error.value) == f"{field} is {str(value)[:80]!r}"


@pytest.mark.parametrize(("content", "kind"), [([], "list"), (None, "NoneType"), ("x", "str")])
def test_a_dataclass_is_built_of_an_object(content: object, kind: str) -> None:
    with pytest.raises(TypeError, match=rf"^a {kind} where an object is expected$"):
        build(Note, content)
    with pytest.raises(TypeError, match="unexpected keyword argument 'new'"):
        build(Note, typing.cast(Any, {"new": 1}))
    with pytest.raises(TypeError) as error:
        build(Note, {"count": "x" * 100})
    assert str(error.value) == f"count is {'x' * 80!r}"
