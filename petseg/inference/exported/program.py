"""The program that is exported: a model as it is called by other programs, in float32.

logits   image (B, 3, H, W) float32, normalised -> logits (B, K, H, W) float32
pixels   pixels (B, H, W, 3) uint8 RGB -> probabilities (B, K, H, W) float32 and classes (B, H, W) uint8
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import nn

from petseg.config.sizes import SIZE_MULTIPLE_PX, Size
from petseg.data.inputs import normalise, to_image
from shards.files import build

FORMAT_VERSION = 1
MAX_BATCH = 4096
SIDES = (2, 256)  # of dynamic sizes, in multiples of 32 px: with one of them, other padding would have to be traced

Interface = Literal["logits", "pixels"]
INPUTS: dict[Interface, str] = {"logits": "image", "pixels": "pixels"}
OUTPUTS: dict[Interface, tuple[str, ...]] = {"logits": ("logits",), "pixels": ("probabilities", "classes")}


@dataclass(frozen=True)
class Form:
    """How an exported program is called, and what it computes with."""

    interface: Interface = "logits"
    dynamic_size: bool = False  # height and width may be any multiples of 32 from 64 on
    precision: Literal["float32", "int8"] = "float32"

    @property
    def input(self) -> str:
        return INPUTS[self.interface]

    @property
    def outputs(self) -> tuple[str, ...]:
        return OUTPUTS[self.interface]


def form_to_json(form: Form) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, **asdict(form)}


def form_from_json(content: Any) -> Form:
    """Raises ValueError that says what is wrong with it."""
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"this petseg reads exports of format version {FORMAT_VERSION}")
    try:
        return build(Form, {one.name: content[one.name] for one in fields(Form)})
    except (KeyError, TypeError) as error:
        raise ValueError(f"how it is called: {error!r:.100}") from None


class Program(nn.Module):
    """A copy of a model with the interface of a form, in float32 and contiguous memory."""

    def __init__(self, model: nn.Module, form: Form) -> None:
        super().__init__()
        own = copy.deepcopy(model).cpu().float()
        self.model = own.to(memory_format=torch.contiguous_format).eval()
        self.interface = form.interface

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if self.interface == "logits":
            logits: torch.Tensor = self.model(x)
            return logits
        logits = self.model(normalise(to_image(x, x.device), channels_last=False))
        return logits.softmax(dim=1), logits.argmax(dim=1).to(torch.uint8)


def example_of(form: Form, size: Size) -> torch.Tensor:
    """An input to trace with: two pictures, because a batch of one is taken for a constant."""
    if form.dynamic_size and min(size) < SIDES[0] * SIZE_MULTIPLE_PX:
        raise ValueError(f"--dynamic-size needs a model of {SIDES[0] * SIZE_MULTIPLE_PX} px or more, not {min(size)}")
    if form.interface == "logits":
        return torch.zeros(2, 3, *size)
    return torch.zeros(2, *size, 3, dtype=torch.uint8)


def dynamic_shapes(form: Form) -> tuple[dict[int, Any]]:
    """What of the input's shape may change, for torch.export."""
    dims: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}
    if form.dynamic_size:
        first = 2 if form.interface == "logits" else 1
        for axis, name in ((first, "rows"), (first + 1, "columns")):
            dims[axis] = SIZE_MULTIPLE_PX * torch.export.Dim(name, min=SIDES[0], max=SIDES[1])
    return (dims,)
