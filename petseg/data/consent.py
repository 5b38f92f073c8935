"""Which shard sets may be fetched, or read by running a command: those that this user has named.

A location such as `https://host/set` or `pipe:COMMAND` causes traffic, or runs a program. The user has named it if it
is on the command line, or in a settings file from which the user starts runs. A location from any other source (a run
folder's config.json, a file that is only inspected) could be a stranger's, and is not used.

Named locations are recorded in the user's state folder, as ssh keeps its known hosts. A file in a run folder cannot
record them, since it comes with the folder, and whoever unpacks a folder owns it. Locations can hold tokens, so their
SHA-256 is stored. Using a known location again only repeats what this user has done before.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from petseg.data.store import is_remote
from shards.command import without_secrets
from shards.files import append, read_bounded

FILE_NAME = "known_shards"
FLAG = "--allow-pipe"

logger = logging.getLogger(__name__)


def remember(locations: Iterable[str]) -> None:
    """Record that the user has named these locations, except folders; a home that cannot be written to is no error."""
    new = [location for location in locations if is_remote(location) and not is_known(location)]
    path = _path()
    try:
        if new:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            append(path, "".join(f"{_digest(location)}\n" for location in new))
            path.chmod(0o600)
    except OSError as error:
        logger.debug("%s cannot be noted as known: %s", FILE_NAME, error)


def is_known(location: str) -> bool:
    """Whether the location is a folder, or this user has named it before."""
    if not is_remote(location):
        return True
    path = _path()
    try:
        status = path.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return False  # others could have added to it
        return _digest(location) in read_bounded(path).decode(errors="replace").split()
    except (OSError, ValueError):
        return False


def require_known(location: str, source: str, remedy: str = "") -> None:
    """Raises ValueError for a location that is neither a folder nor known. source: the file that names it.

    remedy: another way than --allow-pipe, such as a flag that names the location
    """
    if is_known(location):
        return
    verb = "run" if location.startswith("pipe:") else "fetched"
    raise ValueError(
        f"{source} names the shards {without_secrets(location)}, which is not {verb}, for the file could be a "
        f"stranger's: {remedy}add {FLAG} if you trust it"
    )


def _digest(location: str) -> str:
    return hashlib.sha256(location.encode()).hexdigest()


def _path() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "petseg" / FILE_NAME
