"""Which runs of a sweep are to be sent to wandb, with what, and a note beside each of what has been sent.

A trial is a run, and so is each of its evaluations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.runs.naming import name_in_place, trial_name
from jobs.runs.trial import load_sweep
from jobs.state.observed import observe
from jobs.state.trial_status import LIVE, TrialStatus
from jobs.wandb_sync.replay import Outcome, Replay
from petseg.config import RunConfig
from petseg.config.values import config_from_dict
from petseg.run_folder.attempts import ATTEMPTS_NAME
from petseg.run_folder.layout import (
    CONFIG_NAME,
    MAX_METRICS_BYTES,
    METRICS_NAME,
    OVERRIDES_NAME,
    PRUNED_NAME,
    RESULT_NAME,
    load_config,
    load_pruned,
    load_result,
    read_metrics,
)
from petseg.tracking.artifacts import Which, find_artifacts
from petseg.tracking.evaluation import describe_evaluation, load_evaluations
from petseg.tracking.evaluation import summary_of as evaluation_summary
from petseg.tracking.naming import RunName
from petseg.tracking.note import TrackingNote
from petseg.tracking.note import save_note as save_tracking_note
from petseg.tracking.overlays import OVERLAY_MASKS_NAME
from petseg.tracking.tracker import End, describe
from shards.command import without_secrets
from shards.files import read_bounded, read_json, require_own_folder, write_whole

NOTE_NAME = "wandb-sync.json"
PROJECT_URL = "project_url"  # in a note: where it lies, which does not tell whether all of it was sent


@dataclass(frozen=True)
class Place:
    """Where runs are in wandb."""

    url: str  # of the server, without secrets
    project: str
    entity: str  # "" = the key's own


@dataclass(frozen=True)
class Target:
    """Where runs are to be sent to, and what else than their config says."""

    url: str
    project: str = ""
    entity: str = ""
    artifacts: Which | None = None


@dataclass(frozen=True)
class SyncPlan:
    """What is to be sent."""

    replays: tuple[Replay, ...]
    left_out: tuple[str, ...]  # why, a line each
    sent_before: tuple[Replay, ...]  # by their notes
    project_urls: tuple[str, ...]  # of those


def plan_replays(folder: Path, target: Target, again: bool) -> SyncPlan:
    """The runs of a sweep, or the one run of a folder, that have rows, do not run now and are not noted as sent."""
    replays: list[Replay] = []
    left_out, sent_before, project_urls = [], [], []
    if (folder / CONFIG_NAME).exists():
        config = config_from_dict(load_config(folder)["config"])
        found = [(folder, name_in_place(folder, config), config, _end_alone(folder))]
    else:
        found = []
        sweep = load_sweep(folder)
        for row in observe(sweep).rows:
            if row.status in LIVE:
                left_out.append(f"{row.trial.id} {row.trial.label} is {row.status}: sync again when it has ended")
            elif (row.trial.folder / CONFIG_NAME).exists():
                try:
                    config = config_from_dict(load_config(row.trial.folder)["config"])
                except ValueError as error:
                    left_out.append(f"{row.trial.id} {row.trial.label}: {error}")
                    continue
                name = trial_name(sweep, row.trial.id, config)
                found.append((row.trial.folder, name, config, end_of(row)))
    for run_folder, name, config, ended in found:
        try:
            found_here = build_replays(run_folder, name, config, ended, target)
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:  # damaged: of one run of many
            left_out.append(f"{run_folder}: {error!s:.500}" if str(error) else f"{run_folder} is damaged")
            continue
        for replay in found_here:
            note = dict(read_note(replay.note_path))
            project_url = note.pop(PROJECT_URL, "")
            if not again and note == replay.note:
                sent_before.append(replay)
                project_urls.append(str(project_url))
            else:
                replays.append(replay)
    return SyncPlan(tuple(replays), tuple(left_out), tuple(sent_before), tuple(project_urls))


def build_replays(folder: Path, name: RunName, config: RunConfig, ended: End, target: Target) -> list[Replay]:
    """The run and its evaluations; raises ValueError and OSError for a folder that is damaged, or leads elsewhere."""
    require_own_folder(folder / "wandb")  # which the client writes to
    found = [build_replay(folder, name, config, ended, target)] if read_metrics(folder) else []
    return found + [build_evaluation(folder, name, config, one, target) for one in load_evaluations(folder)]


def build_replay(folder: Path, name: RunName, config: RunConfig, ended: End, target: Target) -> Replay:
    """What a run is told to wandb with, as it would tell itself."""
    about = describe(folder, name, load_config(folder)["config"])
    artifacts = find_artifacts(folder, name.wandb_id, target.artifacts or config.tracking.artifacts)
    place = place_of(config, target)
    note: dict[str, Any] = {**asdict(place), "id": name.wandb_id}
    note |= {"content": content_hash(folder, ended), "artifacts": [artifact.name for artifact in artifacts]}
    listed = tuple(asdict(artifact) for artifact in artifacts)
    return Replay(folder / NOTE_NAME, begin_of(about, place), summary_of(folder), ended, note, listed)


def build_evaluation(
    folder: Path, name: RunName, config: RunConfig, content: Mapping[str, Any], target: Target
) -> Replay:
    """The same for an evaluation of a run, by the content of its file."""
    about, place = describe_evaluation(folder, name, content), place_of(config, target)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    note = {**asdict(place), "id": about["id"], "content": digest}
    path = folder / f"wandb-sync-{content['split']}.json"
    return Replay(path, begin_of(about, place), evaluation_summary(content), "finished", note)


def place_of(config: RunConfig, target: Target) -> Place:
    """Where a run is, or is to be, in wandb."""
    tracking = config.tracking
    return Place(without_secrets(target.url), target.project or tracking.project, target.entity or tracking.entity)


def begin_of(about: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Fields of RunSettings for a run that is over."""
    return {**about, "project": place.project, "entity": place.entity, "host": about["config"]["host"]}


