"""Remotes, which hold shard sets far away, and the bytes of their files; petseg.data.remote.staging retries reads.

A remote is an address for fsspec (`https://host/set`, `s3://bucket/set`) or webdataset's `pipe:COMMAND`.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Generator
from typing import IO, Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from shards.command import without_secrets

PIPE = "pipe:"
PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}  # what fsspec needs for each scheme
STALL_S = 30.0  # longest time without a connection or without a byte
CHUNK_BYTES = 4 << 20


class Remote(Protocol):
    """Access to the files of a remote shard set."""

    shown: str  # the location for messages: without user, password and query, which can be secrets

    def chunks(self, name: str) -> Generator[bytes, None, None]:
        """The bytes of one file."""

    def close(self) -> None: ...


def open_remote(location: str) -> Remote:
    """The remote at a location. Raises ValueError for an unusable address, or if a package is missing."""
    return PipeRemote(location) if location.startswith(PIPE) else FsspecRemote(location)


class FsspecRemote:
    """A folder of an HTTP server or an object store."""

    def __init__(self, location: str) -> None:
        self.shown = without_secrets(location).rstrip("/")
        self._parts = urlsplit(location)
        if not self._parts.netloc:
            raise ValueError(f"{self.shown} names no host or bucket")
        self._is_http = self._parts.scheme in ("http", "https")
        self._fs: Any = _file_system(self._parts.scheme)

    def chunks(self, name: str) -> Generator[bytes, None, None]:
        path = f"{self._parts.path.rstrip('/')}/{name}"
        url = urlunsplit(self._parts._replace(path=path, fragment=""))
        # size and block size make fsspec's HTTP file one plain GET, with no HEAD before it and no ranges
        options = {"size": 1, "block_size": 0} if self._is_http else {"cache_type": "none"}
        with self._fs.open(url, "rb", **options) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def close(self) -> None:
        self._fs = None  # its finalizer closes the connections; no other part of the process shares the instance


def _file_system(scheme: str) -> Any:
    try:
        import fsspec  # type: ignore[import-untyped]  # it has no types

        options: dict[str, Any] = {"use_listings_cache": False}
        if PACKAGES[scheme] == "aiohttp":
            import aiohttp

            limit = aiohttp.ClientTimeout(total=None, connect=STALL_S, sock_connect=STALL_S, sock_read=STALL_S)
            # trust_env: the proxy of $HTTPS_PROXY is the only way out of many compute nodes
            options = {"client_kwargs": {"timeout": limit, "trust_env": True}}
        elif scheme == "s3":
            timeouts = {"connect_timeout": STALL_S, "read_timeout": STALL_S, "retries": {"total_max_attempts": 1}}
            options |= {"config_kwargs": timeouts}
        else:
            options |= {"requests_timeout": STALL_S}
        system = fsspec.filesystem(scheme, asynchronous=False, skip_instance_cache=True, **options)
        if scheme == "s3":
            system.retries = 1  # petseg.data.remote.staging counts the tries, for all protocols
    except ImportError:
        raise ValueError(f"{scheme}:// needs {PACKAGES[scheme]}: pip install 'petseg[remote]'") from None
    return system


class PipeRemote:
    """A command that writes a file to its stdout; `{}` stands for the file's name. No shell interprets it."""

    def __init__(self, location: str) -> None:
        try:
            self._args = shlex.split(location.removeprefix(PIPE))
        except ValueError as error:
            raise ValueError(f"the command of {PIPE} cannot be read: {error}") from None
        named = [arg for arg in self._args if "{}" in arg]
        if not named:
            raise ValueError(
                f"{PIPE} needs {{}} where the file's name goes, as in `{PIPE}aws s3 cp s3://bucket/set/{{}} -`"
            )
        self.shown = without_secrets(f"{PIPE}{self._args[0]} ... {' '.join(named)}")  # other arguments can be tokens

    def chunks(self, name: str) -> Generator[bytes, None, None]:
        args = [arg.replace("{}", name) for arg in self._args]
        with tempfile.TemporaryFile() as stderr:
            # in its own session, so that whatever the command starts can be killed with it
            process = subprocess.Popen(
                args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
            )
            assert process.stdout is not None
            try:
                yield from _bytes_of(process.stdout)
                code = process.wait(timeout=STALL_S)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"no end within {STALL_S:g} s of its last byte") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                process.stdout.close()
            if code:
                raise OSError(f"exit code {code}{_last_line(stderr)}")

    def close(self) -> None:
        pass


def _bytes_of(stdout: IO[bytes]) -> Generator[bytes, None, None]:
    while True:
        if not select.select([stdout], [], [], STALL_S)[0]:
            raise TimeoutError(f"no byte for {STALL_S:g} s")
        chunk = os.read(stdout.fileno(), CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


def _last_line(file: IO[bytes]) -> str:
    file.seek(max(file.seek(0, os.SEEK_END) - 1000, 0))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""
