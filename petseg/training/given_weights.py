"""Weights files that a run's config names: of the teacher it learns from, and of the network it starts with.

Every process reads them, and all of them stop where one cannot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from petseg.inference.header import Header
from petseg.inference.weights_file import load_model
from petseg.models.build import count_parameters
from petseg.models.networks import Network
from petseg.run.parts import Parts
from petseg.run.resizing import require_sizes

Read = TypeVar("Read")
logger = logging.getLogger(__name__)


def load_teacher(parts: Parts) -> nn.Module | None:
    """The frozen model that `distill.teacher` names, on the device; None without one.

    Raises ValueError, on all processes, for a file that cannot be read, or a model that has learnt something else.
    """
    distill = parts.config.distill
    if distill.is_off:
        return None
    return _on_all(parts.accelerator, lambda: _teacher(parts, Path(distill.teacher)))


def load_initial(parts: Parts) -> None:
    """Load the weights that `model.init` names into the (bare) model; raises as `load_teacher`."""
    path = parts.config.model.init
    header, model = _on_all(parts.accelerator, lambda: _initial(parts, Path(path)))
    parts.bare_model.load_state_dict(model.state_dict())
    logger.info("the run starts with the weights of %s (%s)", path, ", ".join(one.trial_id for one in header.runs))


def _teacher(parts: Parts, path: Path) -> nn.Module:
    header, model = load_model(path)
    _require_same(f"distill.teacher = {str(path)!r}", _facts(header), _facts_of(parts))
    model = model.to(parts.device).requires_grad_(False).eval()
    if parts.config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    require_sizes(parts.config, model, f"distill.teacher = {str(path)!r}")
    logger.info("the run learns from %s, with %d parameters", path, count_parameters(model))
    return model


def _initial(parts: Parts, path: Path) -> tuple[Header, nn.Module]:
    header, model = load_model(path)
    name = f"model.init = {str(path)!r}"
    if len(header.models) > 1:
        raise ValueError(f"{name} is an ensemble of {len(header.models)} networks: give the file of a single one")
    wanted = {f"model.{field}": value for field, value in vars(Network.of(parts.config.model)).items()}
    found = {f"model.{field}": value for field, value in vars(header.models[0]).items()}
    _require_same(name, found | {"classes": list(header.names)}, wanted | {"classes": list(parts.target.names)})
    return header, model


def _facts(header: Header) -> dict[str, object]:
    return {
        "classes": list(header.names),
        "data.border": header.border,
        "data.image_size_px": header.image_size_px,
        "data.fit": header.fit,
    }


def _facts_of(parts: Parts) -> dict[str, object]:
    data = parts.config.data
    return {
        "classes": list(parts.target.names),
        "data.border": data.border,
        "data.image_size_px": data.image_size_px,
        "data.fit": data.fit,
    }


def _require_same(name: str, found: dict[str, object], wanted: dict[str, object]) -> None:
    if differing := [fact for fact, value in wanted.items() if found[fact] != value]:
        listed = ", ".join(f"{fact} {found[fact]!r}, not {wanted[fact]!r}" for fact in differing)
        raise ValueError(f"{name} does not fit this run: it has {listed}")


def _on_all(accelerator: Accelerator, read: Callable[[], Read]) -> Read:
    """What this process has read; raises ValueError on all processes if one of them could not."""
    problem = ""
    try:
        result = read()
    except (ValueError, OSError) as error:
        problem = str(error)
    if problem := next(filter(None, gather_object([problem])), ""):
        raise ValueError(problem)
    return result
