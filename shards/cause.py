"""Why work ends: the one list of causes, and the errors that name one where it happens.

What an error says is for people. Whoever decides what to do about it (`jobs/status.py`, `jobs/retry.py`) reads the
cause that it carries, and looks into texts only where another program wrote them.
"""

from __future__ import annotations

import enum
import errno


class Cause(enum.StrEnum):
    """Why a trial ended; the values stand in state.json, in `status --json`, and after `retry --cause`."""

    GPU_MEMORY = "gpu_memory"
    HOST_MEMORY = "host_memory"
    NODE_FAILURE = "node_failure"
    PREEMPTED = "preempted"
    TIMEOUT = "timeout"
    NAN = "nan"
    DATA = "data"
    DISK_FULL = "disk_full"
    LAUNCH = "launch"
    UNSEEN_FOLDER = "unseen_folder"
    UNPLACEABLE = "unplaceable"
    CODE = "code"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    KILLED = "killed"
    NEVER_BEGAN = "never_began"
    UNKNOWN = "unknown"  # named by an error itself: another process was at fault, whose log may say why


BY_ERRNO = {
    errno.ENOSPC: Cause.DISK_FULL,
    errno.EDQUOT: Cause.DISK_FULL,
    errno.EIO: Cause.NODE_FAILURE,
    errno.ESTALE: Cause.NODE_FAILURE,
}


class ShardSetError(ValueError):
    """A shard set that is missing or damaged, or cannot be fetched: the user has to mend it first."""

    cause = Cause.DATA


def cause_of(error: BaseException) -> Cause | None:
    """The cause that an error of ours names, or that the errno of an OSError tells; None where neither does."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Cause):
        return cause
    return BY_ERRNO.get(error.errno or 0) if isinstance(error, OSError) else None
