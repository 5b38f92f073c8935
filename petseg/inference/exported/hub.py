"""A folder for the Hugging Face hub: the weights file, its header as config.json, and a model card.

What a header says may come from a stranger, or from a class table: it is quoted for YAML, and escaped for Markdown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from petseg.inference.header import Header, to_json
from shards.files import write_whole

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
TEMPLATE = Path(__file__).with_name("card.md.j2")
LICENCES = {"CC BY-SA 4.0": "cc-by-sa-4.0", "CC BY 4.0": "cc-by-4.0", "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0"}
SIZE_RULES = {
    "squash": "Pictures are resized to the network's size, whatever their shape, and masks back again.",
    "letterbox": "Pictures are resized without a change of shape, and the rest is filled with the mean colour.",
    "crop": "The network was trained on crops at full resolution; pictures are covered by overlapping windows.",
}
MARKUP = re.compile(r"([\\`*_{}\[\]<>()#|~!&@]|:(?=//)|(?<=www)\.)")


@dataclass(frozen=True)
class Row:
    """A mean Dice, and how it was measured."""

    of: str
    split: str
    dice: float
    interval: str
    protocol: str


def write_hub_folder(weights: Path, header: Header, out: Path) -> None:
    """Write the folder. Raises ValueError if it holds anything already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: it exists already; choose another name")
    out.mkdir(exist_ok=True)
    write_whole(out / CONFIG, json.dumps(to_json(header), indent=2) + "\n")
    write_whole(out / CARD, model_card(header))
    write_whole(out / WEIGHTS, weights.read_bytes())


def model_card(header: Header) -> str:
    """README.md: front matter for the hub, then what the model is, how good it is by which protocol, and its limits."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)  # noqa: S701 - Markdown: the filters escape
    environment.filters |= {"escaped": escaped, "plain": plain}
    model = header.models[0]
    network = f"{model.arch} on {model.encoder}" if model.encoder else model.arch
    number = len(header.runs)
    several = {"average": f", with the mean weights of {number} runs", "ensemble": f", an ensemble of {number} runs"}
    return environment.from_string(TEMPLATE.read_text()).render(
        header=header,
        front_matter=front_matter(header),
        title=f"{network}: {', '.join(header.names[one] for one in header.counted)}",
        network=network,
        several=several.get(header.combined, ""),
        size_rule=SIZE_RULES[header.fit],
        rows=list(numbers(header)),
    )


def front_matter(header: Header) -> str:
    """What the hub reads. The licence is that of the pictures, where all runs name one that the hub knows."""
    found = [next((LICENCES[name] for name in LICENCES if name in run.attribution), "") for run in header.runs]
    facts: dict[str, Any] = {
        "library_name": "petseg",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", plain(header.models[0].arch)],
        "metrics": ["dice"],
    }
    if len(set(found)) == 1 and found[0]:
        facts["license"] = found[0]
    return yaml.safe_dump(facts, sort_keys=False)


def numbers(header: Header) -> Iterator[Row]:
    """The measurements of this file, of petseg.evaluate on its runs, and of runs that nobody evaluated."""
    if header.measured:
        yield from _evaluated("this file", header.measured)
    for run in header.runs:
        name = f"run {run.trial_id}"
        for content in run.evaluations.values():
            if isinstance(content, dict):
                yield from _evaluated(name, content)
        for split in () if run.evaluations else ("test", "val"):
            if (dice := run.metrics.get(f"{split}/dice")) is not None:
                yield Row(name, split, dice, "", "at the end of the training")


def _evaluated(name: str, content: Mapping[str, Any]) -> Iterator[Row]:
    """The row of what a weights file keeps of an evaluation; nothing of what does not look like one."""
    metrics, ends = content.get("metrics"), content.get("dice_interval_95")
    if not isinstance(metrics, dict):
        return
    span = ""
    if isinstance(ends, list) and len(ends) == 2 and all(isinstance(one, float) for one in ends):
        span = "{:.4f} to {:.4f}".format(*ends)
    for split in ("train", "val", "test"):
        if isinstance(dice := metrics.get(f"{split}/dice"), float):
            yield Row(name, split, dice, span, str(content.get("protocol", "")))


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: one line, without markup, links or HTML."""
    return MARKUP.sub(r"\\\1", " ".join("".join(c if c.isprintable() else " " for c in text).split()))


def plain(text: str) -> str:
    """A name or a hash, for code and tags: all else is left out."""
    return re.sub(r"[^A-Za-z0-9._-]", "", text)
