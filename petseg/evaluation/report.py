"""The report of an evaluation: tables on the terminal, and evaluate-SPLIT.json in the run's folder."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from petseg.evaluation.protocol import Measured, Protocol
from petseg.metrics.breeds import kind_of
from petseg.metrics.pixels import Scores
from petseg.run.parts import Parts
from petseg.run_folder.checkout import running_code
from petseg.run_folder.layout import evaluation_name
from shards.files import write_whole
from shards.terminal import Terminal

NUM_WORST = 20  # pictures
NUM_LOWEST = 5  # breeds on the terminal; the file has all

Group = dict[str, float]  # pictures, and means over them


@dataclass(frozen=True)
class Evaluated:
    """The measurements on a split, and how they were made."""

    split: str
    weights: str  # best | last
    checkpoint: str
    protocol: Protocol
    no_native: str  # why there are no numbers at native size, "" if there are
    measured: Measured
    temperature: float | None  # fitted on val, None without a val split


def report(parts: Parts, done: Evaluated) -> dict[str, Any]:
    """Write evaluate-SPLIT.json and print its tables; returns its content."""
    content = as_json(parts, done)
    write_whole(parts.folder / evaluation_name(done.split), json.dumps(content, indent=2) + "\n")
    console = Terminal()
    for table in (scores_table(parts, done, content), groups_table(content), worst_table(content)):
        console.print(table)
        console.print()
    console.print(calibration_line(done, content["metrics"]), soft_wrap=True, highlight=False)
    if done.no_native:
        console.print(f"no numbers at native resolution: {done.no_native}", soft_wrap=True, highlight=False)
    return content


def as_json(parts: Parts, done: Evaluated) -> dict[str, Any]:
    """The content of evaluate-SPLIT.json; pictures are scored by the config's border rule at the network's size."""
    data, scores = parts.splits[done.split], done.measured.network[parts.config.data.border]
    keys = [data.key(i) for i in range(len(data))]
    kinds = [kind_of(key, data.tars.facts(i)) for i, key in enumerate(keys)]
    calibration, temperature = done.measured.calibration, done.temperature
    return {
        "split": done.split,
        "weights": done.weights,
        "protocol": protocol_in_words(parts, done),
        "manifest_hash": parts.manifest.hash,
        "checkpoint": done.checkpoint,
        "checkout": asdict(running_code()),
        "tta": done.protocol.tta,
        "keep_largest": done.protocol.keep_largest,
        "boundary_ratio": done.protocol.boundary_ratio,
        "no_native": done.no_native,
        "temperature_fitted_on": None if temperature is None else "val",
        "metrics": done.measured.metrics(done.split, parts.config.data.border, temperature),
        "species": groups([species for _, species in kinds], scores),
        "breeds": groups([breed for breed, _ in kinds], scores),
        "worst": worst(keys, scores),
        "reliability": {
            "as_is": calibration.reliability().rows(),
            "scaled": [] if temperature is None else calibration.scaled(temperature).rows(),
        },
        "dice": dict(zip(keys, scores.dice.tolist(), strict=True)),
    }


def protocol_in_words(parts: Parts, done: Evaluated) -> str:
    config = parts.config.data
    tta = "" if done.protocol.tta == "none" else f", TTA {done.protocol.tta}"
    kept = ", largest part of each mask" if done.protocol.keep_largest else ""
    return f"border={config.border}, {config.image_size_px} px, {len(parts.splits[done.split])} pictures{tta}{kept}"


def groups(names: Sequence[str], scores: Scores) -> dict[str, Group]:
    """Means over the pictures of each name, in alphabetical order."""
    members: dict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(names):
        members[name].append(position)
    return {
        name: {"pictures": len(members[name])} | scores.of(np.array(members[name])).means() for name in sorted(members)
    }


def worst(keys: Sequence[str], scores: Scores) -> list[dict[str, Any]]:
    """The pictures with the lowest Dice, lowest first."""
    return [
        {
            "key": keys[i],
            "dice": float(scores.dice[i]),
            "boundary_iou": float(scores.boundary_iou[i]),
            "hd95_px": float(scores.hd95_px[i]),
        }
        for i in np.argsort(scores.dice, kind="stable")[:NUM_WORST]
    ]


def scores_table(parts: Parts, done: Evaluated, content: Mapping[str, Any]) -> Table:
    title = f"{done.split}: {content['protocol']}"
    columns = ("size", "border", "Dice", "Dice, set", "IoU", "IoU, set", "boundary IoU", "HD95 px")
    table = _table(columns, title)
    for size, scores in (
        (f"{parts.config.data.image_size_px} px", done.measured.network),
        ("native", done.measured.native),
    ):
        for border, one in scores.items():
            means = one.means()
            shares = (means[name] for name in ("dice", "dice_dataset", "iou", "iou_dataset", "boundary_iou"))
            own = "bold" if border == parts.config.data.border else ""
            table.add_row(size, border, *map(_share, shares), f"{means['hd95_px']:.2f}", style=own)
    all_pet = content["metrics"][f"{done.split}/all_pet_dice"]
    table.caption, table.caption_justify = f"Dice of calling every pixel pet: {all_pet:.4f}", "left"
    return table


def groups_table(content: Mapping[str, Any]) -> Table:
    """Species, and the breeds with the lowest Dice."""
    breeds = sorted(content["breeds"].items(), key=lambda item: item[1]["dice"])
    table = _table(("", "pictures", "Dice", "IoU", "boundary IoU", "HD95 px"), "species, and breeds of lowest Dice")
    for number, (name, group) in enumerate([*content["species"].items(), *breeds[:NUM_LOWEST]], start=1):
        shares = (_share(group[metric]) for metric in ("dice", "iou", "boundary_iou"))
        last_species = number == len(content["species"])
        table.add_row(name, str(group["pictures"]), *shares, f"{group['hd95_px']:.2f}", end_section=last_species)
    return table


def worst_table(content: Mapping[str, Any]) -> Table:
    table = _table(("key", "Dice", "boundary IoU", "HD95 px"), f"the {len(content['worst'])} pictures of lowest Dice")
    for row in content["worst"]:
        table.add_row(row["key"], _share(row["dice"]), _share(row["boundary_iou"]), f"{row['hd95_px']:.2f}")
    return table


def calibration_line(done: Evaluated, metrics: Mapping[str, float]) -> str:
    line = f"expected calibration error {metrics[f'{done.split}/ece']:.4f}"
    if done.temperature is None:
        return f"{line}; no val split to fit a temperature on"
    scaled = f"{metrics[f'{done.split}/ece_scaled']:.4f} with logits divided by {done.temperature:.3f}"
    same = ", fitted and measured on the same pictures" if done.split == "val" else ", fitted on val"
    return f"{line}; {scaled}{same}"


def _table(columns: Sequence[str], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 or column == "border" else "right")
    return table


def _share(value: float) -> str:
    return f"{value:.4f}"
