"""What a training step is measured against: the lab's models as one writes them down, and a public library's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from petseg.config import ModelConfig, RunConfig
from petseg.config.training import OptimConfig
from petseg.config.values import with_values
from petseg.models.build import build_model
from petseg.models.layers import BilinearUpsample, ReflectConv2d
from petseg.optim import build_optimizer

Step = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Peer:
    """A way to train a model: how its weights and pictures lie in memory, and in which precision it computes."""

    name: str
    model: nn.Module
    channels_last: bool
    bf16: bool
    fused: bool
    compiled: bool = False

    def build_step(self, device: torch.device) -> Step:
        """One step of training on a batch: forward, cross-entropy, backward, Adam."""
        model = self.model.to(device)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if self.fused:
            optimizer = build_optimizer(OptimConfig(), model)
        else:
            optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        forward = torch.compile(model) if self.compiled else model
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def step(image: torch.Tensor, target: torch.Tensor) -> None:
            image = image.contiguous(memory_format=layout)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                logits = forward(image)
            F.cross_entropy(logits.float(), target).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step


def as_lab(model: nn.Module) -> nn.Module:
    """A copy of one of our models made of torch's own padding and upsampling modules, with the same weights."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ReflectConv2d):
                plain = nn.Conv2d(
                    child.in_channels, child.out_channels, 2 * child.margin + 1, child.stride[0],
                    padding=child.margin, padding_mode="reflect", bias=child.bias is not None,
                )  # fmt: skip
                plain.weight, plain.bias = child.weight, child.bias
                setattr(parent, name, plain)
            elif isinstance(child, BilinearUpsample):
                setattr(parent, name, nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))
    return model


def peers_of(arch: str, width: int, compiled: bool) -> list[Peer]:
    """The lab's eager float32 step first, then ours; for resnet34_unet the library's Unet-resnet34 beside them."""
    config = with_values(RunConfig(), {"model.arch": arch, "model.width": width}).model
    model = build_model(config)
    peers = [Peer("lab, eager float32", as_lab(model), channels_last=False, bf16=False, fused=False)]
    if arch == "resnet34_unet":
        library = build_model(ModelConfig(arch="smp_unet", encoder="resnet34"))
        peers.append(Peer("smp Unet-resnet34, float32", library, channels_last=False, bf16=False, fused=False))
        both = copy.deepcopy(library)
        peers.append(Peer("smp Unet-resnet34, bf16 channels_last", both, channels_last=True, bf16=True, fused=False))
    peers.append(Peer("petseg, bf16 channels_last", model, channels_last=True, bf16=True, fused=True))
    if compiled:
        again = build_model(config)
        peers.append(Peer("petseg, compiled", again, channels_last=True, bf16=True, fused=True, compiled=True))
    return peers
