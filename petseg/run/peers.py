"""The other processes of a run: when one is gone, the errors of the collectives become one that says so."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from shards.cause import Cause
from shards.command import Failure, Interrupted

# Messages of gloo, NCCL and torch's store about a peer that is gone, for which they have no exception class
GONE = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|Socket closed|Connection was likely closed|"
    r"remote process exited|ncclRemoteError|NCCL communicator was aborted|Connection refused|"
    r"[Tt]imed out (waiting|after)|waitRecv timed out|heartbeat timeout"
)


class LostPeer(Interrupted):
    """Another process of the run is gone; this one was sound, and the run can resume from what is saved."""

    cause = Cause.UNKNOWN  # to this process


@contextlib.contextmanager
def lost_peers_raise() -> Iterator[None]:
    """Turn what a collective raises when another process of the run is gone into LostPeer."""
    import torch.distributed as dist

    try:
        yield
    except (Interrupted, Failure):
        raise
    except RuntimeError as error:  # DistBackendError and DistNetworkError too
        words = GONE.search(str(error))
        if words is None or not dist.is_initialized():
            raise
        raise LostPeer(
            f"another process of this run has ended ({words[0]}): its own log, or its node's, says why; run the same "
            "command to go on from what is saved"
        ) from error
