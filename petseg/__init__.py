"""Train and measure segmentation models on a petseg shard set."""

import runpy
import sys
from pathlib import Path

if sys.argv[:1] == ["-m"]:  # Python looks for the module that it is to run; its package may import torch
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

__version__ = "0.1.0"
