"""The report of an evaluation: tables on the terminal, and evaluate-SPLIT.json in the run's folder."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import numpy as np
from rich.table import Table

from petseg.evaluation.protocol import Measured, Protocol
from petseg.metrics.pixels import Scores
from petseg.run.parts import Parts
from petseg.run_folder.checkout import running_code
from petseg.run_folder.layout import evaluation_name
from petseg.targets.groups import GROUPINGS, groups_of_samples
from shards.files import write_whole
from shards.terminal import Terminal

NUM_WORST = 20  # pictures
NUM_LOWEST = 5  # groups on the terminal; the file has all

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
    tables = [scores_table(parts, done, content), classes_table(content), groups_table(content), worst_table(content)]
    for table in filter(None, tables):
        console.print(table)
        console.print()
    console.print(calibration_line(done, content["metrics"]), soft_wrap=True, highlight=False)
    if done.no_native:
        console.print(f"no numbers at native resolution: {done.no_native}", soft_wrap=True, highlight=False)
    return content


def as_json(parts: Parts, done: Evaluated) -> dict[str, Any]:
    """The content of evaluate-SPLIT.json; pictures are scored by the target's own rule at the network's size."""
    data, scores = parts.splits[done.split], done.measured.own
    keys = [data.key(i) for i in range(len(data))]
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
        "metrics": done.measured.metrics(done.split, temperature),
        **groups_of(parts, keys, done),
        **classes_of(done.measured),
        "worst": worst(keys, scores),
        "reliability": {
            "as_is": calibration.reliability().rows(),
            "scaled": [] if temperature is None else calibration.scaled(temperature).rows(),
        },
        "dice": dict(zip(keys, scores.dice.tolist(), strict=True)),
    }


def groups_of(parts: Parts, keys: Sequence[str], done: Evaluated) -> dict[str, dict[str, Group]]:
    """The means of the groups that the pictures belong to, by what is grouped."""
    tars, scores = parts.splits[done.split].tars, done.measured.own
    facts = [tars.facts(position) for position in range(len(keys))]
    grouped = groups_of_samples(keys, facts, has_table=parts.manifest.classes is not None)
    return {name: groups(names, scores) for name, names in grouped.items()}


def classes_of(measured: Measured) -> dict[str, Any]:
    """The numbers of each class and the confusion of all of them; nothing with two classes."""
    if measured.confusion is None:
        return {}
    target, scores, confusion = measured.target, measured.own, measured.confusion
    counted = {target.names[value]: number for number, value in enumerate(target.counted)}
    shares = confusion.sum(axis=1) / max(1, confusion.sum())
    rows = {}
    for value, name in enumerate(target.names):
        row: dict[str, Any] = {"share_of_pixels": float(shares[value])}
        if name in counted:
            row["pictures"] = int(scores.present[:, counted[name]].sum())
            row |= {metric: None if isnan(mean) else mean for metric, mean in scores.of_class(counted[name]).items()}
        rows[name] = row
    return {"classes": rows, "confusion": {"classes": list(target.names), "pixels": confusion.tolist()}}


def protocol_in_words(parts: Parts, done: Evaluated) -> str:
    config = parts.config.data
    tta = "" if done.protocol.tta == "none" else f", TTA {done.protocol.tta}"
    kept = ", largest part of each mask" if done.protocol.keep_largest else ""
    rule = f"{'='.join(parts.target.rule.split('_'))}, " if len(parts.target.rules) > 1 else ""
    if not parts.target.is_binary:
        rule = f"mean of {len(parts.target.counted)} classes, {rule}"
    return f"{rule}{config.image_size_px} px, {len(parts.splits[done.split])} pictures{tta}{kept}"


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
    dice, boundary, hd95 = scores.dice, scores.picture_boundary_iou, scores.picture_hd95_px
    return [
        {"key": keys[i], "dice": float(dice[i]), "boundary_iou": float(boundary[i]), "hd95_px": float(hd95[i])}
        for i in np.argsort(dice, kind="stable")[:NUM_WORST]
    ]


def scores_table(parts: Parts, done: Evaluated, content: Mapping[str, Any]) -> Table:
    title = f"{done.split}: {content['protocol']}"
    by_rule = len(parts.target.rules) > 1
    columns = (
        "size",
        *((parts.target.words.disputed,) if by_rule else ()),
        "Dice",
        "Dice, set",
        "IoU",
        "IoU, set",
        "boundary IoU",
        "HD95 px",
    )
    table = _table(columns, title, num_left=1 + by_rule)
    for size, scores in (
        (f"{parts.config.data.image_size_px} px", done.measured.network),
        ("native", done.measured.native),
    ):
        for rule, one in scores.items():
            means = one.means()
            shares = (means[name] for name in ("dice", "dice_dataset", "iou", "iou_dataset", "boundary_iou"))
            own = "bold" if by_rule and rule == parts.target.rule else ""
            named = (rule.rpartition("_")[2],) if by_rule else ()
            table.add_row(size, *named, *map(_share, shares), f"{means['hd95_px']:.2f}", style=own)
    floor = done.measured.per_image.one_class_dice()
    called = parts.target.names[1] if parts.target.is_binary else "the same class, the best for that"
    table.caption, table.caption_justify = f"Dice of calling every pixel {called}: {floor:.4f}", "left"
    return table


def classes_table(content: Mapping[str, Any]) -> Table | None:
    """A row per class; None with two classes."""
    if "classes" not in content:
        return None
    columns = ("class", "pictures", "pixels", "Dice", "Dice, set", "IoU, set", "HD95 px")
    table = _table(columns, "classes: means over the pictures with the class in truth or prediction")
    for name, row in content["classes"].items():
        share = f"{row['share_of_pixels']:.2%}"
        if "dice" not in row:
            table.add_row(name, "", share, "in no mean", "", "", "")
            continue
        values = (row[metric] for metric in ("dice", "dice_dataset", "iou_dataset"))
        hd95 = "" if row["hd95_px"] is None else f"{row['hd95_px']:.2f}"
        table.add_row(name, str(row["pictures"]), share, *("" if v is None else _share(v) for v in values), hd95)
    return table


def groups_table(content: Mapping[str, Any]) -> Table | None:
    """The groups of lowest Dice, behind all of a coarser grouping where there is one; None without groups."""
    by = [name for name in GROUPINGS if content.get(name)]
    if not by:
        return None
    first = content[by[0]] if len(by) > 1 else {}
    lowest = sorted(content[by[-1]].items(), key=lambda item: item[1]["dice"])[:NUM_LOWEST]
    title = f"{', and '.join(by)} of lowest Dice"
    table = _table(("", "pictures", "Dice", "IoU", "boundary IoU", "HD95 px"), title)
    for number, (name, group) in enumerate([*first.items(), *lowest], start=1):
        shares = (_share(group[metric]) for metric in ("dice", "iou", "boundary_iou"))
        table.add_row(
            name, str(group["pictures"]), *shares, f"{group['hd95_px']:.2f}", end_section=number == len(first)
        )
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


def _table(columns: Sequence[str], title: str, num_left: int = 1) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < num_left else "right", no_wrap=number == 0)
    return table


def _share(value: float) -> str:
    return f"{value:.4f}"