def end_of(row: TrialStatus) -> End:
    """What wandb is told of how a trial ended, by where it stands."""
    ends: dict[str, End] = {"done": "finished", "pruned": "pruned", "interrupted": "interrupted"}
    return ends.get(row.status, "failed")


def _end_alone(folder: Path) -> End:
    """The same for a run without a sweep: only a finished one has said how it ended."""
    if (folder / RESULT_NAME).exists():
        return "finished"
    return "pruned" if (folder / PRUNED_NAME).exists() else "interrupted"


def summary_of(folder: Path) -> dict[str, Any]:
    """What the run's own end says, by its result.json or pruned.json."""
    if result := load_result(folder):
        return result.metrics | {"best_epoch": result.best_epoch, "parameters": result.parameters}
    if pruned := load_pruned(folder):
        return {"pruned_epoch": pruned.epoch, "best_epoch": pruned.best_epoch, "val/dice": pruned.best}
    return {}


def content_hash(folder: Path, ended: End) -> str:
    """Of everything that is sent of a run; what it wrote when it ended comes and goes with its result."""
    digest = hashlib.sha256(ended.encode())
    for name in (
        METRICS_NAME,
        RESULT_NAME,
        PRUNED_NAME,
        OVERLAY_MASKS_NAME,
        CONFIG_NAME,
        OVERRIDES_NAME,
        ATTEMPTS_NAME,
    ):
        path = folder / name
        digest.update(f"\0{name}\0".encode() + (read_bounded(path, MAX_METRICS_BYTES) if path.exists() else b""))
    return digest.hexdigest()


def read_note(path: Path) -> Mapping[str, Any]:
    """What was sent of a run and where to, {} if nothing was; one that cannot be read counts as none."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def mark_sent(replay: Replay, outcome: Outcome) -> None:
    """Note it, and mark what wandb kept offline as it does itself, so that jobs/clean.py can free it."""
    folder = replay.note_path.parent
    note = {**replay.note, PROJECT_URL: outcome.project_url}
    write_whole(replay.note_path, json.dumps(note, indent=2) + "\n")
    if not replay.is_evaluation:
        save_tracking_note(TrackingNote("sent", url=outcome.url, project_url=outcome.project_url), folder)
    for path in (folder / "wandb").glob(f"offline-run-*/run-{replay.id}.wandb"):
        path.with_name(f"{path.name}.synced").touch()
