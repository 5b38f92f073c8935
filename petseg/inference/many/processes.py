"""The processes of one prediction: the first one lists the pictures, each takes its share, and they meet at the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

Value = TypeVar("Value")

PATIENCE = timedelta(days=7)  # until the slowest process is done


@dataclass(frozen=True)
class Processes:
    """This process among those that a launcher started; alone without one."""

    rank: int
    world_size: int
    local_rank: int

    def share(self, values: list[Value]) -> list[Value]:
        return values[self.rank :: self.world_size]

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` returns in the first process, in all of them; raises its ValueError and OSError in all."""
        if self.world_size == 1:
            return make()
        import torch.distributed as dist

        sent: list[tuple[Value | None, str | None]] = [(None, None)]
        if self.rank == 0:
            try:
                sent = [(make(), None)]
            except (ValueError, OSError) as error:
                sent = [(None, str(error))]
        dist.broadcast_object_list(sent, src=0)
        value, problem = sent[0]
        if problem is not None:
            raise ValueError(problem)
        return value  # type: ignore[return-value]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.barrier()

    def device(self, name: str) -> str:
        """The device of this process: `auto` is a GPU of its own, if there are any."""
        import torch

        if name != "auto" or not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU") == "true":
            return "cpu" if name == "auto" else name
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"


def meet() -> Processes:
    """The processes of this launch, which can talk to each other from here on."""
    rank, local = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=PATIENCE)
    return Processes(rank, world_size, local)


def part(processes: Processes) -> None:
    """End the meeting."""
    if processes.world_size > 1:
        import torch.distributed as dist

        dist.destroy_process_group()
