"""Two ranks of a run, started by torchrun: what they average and restore is compared by value.

Arguments: shard set, run folder. Each rank writes RANK.json with what it saw into the folder above.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from petseg.config import RunConfig
from petseg.config_values import with_values
from petseg.data.ledger import Count
from petseg.data.store import open_store
from petseg.resume import resume, save_within
from petseg.run import EpochSoFar, Run, build_run

WORLD_SIZE = 2


def built(shards: str, folder: Path) -> Run:
    values = {
        "data.shards": shards,
        "data.image_size_px": 64,
        "data.threads": 1,
        "model.width": 4,
        "data.cache": "none",
    }
    config = with_values(RunConfig(), values | {"train.batch_size": 8, "train.ema_decay": 0.9})
    return build_run(config, open_store(shards), folder, world_size=WORLD_SIZE, splits=["train"])


def set_statistics(run: Run, value: float) -> None:
    with torch.no_grad():
        for number, buffer in enumerate(run.float_buffers()):
            buffer.fill_(value + number)


def statistics(run: Run) -> list[float]:
    return [buffer.flatten()[0].item() for buffer in run.float_buffers()]


def main() -> None:
    folder = Path(sys.argv[2])
    run = built(sys.argv[1], folder)
    set_statistics(run, 10.0 + 20.0 * run.rank)
    save_within(run, EpochSoFar(1, ((0.0,) * 4, (0.0,) * 4), Count(), 1.0, 0.0))
    run.sync_buffers()
    averaged = statistics(run)
    set_statistics(run, 0.0)
    assert resume(run)
    seen = {"averaged": averaged, "restored": statistics(run)}
    (folder.parent / f"{run.rank}.json").write_text(json.dumps(seen))
    run.close()


if __name__ == "__main__":
    main()
