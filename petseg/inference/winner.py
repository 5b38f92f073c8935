"""From run folders to a weights file on disk, measured and described on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from petseg.inference.from_runs import Which, combine, read_run
from petseg.inference.header import Header
from petseg.inference.scores import Measurement, measure_model
from petseg.inference.weights_file import SUFFIX, build_network, load_model, save_weights
from shards.terminal import Terminal


def write_winner(
    folders: Sequence[Path], out: Path, which: Which, average: bool, measurement: Measurement | None
) -> Header:
    """Write the weights file of some runs, and say what is in it.

    Raises ValueError for runs that do not fit together, and for a name without the suffix .safetensors.
    """
    if out.suffix != SUFFIX:
        raise ValueError(f"--out {out}: its name must end in {SUFFIX}")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.absolute().parent}")
    runs = [read_run(folder, which) for folder in folders]
    header, tensors = combine(runs, average)
    if measurement:
        model = build_network(header)
        model.load_state_dict(tensors)
        measured = measure_model(model, runs[0].config, folders[0], measurement)
        header = replace(header, measured=measured)
    save_weights(header, tensors, out)
    load_model(out)  # what cannot be read back is found here
    for line in described(header):
        Terminal().print(line, soft_wrap=True, highlight=False)
    Terminal().print(f"{out}", soft_wrap=True, highlight=False)
    return header


def described(header: Header) -> list[str]:
    """What a weights file holds, in a few lines."""
    model = header.models[0]
    what = "" if header.combined == "single" else f", {header.combined} of {len(header.runs)} runs"
    encoder = f" on {model.encoder}" if model.encoder else ""
    lines = [
        f"{model.arch}{encoder}, {header.image_size_px} px, {header.fit}{what}",
        f"classes: {', '.join(header.names)}",
    ]
    for origin in header.runs:
        numbers = [f"{name} {origin.metrics[name]:.4f}" for name in ("val/dice", "test/dice") if name in origin.metrics]
        lines.append(f"run {origin.trial_id}, {origin.checkpoint}: {', '.join(numbers) or 'not finished'}")
    if header.measured:
        lines.append(f"measured here: {numbers_line(header.measured)}")
    return lines


def numbers_line(measured: Mapping[str, Any]) -> str:
    """`test Dice 0.9012 [0.8950, 0.9074] (mean of 10 classes, 256 px, 233 pictures)`"""
    split, metrics = measured["split"], measured["metrics"]
    low_high = measured["dice_interval_95"]
    span = f" [{low_high[0]:.4f}, {low_high[1]:.4f}]" if low_high else ""
    native = metrics.get(f"{split}/native/dice")
    more = f", native {native:.4f}" if native is not None else ""
    return f"{split} Dice {metrics[f'{split}/dice']:.4f}{span}{more} ({measured['protocol']})"
