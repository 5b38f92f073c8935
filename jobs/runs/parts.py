"""The parts of a prediction that jobs carry out, in its folder of outputs.

OUT/jobs/pictures.jsonl              all pictures that the last command asked for, in their order
         parts/ID/pictures.jsonl     those of one part, which one job predicts
         parts/ID/state.json         written by its job
         submissions.jsonl, logs/, code/HASH    as in a sweep's folder

A part whose job is gone is dropped, and what it left undone goes into new parts.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from jobs.runs.trial import Sweep, Trial
from petseg.inference.many.inputs import Input
from shards.files import build, decode_json, open_regular, require_own_folder, write_whole

JOBS_NAME, PARTS_NAME, PICTURES_NAME = "jobs", "parts", "pictures.jsonl"
PART_ID = re.compile(r"[0-9a-f]{8}-\d{4}")


def write_pictures(items: Sequence[Input], path: Path) -> None:
    """Write a list of pictures, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(asdict(item)) + "\n" for item in items))


def read_pictures(path: Path) -> list[Input]:
    """Raises FileNotFoundError, and ValueError or TypeError for damage."""
    with open_regular(path, follow=False) as file:
        return [build(Input, decode_json(line)) for line in file]


def load_parts(out: Path) -> Sweep:
    """The parts that were planned and not dropped, in the shape of a sweep, whose trials they are to the launcher."""
    folder = out / JOBS_NAME
    require_own_folder(folder)
    require_own_folder(folder / PARTS_NAME)
    found = sorted((folder / PARTS_NAME).glob("*")) if folder.exists() else []
    parts = [Trial(path.name, {}, path) for path in found if PART_ID.fullmatch(path.name)]
    name = re.sub(r"[^\w.-]", "_", f"predict-{out.absolute().name}", flags=re.ASCII)
    return Sweep(folder, name, {}, "", "", tuple(parts))


def plan_parts(out: Path, items: Sequence[Input], count: int) -> list[tuple[Trial, Sequence[Input]]]:
    """At most `count` parts of nearly the same size; neighbours in the list, as in a shard, stay together."""
    count, own = min(count, len(items)), uuid.uuid4().hex[:8]
    bounds = [len(items) * number // count for number in range(count + 1)] if count else [0]
    parts = []
    for number, (first, end) in enumerate(pairwise(bounds), start=1):
        identifier = f"{own}-{number:04}"
        axes = {"pictures": f"{end - first} pictures"}
        parts.append((Trial(identifier, axes, out / JOBS_NAME / PARTS_NAME / identifier), items[first:end]))
    return parts


def drop_part(part: Trial) -> None:
    """Take its pictures from a part: a job of it that still came would find nothing to do.

    Raises NotRegular where the part's folder is a link, whose other end is not ours to empty.
    """
    require_own_folder(part.folder)
    (part.folder / PICTURES_NAME).unlink(missing_ok=True)
    shutil.rmtree(part.folder, ignore_errors=True)
