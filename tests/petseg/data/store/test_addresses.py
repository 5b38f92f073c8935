"""What a remote's address becomes: the request for a file, the limits of its protocol, and the command of a pipe."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import aiohttp
import fsspec  # type: ignore[import-untyped]
import pytest

from petseg.data.remote import remotes
from petseg.data.remote.remotes import FsspecRemote, PipeRemote, open_remote

ONE_GET = {"size": 1, "block_size": 0}  # with no HEAD before it and no ranges


class FileSystem:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, str, dict[str, Any]]] = []

    def open(self, url: str, mode: str, **options: Any) -> io.BytesIO:
        self.opened.append((url, mode, options))
        return io.BytesIO(b"0123456789")


@pytest.fixture
def systems(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any], FileSystem]]:
    """The scheme and the options that fsspec is given, and the file system that it answers with."""
    made: list[tuple[str, dict[str, Any], FileSystem]] = []

    def build(scheme: str, **options: Any) -> FileSystem:
        made.append((scheme, options, FileSystem()))
        return made[-1][2]

    monkeypatch.setattr(fsspec, "filesystem", build)
    return made


@pytest.mark.parametrize(
    ("location", "url", "options"),
    [
        ("https://host/set", "https://host/set/a.tar", ONE_GET),
        ("http://me:word@host:81/set//?sig=x#part", "http://me:word@host:81/set/a.tar?sig=x", ONE_GET),
        ("https://host", "https://host/a.tar", ONE_GET),
        ("s3://bucket/the/set/", "s3://bucket/the/set/a.tar", {"cache_type": "none"}),
        ("gs://bucket", "gs://bucket/a.tar", {"cache_type": "none"}),
    ],
)
def test_a_file_is_asked_for_within_its_set(
    systems: list[Any], monkeypatch: pytest.MonkeyPatch, location: str, url: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(remotes, "CHUNK_BYTES", 4)
    remote = open_remote(location)
    assert list(remote.chunks("a.tar")) == [b"0123", b"4567", b"89"]
    ((scheme, _, system),) = systems
    assert scheme == location.partition(":")[0]
    assert system.opened == [(url, "rb", options)]


@pytest.mark.parametrize("scheme", ["http", "https", "s3", "gs"])
def test_every_protocol_has_its_own_connections_and_gives_up_when_nothing_comes(
    systems: list[Any], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remotes, "STALL_S", 7.0)
    FsspecRemote(f"{scheme}://host/set")
    ((_, options, system),) = systems
    assert options.pop("asynchronous") is False
    assert options.pop("skip_instance_cache") is True
    if scheme == "s3":
        timeouts = {"connect_timeout": 7.0, "read_timeout": 7.0, "retries": {"total_max_attempts": 1}}
        assert options == {"use_listings_cache": False, "config_kwargs": timeouts}
        assert system.retries == 1  # petseg counts the tries
    elif scheme == "gs":
        assert options == {"use_listings_cache": False, "requests_timeout": 7.0}
    else:
        limit = aiohttp.ClientTimeout(total=None, connect=7.0, sock_connect=7.0, sock_read=7.0)
        assert options == {"client_kwargs": {"timeout": limit, "trust_env": True}}  # the proxy of the environment


def test_a_command_gets_the_name_wherever_it_stands_for_it_and_no_input() -> None:
    script = "import sys; print(sys.argv[1:], len(sys.stdin.read()))"
    remote = open_remote(f"pipe:{sys.executable} -S -c '{script}' {{}} --to=/x/{{}}/{{}} 'two words'")
    assert isinstance(remote, PipeRemote)
    assert b"".join(remote.chunks("a.tar")) == b"['a.tar', '--to=/x/a.tar/a.tar', 'two words'] 0\n"
    assert remote.shown == f"pipe:{sys.executable} ... {{}} --to=/x/{{}}/{{}}"


def test_a_command_may_fail_after_its_last_byte() -> None:
    """Its bytes may be too few then, whatever they are."""
    script = 'import os, sys; os.write(1, b"x"); sys.exit(7)'
    chunks = PipeRemote(f"pipe:{sys.executable} -S -c '{script}' {{}}").chunks("a.tar")
    assert next(chunks) == b"x"
    with pytest.raises(OSError, match=r"^exit code 7$"):
        next(chunks)


def test_a_command_whose_bytes_nobody_wants_any_more_is_ended(tmp_path: Path) -> None:
    script = f'import os, time; open("{tmp_path}/pid", "w").write(str(os.getpid())); os.write(1, b"x"); time.sleep(99)'
    chunks = PipeRemote(f"pipe:{sys.executable} -S -c '{script}' {{}}").chunks("a.tar")
    assert next(chunks) == b"x"
    chunks.close()
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()
