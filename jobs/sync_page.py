"""wandb's own page of a sweep, beside petseg's Report: made once, noted in wandb_sweep.json, and joined by its runs.

wandb's agents start what is in a sweep of theirs; petseg's trials are started by jobs/sweep.py, and only belong to it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.spec import METRIC
from jobs.trial import Sweep
from jobs.wandb_errand import ask, is_refusal, require_workspaces
from petseg.tracking_client import without_secrets
from shards.command import Failure, Interrupted
from shards.files import build, read_json
from shards.manifest import write_whole

NOTE_NAME = "wandb_sweep.json"
TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Place:
    """Where runs are in wandb."""

    url: str  # of the server, without secrets
    project: str
    entity: str  # "" = the key's own


@dataclass(frozen=True)
class Page:
    """A sweep of wandb's."""

    place: Place
    id: str
    url: str


def load_page(folder: Path) -> Page | None:
    """The page of the sweep in this folder, None if it has none; a note that cannot be read counts as none."""
    try:
        found = read_json(folder / NOTE_NAME)
        return Page(build(Place, found["place"]), str(found["id"]), str(found["url"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def make_page(sweep: Sweep, place: Place, run_ids: Sequence[str]) -> Page:
    """Find or make the sweep's page in wandb, and note it.

    run_ids: of runs that wandb has already
    Raises ValueError without the package that asks wandb, Interrupted if wandb did not answer as it should, Failure if
    it refuses.
    """
    require_workspaces("--sweep-page")
    request = {
        "project": place.project,
        "entity": place.entity,
        "title": sweep.name,
        "description": description(sweep),
        "config": config_of(sweep),
        "run_ids": list(run_ids),
    }
    answer = ask("jobs.sync_page_client", request, TIMEOUT_S)
    if "error" in answer:
        text = " ".join(answer["text"].split()) or "no reason given"
        if is_refusal(answer["error"], text):
            raise Failure(f"wandb refuses the sweep's page ({answer['error']}: {text})")
        raise Interrupted(f"wandb did not take the sweep's page ({answer['error']}: {text}): the same command again")
    page = Page(place, answer["id"], without_secrets(answer["url"]))
    write_whole(sweep.folder / NOTE_NAME, json.dumps(asdict(page), indent=2) + "\n")
    return page


def description(sweep: Sweep) -> str:
    """Tells the sweep from any other of the project, whose name and shard set make its runs' ids."""
    return f"petseg sweep {sweep.name} on shard set {sweep.manifest_hash[:10]}, started by jobs/sweep.py"


def config_of(sweep: Sweep) -> dict[str, Any]:
    """The sweep in wandb's own YAML form: what a search has drawn so far stands as values."""
    config: dict[str, Any] = {
        "name": sweep.name,
        "description": description(sweep),
        "program": "petseg/train.py",
        "method": sweep.method,
        "metric": METRIC,
        "parameters": {name: {"values": values} for name, values in sweep.axes.items()},
    }
    return config | ({"early_terminate": sweep.early.to_dict()} if sweep.early else {})
