"""Train, measure and use segmentation models.

import petseg

model = petseg.load("winner.safetensors")
result = model.predict("cat.jpg")
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from petseg.inference.predictor import Predictor

if sys.argv[:1] == ["-m"]:  # Python looks for the module that it is to run; its package may import torch
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

__version__ = "0.1.0"


def load(*weights: str | Path, device: str = "auto", precision: str = "as_trained") -> Predictor:
    """The model of a weights file (`python -m petseg.best`), ready to predict; of several files, their ensemble.

    device: auto = a GPU if there is one, or a name of torch such as cpu or cuda:1
    precision: as_trained, no (float32), bf16 or fp16
    Raises ValueError in one line for files that cannot be used.
    """
    from petseg.inference.predictor import load_predictor  # torch takes seconds

    return load_predictor([Path(one) for one in weights], device, precision)
