"""Files fetched from a remote that follows a script: what is tried again, when, and what is left on the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from petseg.data.remote import staging
from petseg.data.remote.staging import Closed, Expected, NotFetched, fetch
from shards.cause import Cause, ShardSetError, cause_of
from shards.command import Failure

CONTENT, OTHER = b"the bytes of a shard", b"The bytes of a shard"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WHOLE = Expected(len(CONTENT), len(CONTENT), SHA256)


class Scripted:
    """Each try gives the next bytes or raises the next error; the last of them for ever."""

    shown = "https://host/set"

    def __init__(self, *script: bytes | Exception) -> None:
        self.script, self.tries = script, 0

    def chunks(self, name: str) -> Generator[bytes, None, None]:
        self.tries += 1
        now = self.script[min(self.tries, len(self.script)) - 1]
        if isinstance(now, Exception):
            raise now
        yield from (now[:7], now[7:])

    def close(self) -> None:
        pass


class Waits(threading.Event):
    """Notes what is waited, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.seconds.append(timeout)
        return self.is_set()


class Answer(Exception):
    """An error with the status that aiohttp or gcsfs give it."""

    def __init__(self, **status: object) -> None:
        super().__init__("the server says")
        vars(self).update(status)


class ClientPayloadError(Exception):
    """Named as aiohttp's."""


class Broken(ClientPayloadError):
    pass


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        *[(Answer(status=number), True) for number in (500, 503, 599, 408, 429)],
        *[(Answer(status=number), False) for number in (400, 401, 403, 404, 410, 499)],
        (Answer(code=502), True),
        (Answer(code=404), False),
        (Answer(status="500"), False),
        (Answer(), False),
        (FileNotFoundError("gone"), False),
        (PermissionError("forbidden"), False),
        (IsADirectoryError("a folder"), False),
        (NotADirectoryError("a file"), False),
        (ConnectionResetError("reset"), True),
        (TimeoutError("slow"), True),
        (OSError("exit code 1"), True),
        (Broken("dropped"), True),
        (ValueError("an address"), False),
    ],
    ids=repr,
)
def test_what_another_try_may_not_meet_is_tried_again(tmp_path: Path, error: Exception, transient: bool) -> None:
    remote = Scripted(error, CONTENT)
    if transient:
        fetch(remote, "a.tar", tmp_path / "a.tar", WHOLE, Waits())
        assert (tmp_path / "a.tar").read_bytes() == CONTENT
        assert remote.tries == 2
        return
    with pytest.raises(ShardSetError) as raised:
        fetch(remote, "a.tar", tmp_path / "a.tar", WHOLE, Waits())
    assert str(raised.value) == (
        f"cannot fetch a.tar at https://host/set ({type(error).__name__}: {error}): correct data.shards, upload the "
        "set, or see that you may read it"
    )
    assert remote.tries == 1
    assert list(tmp_path.iterdir()) == []


