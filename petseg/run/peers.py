"""The other processes of a run: what collectives raise when one of them is gone becomes one error that says so."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from shards.cause import Cause
from shards.command import Failure, Interrupted

# What gloo, NCCL and torch's store say of a peer that is gone: it has no exception class of its own
GONE = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|Socket closed|Connection was likely closed|"
    r"remote process exited|ncclRemoteError|NCCL communicator was aborted|Connection refused|"
    r"[Tt]imed out (waiting|after)|waitRecv timed out|heartbeat timeout"
)


class LostPeer(Interrupted):
    """Another process of the run is gone; this one was sound, and what is saved can go on."""

    cause = Cause.UNKNOWN  # to this process


@contextlib.contextmanager
def peers_may_go() -> Iterator[None]:
    """Raises LostPeer in place of what a collective raises where another process of the run has gone."""
    import torch.distributed as dist

    try:
        yield
    except (Interrupted, Failure):
        raise
    except RuntimeError as error:  # DistBackendError and DistNetworkError too
        found = GONE.search(str(error))
        if found is None or not dist.is_initialized():
            raise
        raise LostPeer(
            f"another process of this run has ended ({found[0]}): its own log, or its node's, says why; run the same "
            "command to go on from what is saved"
        ) from error
