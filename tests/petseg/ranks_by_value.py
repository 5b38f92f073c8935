"""Two ranks of a run, started by torchrun: what they average and restore is compared by value.

Arguments: shard set, run folder. Each rank writes RANK.json with what it saw into the folder above.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.data.ledger import Count
from petseg.data.store import open_store
from petseg.run.parts import Parts, build_parts
from petseg.run.progress import PartialEpoch
from petseg.run.run import Run, new_run
from petseg.training.resume import resume, save_within

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
    return new_run(build_parts(config, open_store(shards), folder, world_size=WORLD_SIZE, splits=["train"]))


def set_statistics(parts: Parts, value: float) -> None:
    with torch.no_grad():
        for number, buffer in enumerate(parts.float_buffers()):
            buffer.fill_(value + number)


def statistics(parts: Parts) -> list[float]:
    return [buffer.flatten()[0].item() for buffer in parts.float_buffers()]


def main() -> None:
    folder = Path(sys.argv[2])
    run = built(sys.argv[1], folder)
    parts = run.parts
    set_statistics(parts, 10.0 + 20.0 * parts.rank)
    save_within(run, PartialEpoch(1, ((0.0,) * 4, (0.0,) * 4), Count(), 1.0, 0.0))
    parts.sync_buffers()
    averaged = statistics(parts)
    set_statistics(parts, 0.0)
    assert resume(run)
    seen = {"averaged": averaged, "restored": statistics(parts)}
    (folder.parent / f"{parts.rank}.json").write_text(json.dumps(seen))
    parts.close()


if __name__ == "__main__":
    main()