def test_each_wait_is_twice_as_long_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "BACKOFF_S", 0.2)
    monkeypatch.setattr(staging, "MAX_BACKOFF_S", 1.0)
    shares: list[tuple[float, float]] = []
    monkeypatch.setattr(random, "uniform", lambda low, high: shares.append((low, high)) or 1.0)
    waits = Waits()
    with pytest.raises(NotFetched) as error:
        fetch(Scripted(OSError("no route")), "a.tar", tmp_path / "a.tar", WHOLE, waits)
    assert waits.seconds == pytest.approx([0.2, 0.4, 0.8, 1.0])
    assert shares == [(0.75, 1.25)] * 4  # that many processes do not ask at the same moment
    assert str(error.value) == (
        "a.tar at https://host/set was not fetched, 5 tries failed: OSError: no route; check the network, then run "
        "again"
    )
    assert cause_of(error.value) is Cause.DATA


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (OTHER, f"its sha256 is {hashlib.sha256(OTHER).hexdigest()}, the manifest says {SHA256}"),
        (CONTENT + b"X", "more than 20 bytes"),
    ],
    ids=["other bytes", "too many"],
)
def test_wrong_bytes_are_fetched_once_more(tmp_path: Path, wrong: bytes, problem: str) -> None:
    path = tmp_path / "a.tar"
    fetch(Scripted(wrong, CONTENT), "a.tar", path, WHOLE, Waits())
    assert path.read_bytes() == CONTENT
    path.unlink()
    remote = Scripted(OSError("reset"), wrong, OSError("reset"), wrong, CONTENT)
    with pytest.raises(Failure) as error:
        fetch(remote, "a.tar", path, WHOLE, Waits())
    assert remote.tries == 4
    assert error.value.cause is Cause.DATA
    assert str(error.value) == (
        f"a.tar at https://host/set differs from the manifest: {problem}; check the packed set with "
        "`python -m shards.verify FOLDER` and upload it again"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_short_answer_is_tried_again_and_not_called_wrong(tmp_path: Path) -> None:
    remote = Scripted(CONTENT[:-1])
    with pytest.raises(NotFetched, match="it ended after 19 of 20 bytes"):
        fetch(remote, "a.tar", tmp_path / "a.tar", WHOLE, Waits())
    assert remote.tries == 5


def test_a_file_of_unknown_size_and_hash_may_have_any_bytes_up_to_its_bound(tmp_path: Path) -> None:
    fetch(Scripted(CONTENT), "manifest.json", tmp_path / "one", Expected(20), Waits())
    fetch(Scripted(b""), "manifest.json", tmp_path / "two", Expected(20), Waits())
    assert [(tmp_path / name).read_bytes() for name in ("one", "two")] == [CONTENT, b""]
    with pytest.raises(Failure, match="more than 19 bytes"):
        fetch(Scripted(CONTENT), "manifest.json", tmp_path / "three", Expected(19), Waits())


def test_a_store_that_is_closed_fetches_no_more(tmp_path: Path) -> None:
    stopped = Waits()
    stopped.set()
    remote = Scripted(CONTENT)
    with pytest.raises(Closed, match=r"^closed while a\.tar was fetched$"):
        fetch(remote, "a.tar", tmp_path / "a.tar", WHOLE, stopped)
    assert remote.tries == 1
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_fails_before_a_byte_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def full(file: int, offset: int, length: int) -> None:
        asked.append((offset, length))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    remote = Scripted(CONTENT)
    with pytest.raises(OSError, match="No space") as error:
        fetch(remote, "a.tar", tmp_path / "a.tar", WHOLE, Waits())
    assert (error.value.errno, error.value.strerror) == (
        errno.ENOSPC,
        f"No space left on device while a.tar was staged in {tmp_path}; data.cache_dir chooses another folder",
    )
    assert asked == [(0, 20)]
    assert remote.tries == 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_aside_and_synced_before_it_has_its_name(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, seen = os.fsync, list[tuple[bool, bytes]]()

    def noted(file: int) -> None:
        (aside,) = tmp_path.glob(".a.tar.*.part")
        seen.append(((tmp_path / "a.tar").exists(), aside.read_bytes()))
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    fetch(Scripted(CONTENT), "a.tar", tmp_path / "a.tar", WHOLE, Waits())
    assert seen == [(False, CONTENT)]
    assert [name.startswith(".a.tar.") for name in synced] == [True]


def test_no_secret_of_an_error_is_shown(tmp_path: Path) -> None:
    error = ValueError("https://me:hunter2@host/set?sig=s3cr3t")
    with pytest.raises(ShardSetError) as raised:
        fetch(Scripted(error), "a.tar", tmp_path / "a.tar", WHOLE, Waits())
    assert "hunter2" not in str(raised.value)
    assert "s3cr3t" not in str(raised.value)
    assert raised.value.__suppress_context__
