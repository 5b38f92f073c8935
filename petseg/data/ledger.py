"""The ledger of an epoch: proof, while training runs, that each sample was consumed exactly once.

Each rank counts the samples it consumed and XORs the 64-bit hashes of their keys, as they were read. At the end of an
epoch, the ranks' counts and XORs together must be the manifest's: a lost, repeated or swapped sample changes them.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from petseg.data.loader import Batch
from petseg.data.tars import Lost
from shards.cause import Cause
from shards.command import Failure
from shards.manifest import Split, key_hash

MAX_NAMED = 8  # lost samples that an error names


@dataclass(frozen=True)
class Count:
    """Numbers of consumed and lost samples, and the XORs of their key hashes; `unnamed`: lost samples without a key."""

    samples: int = 0
    xor: int = 0
    lost: int = 0
    lost_xor: int = 0
    unnamed: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.samples + other.samples,
            self.xor ^ other.xor,
            self.lost + other.lost,
            self.lost_xor ^ other.lost_xor,
            self.unnamed + other.unnamed,
        )

    def coverage(self, expected: Split) -> float:
        """Consumed samples as a share of the split's: 1.0 unless samples were lost within the budget."""
        return self.samples / expected.num_samples

    def check(self, expected: Split, name: str) -> None:
        """Raises Failure unless each sample of the split was consumed once, or is among the lost ones."""
        complete = self.samples + self.lost == expected.num_samples
        same = self.xor ^ self.lost_xor == int(expected.key_xor, 16) or self.unnamed > 0
        if complete and same:
            return
        raise Failure(
            f"the ledger of {name} does not balance: {self.samples} samples were consumed and {self.lost} lost, the "
            f"manifest has {expected.num_samples}; XOR of the keys {self.xor ^ self.lost_xor:016x}, the manifest's "
            f"{expected.key_xor}. Some sample was seen twice or not at all: please report this",
            Cause.DATA,
        )


@dataclass
class Ledger:
    """The count of the samples that one rank consumed, and the samples it could not read."""

    count: Count = Count()
    lost: list[Lost] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        """Enter a batch; fillers do not count."""
        if batch.plan.filler:
            return
        read = batch.hashes[batch.hashes != 0]
        keys = [lost.key for lost in batch.lost if lost.key]
        self.lost += batch.lost
        self.count += Count(
            samples=len(read),
            xor=int(np.bitwise_xor.reduce(read, initial=np.uint64(0))),
            lost=len(batch.lost),
            lost_xor=_xor(key_hash(key) for key in keys),
            unnamed=len(batch.lost) - len(keys),
        )

    def gather(self, accelerator: Accelerator) -> Count:
        """The count of all ranks together; each rank must call it."""
        numbers = np.array([list(asdict(self.count).values())], dtype=np.uint64).view(np.int64)
        table = accelerator.gather(torch.from_numpy(numbers).to(accelerator.device))
        rows = table.cpu().numpy().view(np.uint64).tolist()
        return sum((Count(*row) for row in rows), Count())

    def failure(self, split: str, budget: int) -> Failure:
        """The error for too many lost samples, which names some of all ranks'; each rank must call it."""
        lost = gather_object([(str(lost), lost.cause) for lost in self.lost])
        # a cause other than DATA, such as a node that can read nothing, explains all losses
        cause = next((cause for _, cause in lost if cause is not Cause.DATA), Cause.DATA)
        return Failure(losses_in_words([words for words, _ in lost], split, budget), cause)


def losses_in_words(lost: Sequence[str], split: str, budget: int) -> str:
    """The message about lost samples, given one text for each of them."""
    more = len(lost) - MAX_NAMED
    lines = [*lost[:MAX_NAMED], *([f"and {more} more"] if more > 0 else [])]
    allowed = f"data.max_lost_samples allows {budget}" if split == "train" else "an evaluation must be complete"
    return f"{len(lost)} samples of split {split} are unreadable ({allowed}):\n  " + "\n  ".join(lines)


def _xor(hashes: Iterable[int]) -> int:
    return functools.reduce(operator.xor, hashes, 0)
