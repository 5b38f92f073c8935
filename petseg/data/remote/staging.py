"""Fetches the files of a remote shard set: transient failures are retried, and files appear whole, with their sha256
checked, or not at all."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import threading
import uuid
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from petseg.data.remote.remotes import Remote
from shards.cause import Cause, ShardSetError
from shards.command import Failure, without_secrets

TRIES, WRONG_TRIES = 5, 2  # of a file; of one with wrong bytes, which the transfer may have corrupted
BACKOFF_S, MAX_BACKOFF_S = 0.2, 5.0
# classes of the protocols' packages (aiohttp, botocore, google.auth), which are not imported to name them
_TRANSIENT_NAMES = {
    "ClientConnectionError",
    "ClientPayloadError",
    "HTTPClientError",
    "ConnectionError",
    "TransportError",
}

logger = logging.getLogger(__name__)


class _Transient(Exception):
    """A failure that another try may not meet."""


class _WrongContent(Exception):
    """The whole file arrived, and differs from the manifest."""


class NotFetched(OSError):
    """No try could fetch a file of a remote set."""

    cause = Cause.DATA


class Closed(Exception):
    """The store was closed while it fetched."""


@dataclass(frozen=True)
class Expected:
    """The size and hash that a file must have; None = not known."""

    max_bytes: int
    num_bytes: int | None = None
    sha256: str | None = None


def fetch(remote: Remote, name: str, path: Path, expected: Expected, stopped: threading.Event) -> None:
    """Fetch the file `name` of the remote to `path`.

    Raises ValueError for an error that would recur (missing, forbidden), OSError if the file cannot be reached or
    written, Failure that names both hashes if its bytes are not the manifest's, Closed once `stopped` is set.
    """
    problem, num_wrong = "", 0
    for number in range(TRIES):
        if number:
            wait_s = min(BACKOFF_S * 2 ** (number - 1), MAX_BACKOFF_S) * random.uniform(0.75, 1.25)  # noqa: S311
            logger.debug("%s/%s: %s; trying again in %.1f s", remote.shown, name, problem, wait_s)
            stopped.wait(wait_s)
        try:
            return _fetch_once(remote, name, path, expected, stopped)
        except _Transient as error:
            problem = str(error)
        except _WrongContent as error:
            problem, num_wrong = str(error), num_wrong + 1
            if num_wrong == WRONG_TRIES:
                raise Failure(
                    f"{name} at {remote.shown} differs from the manifest: {problem}; check the packed set with "
                    f"`python -m shards.verify FOLDER` and upload it again",
                    Cause.DATA,
                ) from None
    raise NotFetched(
        f"{name} at {remote.shown} was not fetched, {TRIES} tries failed: {problem}; check the network, then run again"
    )


def _fetch_once(remote: Remote, name: str, path: Path, expected: Expected, stopped: threading.Event) -> None:
    aside = path.with_name(f".{name}.{uuid.uuid4().hex[:12]}.part")
    digest, count = hashlib.sha256(), 0
    try:
        with aside.open("wb") as file, closing(_translated(remote, name)) as chunks:
            if expected.num_bytes:  # a full disk fails now, and others see the size
                os.posix_fallocate(file.fileno(), 0, expected.num_bytes)
            for chunk in chunks:
                if stopped.is_set():
                    raise Closed(f"closed while {name} was fetched")
                digest.update(chunk)
                count += len(chunk)
                if count > expected.max_bytes:
                    raise _WrongContent(f"more than {expected.max_bytes} bytes")
                file.write(chunk)
            _compare(expected, count, digest.hexdigest())
            file.flush()
            os.fsync(file.fileno())  # from now on its size proves it, even after a crash of the node
        aside.replace(path)
    except OSError as error:  # this disk's: those of the remote are raised as _Transient or ValueError
        raise OSError(
            error.errno,
            f"{error.strerror} while {name} was staged in {path.parent}; data.cache_dir chooses another folder",
        ) from None
    finally:
        aside.unlink(missing_ok=True)


def _compare(expected: Expected, count: int, sha256: str) -> None:
    if expected.num_bytes is not None and count < expected.num_bytes:
        raise _Transient(f"it ended after {count} of {expected.num_bytes} bytes")
    if expected.sha256 is not None and sha256 != expected.sha256:
        raise _WrongContent(f"its sha256 is {sha256}, the manifest says {expected.sha256}")


def _translated(remote: Remote, name: str) -> Generator[bytes, None, None]:
    """The chunks of a file; errors of its protocol become _Transient, or a ValueError that says what to do."""
    try:
        yield from remote.chunks(name)
    except Exception as error:
        problem = without_secrets(f"{type(error).__name__}: {error}")
        if _is_transient(error):
            raise _Transient(problem) from None
        raise ShardSetError(
            f"cannot fetch {name} at {remote.shown} ({problem}): correct data.shards, upload the set, or see that you "
            "may read it"
        ) from None


def _is_transient(error: Exception) -> bool:
    status = vars(error).get("status", vars(error).get("code"))  # aiohttp's, gcsfs's
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    return isinstance(error, OSError) or any(base.__name__ in _TRANSIENT_NAMES for base in type(error).__mro__)
