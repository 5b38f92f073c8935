"""The runs of a sweep that wandb lacks, their content, and a note beside each run of what was sent.

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
from jobs.runs.sweep_file import load_sweep
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
PROJECT_URL = "project_url"  # in a note, but not part of the comparison


@dataclass(frozen=True)
class Location:
    """A project in wandb."""

    url: str  # of the server, without secrets
    project: str
    entity: str  # "" = the key's own


@dataclass(frozen=True)
class Target:
    """The server for runs, and overrides of their config."""

    url: str
    project: str = ""
    entity: str = ""
    artifacts: Which | None = None


@dataclass(frozen=True)
class EndedRun:
    """A run that is not running now."""

    folder: Path
    name: RunName
    config: RunConfig
    ended: End


@dataclass(frozen=True)
class SyncPlan:
    """The runs that are to be sent, and those that are not."""

    replays: tuple[Replay, ...]
    left_out: tuple[str, ...]  # why, a line each
    sent_before: tuple[Replay, ...]  # by their notes
    project_urls: tuple[str, ...]  # of those


def plan_replays(folder: Path, target: Target, again: bool) -> SyncPlan:
    """The runs of a sweep, or of one folder, that have rows, are not running and are not noted as sent."""
    replays: list[Replay] = []
    sent_before, project_urls = [], []
    runs, left_out = find_runs(folder)
    for run in runs:
        try:
            replays_here = build_replays(run.folder, run.name, run.config, run.ended, target)
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:  # one damaged run of many
            left_out.append(f"{run.folder}: {error!s:.500}" if str(error) else f"{run.folder} is damaged")
            continue
        for replay in replays_here:
            note = dict(read_note(replay.note_path))
            project_url = note.pop(PROJECT_URL, "")
            if not again and note == replay.note:
                sent_before.append(replay)
                project_urls.append(str(project_url))
            else:
                replays.append(replay)
    return SyncPlan(tuple(replays), tuple(left_out), tuple(sent_before), tuple(project_urls))


def find_runs(folder: Path) -> tuple[list[EndedRun], list[str]]:
    """The runs that are not running of a sweep, or the one run of a folder; and why others are left out."""
    if (folder / CONFIG_NAME).exists():
        config = config_from_dict(load_config(folder)["config"])
        return [EndedRun(folder, name_in_place(folder, config), config, _end_alone(folder))], []
    runs, left_out = [], []
    sweep = load_sweep(folder)
    for row in observe(sweep).rows:
        trial = row.trial
        if row.status in LIVE:
            left_out.append(f"{trial.id} {trial.label} is {row.status}: sync again when it has ended")
        elif (trial.folder / CONFIG_NAME).exists():
            try:
                config = config_from_dict(load_config(trial.folder)["config"])
            except ValueError as error:
                left_out.append(f"{trial.id} {trial.label}: {error}")
                continue
            runs.append(EndedRun(trial.folder, trial_name(sweep, trial.id, config), config, end_of(row)))
    return runs, left_out


def build_replays(folder: Path, name: RunName, config: RunConfig, ended: End, target: Target) -> list[Replay]:
    """The run and its evaluations; raises ValueError and OSError for a damaged folder, or a link."""
    require_own_folder(folder / "wandb")  # which the client writes to
    replays = [build_replay(folder, name, config, ended, target)] if read_metrics(folder) else []
    return replays + [build_evaluation(folder, name, config, one, target) for one in load_evaluations(folder)]


def build_replay(folder: Path, name: RunName, config: RunConfig, ended: End, target: Target) -> Replay:
    """The replay of a run, as the run itself would send it."""
    about = describe(folder, name, load_config(folder)["config"])
    artifacts = find_artifacts(folder, name.wandb_id, target.artifacts or config.tracking.artifacts)
    location = location_of(config, target)
    note: dict[str, Any] = {**asdict(location), "id": name.wandb_id}
    note |= {"content": content_hash(folder, ended), "artifacts": [artifact.name for artifact in artifacts]}
    listed = tuple(asdict(artifact) for artifact in artifacts)
    return Replay(folder / NOTE_NAME, begin_of(about, location), summary_of(folder), ended, note, listed)


def build_evaluation(
    folder: Path, name: RunName, config: RunConfig, content: Mapping[str, Any], target: Target
) -> Replay:
    """The replay of an evaluation of a run. content: of the evaluation's file."""
    about, location = describe_evaluation(folder, name, content), location_of(config, target)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    note = {**asdict(location), "id": about["id"], "content": digest}
    path = folder / f"wandb-sync-{content['split']}.json"
    return Replay(path, begin_of(about, location), evaluation_summary(content), "finished", note)


def location_of(config: RunConfig, target: Target) -> Location:
    """The project of a run in wandb."""
    tracking = config.tracking
    return Location(without_secrets(target.url), target.project or tracking.project, target.entity or tracking.entity)


def begin_of(about: Mapping[str, Any], location: Location) -> dict[str, Any]:
    """Fields of RunSettings for a run that is over."""
    return {**about, "project": location.project, "entity": location.entity, "host": about["config"]["host"]}


def end_of(row: TrialStatus) -> End:
    """How a trial ended, by its status."""
    ends: dict[str, End] = {"done": "finished", "pruned": "pruned", "interrupted": "interrupted"}
    return ends.get(row.status, "failed")


def _end_alone(folder: Path) -> End:
    """How a run without a sweep ended, by the files in its folder."""
    if (folder / RESULT_NAME).exists():
        return "finished"
    return "pruned" if (folder / PRUNED_NAME).exists() else "interrupted"


def summary_of(folder: Path) -> dict[str, Any]:
    """The summary that the run itself would send at its end, from result.json or pruned.json."""
    if result := load_result(folder):
        return result.metrics | {"best_epoch": result.best_epoch, "parameters": result.parameters}
    if pruned := load_pruned(folder):
        return {"pruned_epoch": pruned.epoch, "best_epoch": pruned.best_epoch, "val/dice": pruned.best}
    return {}


def content_hash(folder: Path, ended: End) -> str:
    """A hash of the files that decide what is sent of a run."""
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
    """The note of a sent run, {} if it is missing or unreadable."""
    try:
        note = read_json(path)
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def mark_sent(replay: Replay, outcome: Outcome) -> None:
    """Note that a run was sent, and mark its offline files as wandb does, so that jobs/clean.py can delete them."""
    folder = replay.note_path.parent
    note = {**replay.note, PROJECT_URL: outcome.project_url}
    write_whole(replay.note_path, json.dumps(note, indent=2) + "\n")
    if not replay.is_evaluation:
        save_tracking_note(TrackingNote("sent", url=outcome.url, project_url=outcome.project_url), folder)
    for path in (folder / "wandb").glob(f"offline-run-*/run-{replay.id}.wandb"):
        path.with_name(f"{path.name}.synced").touch()
