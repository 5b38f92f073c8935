"""Write the weights of an encoder to a file that model.weights takes.

For a machine without network, fetch them on another one, and copy the file:

    python -m petseg.models.weights tu-mobilenetv3_small_050 --out mobilenetv3.safetensors
    python petseg/train.py --model.arch fpn --model.encoder tu-mobilenetv3_small_050 \\
        --model.weights mobilenetv3.safetensors
"""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[2]}/shards/preamble.py")

import tyro

from petseg.config import RunConfig
from petseg.config.sizes import ImageSize
from petseg.config.values import with_values
from shards.command import OK, run_command
from shards.command.flags import parse
from shards.files import write_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """Write the weights of an encoder to a .safetensors file that model.weights takes."""

    encoder: Annotated[str, tyro.conf.Positional]
    """Name of the encoder, as in model.encoder."""
    out: Path
    """The file, .safetensors."""
    source: str = "imagenet"
    """imagenet = the hub of its package, or a file to convert (.pth, .pt, .safetensors)."""
    arch: str = "smp_unet"
    """model.arch; it matters for dpt, which has other encoders."""
    image_size_px: ImageSize = 256
    """data.image_size_px, to which position embeddings are adapted."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    if command.out.suffix != ".safetensors":
        raise ValueError(f"--out {command.out}: its name must end in .safetensors")
    from safetensors.torch import save  # torch takes seconds: imported once the flags are right

    from petseg.models.build import build_model

    values: dict[str, Any] = {"model.arch": command.arch, "model.encoder": command.encoder}
    config = with_values(RunConfig(), values | {"model.weights": command.source}).model
    encoder = build_model(config, image_size_px=command.image_size_px).get_submodule("network.encoder")
    tensors = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    write_whole(command.out, save(tensors, {"encoder": command.encoder, "source": command.source}))
    logger.info("%s: %d tensors", command.out, len(tensors))
    return OK


if __name__ == "__main__":
    sys.exit(run_command(main))
