"""One of two ranks of a run, started by torchrun, as they train on GPUs: graphs without DDP's exchange.

Arguments: shard set, run folder, "graphs" or "ddp". Rank 1 can capture nothing, as if its memory did not suffice.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run import graphs
from petseg.run.graphs import PassGraphs
from petseg.training.loop import Terms, train
from tests.petseg.run.test_graphs import Refusal, Repeater


def build_graphs(config: RunConfig, model: nn.Module, device: torch.device, world_size: int) -> PassGraphs:
    capture = Refusal() if os.environ["RANK"] == "1" else Repeater(model)
    return PassGraphs(model, capture, accumulates=config.train.accumulation_steps > 1)


def main() -> None:
    shards, folder, way = sys.argv[1:]
    if way == "graphs":
        graphs.why_no_graphs = lambda *_: None
        import petseg.run.run

        petseg.run.run.build_pass_graphs = build_graphs
    values = {
        "data.shards": shards, "data.image_size_px": 64, "data.threads": 1, "data.cache": "none", "model.width": 4,
        "train.batch_size": 7, "train.epochs": 2, "train.test": False, "tracking.overlays": 0, "optim.grad_clip": 1.0,
    }  # fmt: skip
    train(with_values(RunConfig(), values), Path(folder), Terms(world_size=2))


if __name__ == "__main__":
    main()
