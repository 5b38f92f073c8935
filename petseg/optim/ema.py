"""The average of a model's weights over the training, which is measured and kept.

With a constant decay it is an exponential moving average (Polyak averaging, as in Mean Teacher); with n / (n + 1) after
n weights it is their mean (stochastic weight averaging, Izmailov et al. 2018).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


class Ema:
    """The average of a (bare) model's parameters and of its BatchNorm statistics, on the model's device.

    The statistics are averaged like the weights, not copied: those of the newest weights do not belong to an average of
    older weights. Since both averages are linear, the mean of the ranks' averages is the average of the ranks' means,
    whenever they are taken. Counters (int) stay the model's.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [*model.named_parameters(), *model.named_buffers()]
        # the model's tensor objects, not their memory, which a resume may replace
        self._model: dict[str, torch.Tensor] = {name: tensor for name, tensor in named if tensor.is_floating_point()}
        self._buffer_names = [name for name, b in model.named_buffers() if b.is_floating_point()]
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._model.items()}

    def buffers(self) -> list[torch.Tensor]:
        """The averages of BatchNorm's statistics, which differ between ranks like the statistics."""
        return [self.tensors[name] for name in self._buffer_names]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Average in the model's weights: the averages become decay * average + (1 - decay) * weight."""
        torch._foreach_lerp_(list(self.tensors.values()), list(self._model.values()), 1 - decay)

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the averages from `state_dict` of a checkpoint; a memory format stays."""
        for name, average in self.tensors.items():
            if name in tensors:  # non-persistent buffers are in no state_dict
                average.copy_(tensors[name])

    def state_dict(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The model's state_dict with the averages in place of the averaged tensors."""
        return {name: self.tensors.get(name, tensor) for name, tensor in model.state_dict().items()}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which the model has the averages; it must not be trained in it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, average in self.tensors.items():
            kept = average.clone()
            average.copy_(self._model[name])
            self._model[name].copy_(kept)


def warmed_up(decay: float, step: int) -> float:
    """The decay after optimizer step `step` of the run (from 0): min(decay, (1 + step) / (10 + step)).

    The random first weights are soon forgotten so.
    """
    return min(decay, (1 + step) / (10 + step))
