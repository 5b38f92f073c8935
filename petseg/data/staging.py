"""Fetch the files of a remote shard set: retried where a failure may pass, proven by their sha256, whole or not at all.

A place is an address for fsspec (`https://host/pets`, `s3://bucket/pets`) or webdataset's `pipe:COMMAND`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import select
import shlex
import signal
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from shards.command import Failure

PIPE = "pipe:"
PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}  # what fsspec needs for each scheme
STALL_S = 30.0  # without a connection, or without a byte
TRIES, WRONG_TRIES = 5, 2  # of a file; and of one that arrives with wrong bytes, which may have happened on the way
BACKOFF_S, MAX_BACKOFF_S = 0.2, 5.0
CHUNK_BYTES = 4 << 20
# classes of the protocols' packages (aiohttp, botocore, google.auth), which are not imported to name them
_PASSING = {"ClientConnectionError", "ClientPayloadError", "HTTPClientError", "ConnectionError", "TransportError"}

logger = logging.getLogger(__name__)


class _Passing(Exception):
    """A failure that another try may not meet."""


class _Wrong(Exception):
    """All arrived, and it is not what the manifest says."""


class Closed(Exception):
    """The store was closed while it fetched."""


@dataclass(frozen=True)
class Expected:
    """What a file must be; None = not known before."""

    max_bytes: int
    num_bytes: int | None = None
    sha256: str | None = None


class Place(Protocol):
    """Where a shard set lies."""

    shown: str  # for messages: without user, password and query, which can be secrets

    def chunks(self, name: str) -> Generator[bytes, None, None]: ...  # of one file
    def close(self) -> None: ...


def open_place(location: str) -> Place:
    """Raises ValueError for an address that cannot be used, or names the package that is missing."""
    return PipePlace(location) if location.startswith(PIPE) else FsspecPlace(location)


class FsspecPlace:
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
        import fsspec  # type: ignore[import-untyped]

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
            system.retries = 1  # tries are counted here, for all protocols alike
    except ImportError:
        raise ValueError(f"{scheme}:// needs {PACKAGES[scheme]}: pip install 'petseg[remote]'") from None
    return system


class PipePlace:
    """A command that writes the file to its stdout; `{}` stands for the file's name. No shell reads it."""

    def __init__(self, location: str) -> None:
        try:
            self._args = shlex.split(location.removeprefix(PIPE))
        except ValueError as error:
            raise ValueError(f"the command of {PIPE} cannot be read: {error}") from None
        named = [arg for arg in self._args if "{}" in arg]
        if not named:
            raise ValueError(
                f"{PIPE} needs {{}} where the file's name goes, as in `{PIPE}aws s3 cp s3://bucket/pets/{{}} -`"
            )
        self.shown = without_secrets(f"{PIPE}{self._args[0]} ... {' '.join(named)}")  # other arguments can be tokens

    def chunks(self, name: str) -> Generator[bytes, None, None]:
        args = [arg.replace("{}", name) for arg in self._args]
        with tempfile.TemporaryFile() as complaint:
            # a session of its own: what the command started ends with it
            process = subprocess.Popen(
                args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaint, start_new_session=True
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
                raise OSError(f"exit code {code}{_last_line(complaint)}")

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


def without_secrets(text: str) -> str:
    """The text with user, password and query cut out of its addresses."""
    text = re.sub(r"(\w://)[^/\s'\"?]*@", r"\1", text)
    return re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\")]*", r"\1", text)


def fetch(place: Place, name: str, path: Path, expected: Expected, stopped: threading.Event) -> None:
    """Make `path` the file `name` of the place.

    Raises ValueError for what another try would meet again (not there, not allowed), OSError if it cannot be reached or
    written, Failure that names both hashes if its bytes are not those of the manifest, Closed once `stopped` is set.
    """
    problem, num_wrong = "", 0
    for number in range(TRIES):
        if number:
            wait_s = min(BACKOFF_S * 2 ** (number - 1), MAX_BACKOFF_S) * random.uniform(0.75, 1.25)  # noqa: S311
            logger.debug("%s/%s: %s; trying again in %.1f s", place.shown, name, problem, wait_s)
            stopped.wait(wait_s)
        try:
            return _fetch_once(place, name, path, expected, stopped)
        except _Passing as error:
            problem = str(error)
        except _Wrong as error:
            problem, num_wrong = str(error), num_wrong + 1
            if num_wrong == WRONG_TRIES:
                raise Failure(
                    f"{name} at {place.shown} is not the file of the manifest: {problem}; check the packed set with "
                    f"`python -m shards.verify FOLDER` and upload it again"
                ) from None
    raise OSError(
        f"{name} at {place.shown} cannot be fetched, {TRIES} tries failed: {problem}; check the network, then run again"
    )


def _fetch_once(place: Place, name: str, path: Path, expected: Expected, stopped: threading.Event) -> None:
    aside = path.with_name(f".{name}.{uuid.uuid4().hex[:12]}.part")
    digest, count = hashlib.sha256(), 0
    try:
        with aside.open("wb") as file, closing(_translated(place, name)) as chunks:
            if expected.num_bytes:
                os.posix_fallocate(file.fileno(), 0, expected.num_bytes)  # a full disk shows now; others see the size
            for chunk in chunks:
                if stopped.is_set():
                    raise Closed(f"closed while {name} was fetched")
                digest.update(chunk)
                count += len(chunk)
                if count > expected.max_bytes:
                    raise _Wrong(f"more than {expected.max_bytes} bytes")
                file.write(chunk)
            _compare(expected, count, digest.hexdigest())
            file.flush()
            os.fsync(file.fileno())  # a right size alone proves it from now on, after a crash of the node too
        aside.replace(path)
    except OSError as error:  # of this disk: the place's own are told as _Passing or ValueError
        raise OSError(
            error.errno,
            f"{error.strerror} while {name} was staged in {path.parent}; data.cache_dir chooses another folder",
        ) from None
    finally:
        aside.unlink(missing_ok=True)


def _compare(expected: Expected, count: int, sha256: str) -> None:
    if expected.num_bytes is not None and count < expected.num_bytes:
        raise _Passing(f"it ended after {count} of {expected.num_bytes} bytes")
    if expected.sha256 is not None and sha256 != expected.sha256:
        raise _Wrong(f"its sha256 is {sha256}, the manifest says {expected.sha256}")


def _translated(place: Place, name: str) -> Generator[bytes, None, None]:
    """The chunks of a file; what its protocol raises becomes _Passing, or a ValueError with the next step."""
    try:
        yield from place.chunks(name)
    except Exception as error:
        told = without_secrets(f"{type(error).__name__}: {error}")
        if _may_pass(error):
            raise _Passing(told) from None
        raise ValueError(
            f"cannot fetch {name} at {place.shown} ({told}): correct data.shards, upload the set, or see that you may "
            f"read it"
        ) from None


def _may_pass(error: Exception) -> bool:
    status = vars(error).get("status", vars(error).get("code"))  # of aiohttp, of gcsfs
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    return isinstance(error, OSError) or any(base.__name__ in _PASSING for base in type(error).__mro__)
