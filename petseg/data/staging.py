"""Fetch the files of a remote shard set: again where a failure may pass, proven by sha256, whole or not at all."""

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

from petseg.data.places import Place
from shards.cause import Cause, ShardSetError
from shards.command import Failure, without_secrets

TRIES, WRONG_TRIES = 5, 2  # of a file; and of one that arrives with wrong bytes, which may have happened on the way
BACKOFF_S, MAX_BACKOFF_S = 0.2, 5.0
# classes of the protocols' packages (aiohttp, botocore, google.auth), which are not imported to name them
_PASSING = {"ClientConnectionError", "ClientPayloadError", "HTTPClientError", "ConnectionError", "TransportError"}

logger = logging.getLogger(__name__)


class _Passing(Exception):
    """A failure that another try may not meet."""


class _Wrong(Exception):
    """All arrived, and it is not what the manifest says."""


class NotFetched(OSError):
    """A file of a remote set that no try could fetch."""

    cause = Cause.DATA


class Closed(Exception):
    """The store was closed while it fetched."""


@dataclass(frozen=True)
class Expected:
    """What a file must be; None = not known before."""

    max_bytes: int
    num_bytes: int | None = None
    sha256: str | None = None


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
                    f"{name} at {place.shown} differs from the manifest: {problem}; check the packed set with "
                    f"`python -m shards.verify FOLDER` and upload it again",
                    Cause.DATA,
                ) from None
    raise NotFetched(
        f"{name} at {place.shown} was not fetched, {TRIES} tries failed: {problem}; check the network, then run again"
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
        raise ShardSetError(
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
