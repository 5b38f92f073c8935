"""Matches the tensors of a weights file with those of an encoder, whichever package wrote the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

NEARLY_ALL = 0.95  # share of the encoder's tensors that a file must have; with less, it is another encoder's
EXAMPLES = 3
_COUNTER = "num_batches_tracked"  # of BatchNorm: unused


@dataclass(frozen=True)
class Match:
    """The tensors of a file that belong to those of an encoder."""

    pairs: dict[str, str]  # name in the encoder -> name in the file
    missing: tuple[str, ...]  # of the encoder: not in the file, or of another shape

    @property
    def wanted(self) -> int:
        return len(self.pairs) + len(self.missing)

    def check(self, what: str, given: Mapping[str, torch.Tensor]) -> None:
        """Raises ValueError with examples unless nearly all tensors were matched."""
        if len(self.pairs) >= NEARLY_ALL * self.wanted:
            return
        raise ValueError(
            f"{what}: only {len(self.pairs)} of the encoder's {self.wanted} tensors are there in the same shape. "
            f"Missing: {some(self.missing)}; the file has: {some(tuple(given))}. Is it another encoder's?"
        )


def match(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> Match:
    """Pair tensors by name and shape.

    Differences between packages are ignored: a prefix (`model.`, `encoder.`, that of a whole petseg checkpoint), timm's
    `stages_0` for `stages.0` in feature extraction, and the names of EfficientNet-PyTorch.
    """
    ours = {_plain(name): name for name in wanted if not name.endswith(_COUNTER)}
    while len(heads := {name.partition(".")[0] for name in ours}) == 1 and all("." in name for name in ours):
        ours = {name.removeprefix(f"{next(iter(heads))}."): full for name, full in ours.items()}
    theirs = {_plain(name): name for name in given}
    if "conv.stem.weight" in theirs and "blocks.0.0.bn1.weight" in ours:
        theirs = _timm_names(theirs, ours)
    prefixes = {name.removesuffix(a) for a in list(ours)[:EXAMPLES] for name in theirs if f".{name}".endswith(f".{a}")}

    def under(prefix: str) -> dict[str, str]:
        return {
            full: theirs[prefix + name]
            for name, full in ours.items()
            if prefix + name in theirs and given[theirs[prefix + name]].shape == wanted[full].shape
        }

    pairs = max((under(prefix) for prefix in sorted(prefixes)), key=len, default={})
    return Match(pairs, tuple(full for full in ours.values() if full not in pairs))


def _plain(name: str) -> str:
    return name.replace("_", ".").lstrip(".").replace("..", ".")


def _timm_names(theirs: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """EfficientNet-PyTorch's plain names as timm's names.

    timm counts blocks within their stage, and names the convolutions and BatchNorms of a block by their order in it.
    """
    if "blocks.0.0.bn1.weight" in theirs:  # timm's own names
        return dict(theirs)
    blocks = list(dict.fromkeys(".".join(n.split(".")[:3]) for n in ours if n.startswith("blocks.")))
    inner = {"se.reduce": "se.conv.reduce", "se.expand": "se.conv.expand"}
    renamed_tensors = {}
    for name, full in theirs.items():
        top, number, part = name.partition(".")[0], *[*name.split(".", 2), "", ""][1:3]
        if top != "blocks":
            norms = ("bn0.", "bn1.") if name.startswith("bn0.") else ("bn1.", "bn2.")
            renamed_tensors[name.replace(*norms)] = full
            continue
        expands = f"blocks.{number}.expand.conv.weight" in theirs
        renamed = {
            "expand.conv": "conv.pw",
            "bn0": "bn1",
            "depthwise.conv": "conv.dw",
            "bn1": "bn2" if expands else "bn1",
            "project.conv": "conv.pwl" if expands else "conv.pw",
            "bn2": "bn3" if expands else "bn2",
            **inner,
        }
        layer, _, leaf = part.rpartition(".") if not part.endswith(("mean", "var", "tracked")) else part.partition(".")
        if int(number) < len(blocks):
            renamed_tensors[f"{blocks[int(number)]}.{renamed.get(layer, layer)}.{leaf}"] = full
    return renamed_tensors


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")
