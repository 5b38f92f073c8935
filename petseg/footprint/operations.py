"""Counting what a piece of torch code does: bytes alive, and of each operation its FLOPs and the bytes that it touches.

It works on real tensors and on fake ones, which have shapes and no numbers.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Op:
    """One operation on tensors."""

    flops: int  # of convolutions and matrix products, multiplications and additions counted apart
    touched_bytes: int  # read and written once each
    half: bool  # computed in 16 bits


class OpCounter(TorchDispatchMode):
    """While active: bytes of all tensors that operations returned and somebody still holds, and the operations.

    What an operation takes for itself and gives back before it returns (a convolution's workspace) is not seen.
    """

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        """held: tensors that are alive already"""
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.ops: list[Op] = []
        self._known = WeakIdKeyDictionary()
        for tensor in held:
            self._note(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        results = _tensors(out)
        for tensor in results:
            self._note(tensor)
        given = _tensors((args, kwargs))
        inside = {id(tensor.untyped_storage()) for tensor in given}
        is_view = not func._schema.is_mutable and all(id(t.untyped_storage()) in inside for t in results)
        if results and not is_view:
            touched = sum(_unique_bytes(tensors) for tensors in (given, results))
            flops = _flops(func, args, kwargs, out)
            self.ops.append(Op(flops, touched, results[0].dtype in HALF))
        return out

    @property
    def flops(self) -> int:
        return sum(op.flops for op in self.ops)

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        num_bytes = storage.nbytes()
        self._known[storage] = num_bytes
        weakref.finalize(storage, self._forget, num_bytes)
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _forget(self, num_bytes: int) -> None:
        self.live_bytes -= num_bytes


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """The bytes of tensors that share no memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _unique_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """What a kernel reads or writes of them: an expanded tensor is as small as what it repeats."""
    sizes = {id(t): min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors}
    return sum(sizes.values())


def _flops(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    packet = func.overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    # attention on a CPU, which torch's own counter does not know
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return int(sdpa_flop_count(*(t.shape for t in args[:3])))
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return int(sdpa_backward_flop_count(*(t.shape for t in args[:4])))
    return 0


def roofline_s(ops: Iterable[Op], half_flops: float, full_flops: float, bytes_per_s: float, launch_s: float) -> float:
    """Seconds if each operation takes as long as its arithmetic, its memory traffic or its launch: the longest counts.

    half_flops, full_flops: per second in 16 and in 32 bits (Williams et al. 2009)
    """
    rate = {True: half_flops, False: full_flops}
    return math.fsum(max(op.flops / rate[op.half], op.touched_bytes / bytes_per_s, launch_s) for op in ops)
