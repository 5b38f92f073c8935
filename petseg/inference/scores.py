"""Measures the model of a weights file on a shard set, by the protocol of petseg.evaluate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from petseg.config import DataConfig, RunConfig
from petseg.config.values import with_values
from petseg.data.consent import remember
from petseg.data.store import open_store
from petseg.evaluation.protocol import Protocol, measure_protocol, why_not_native
from petseg.evaluation.report import Evaluated, as_json
from petseg.inference.from_runs import numbers_of
from petseg.metrics import Tta
from petseg.run.parts import build_parts
from petseg.run.peers import lost_peers_raise


@dataclass(frozen=True)
class Measurement:
    """What a model is measured on, and how."""

    shards: str
    split: Literal["train", "val", "test"]
    tta: Tta
    cache_dir: str = ""


def measure_model(model: nn.Module, config: RunConfig, run: Path, wanted: Measurement) -> dict[str, Any]:
    """The numbers of a model, as a weights file keeps them.

    config: of the run in the folder `run`, or of one of the runs whose weights were put together
    """
    return {"split": wanted.split, **numbers_of(evaluate_model(model, config, run, wanted))}


def evaluate_model(model: nn.Module, config: RunConfig, run: Path, wanted: Measurement) -> dict[str, Any]:
    """As petseg.evaluate measures a run: at the network's size and, where possible, at native size."""
    remember([wanted.shards])
    own = {"data.shards": wanted.shards, "data.cache_dir": wanted.cache_dir, "data.cache_gb": DataConfig().cache_gb}
    config = with_values(config, own)
    store = open_store(wanted.shards, wanted.cache_dir, config.data.cache_gb)
    parts = build_parts(config, store, run, splits=(wanted.split,))
    try:
        model = model.to(parts.device)
        no_native = why_not_native(store.manifest)
        protocol = Protocol(wanted.tta, native=not no_native)
        with lost_peers_raise():
            measured = measure_protocol(replace(parts, bare_model=model), wanted.split, protocol)
        done = Evaluated(wanted.split, "", "", protocol, no_native, measured, temperature=None)
        return as_json(parts, done)
    finally:
        parts.close()
