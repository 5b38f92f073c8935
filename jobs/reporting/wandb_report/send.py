"""Create a sweep's report in wandb or update it; wandb_report.json in the sweep's folder identifies it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from jobs.reporting.statistics.records import Record
from jobs.reporting.wandb_report.client import NothingToShow, Request, Saved
from jobs.reporting.wandb_report.content import Content
from jobs.runs.trial import Sweep
from jobs.wandb_sync.call import ask, is_refusal, reason, require_workspaces
from jobs.wandb_sync.login import require_wandb
from jobs.wandb_sync.trials import NOTE_NAME, read_note
from shards.command import Failure, Interrupted, typed, without_secrets
from shards.files import read_json, write_whole

MARK_NAME = "wandb_report.json"
LOCK_NAME = "wandb_report.lock"
TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Target:
    """The wandb project of a sweep's runs."""

    project: str
    entity: str  # "" = the key's own


@dataclass(frozen=True)
class Sent:
    """A report in wandb, and messages about it."""

    url: str
    messages: tuple[str, ...]


def send_report(sweep: Sweep, records: Sequence[Record], content: Content, timeout_s: float = TIMEOUT_S) -> Sent:
    """Create the sweep's report in wandb, or update it.

    Raises ValueError (no package, key, network or runs), Interrupted after a transient error, and Failure if wandb
    refuses the report.
    """
    require_workspaces("--to wandb")
    url = require_wandb()
    target = target_of(sweep, records, url)
    try:
        with FileLock(sweep.folder / LOCK_NAME, timeout=0):
            mark = read_mark(sweep.folder)
            is_there = all(mark.get(name) == value for name, value in _location(url, target).items())
            request = Request(asdict(content), target.project, target.entity, mark.get("id", "") if is_there else "")
            answer = ask("jobs.reporting.wandb_report.client", asdict(request), timeout_s)
            if "error" in answer:
                raise trouble(sweep, answer)
            saved = Saved(**answer)
            kept = _location(url, target) | {"id": saved.id, "url": saved.url}
            write_whole(sweep.folder / MARK_NAME, json.dumps(kept, indent=2) + "\n")
    except Timeout:
        raise ValueError(f"another jobs/report.py sends the report of {sweep.folder}: wait for it") from None
    return Sent(saved.url, (describe(saved, mark), *warn_about_runs(sweep, records, saved.runs)))


def _location(url: str, target: Target) -> dict[str, str]:
    return {"server": without_secrets(url), "project": target.project, "entity": target.entity}


def target_of(sweep: Sweep, records: Sequence[Record], url: str) -> Target:
    """The project of the trials; raises ValueError if there is none, or more than one."""
    counts: dict[Target, int] = {}
    for record in records:
        note = read_note(record.trial.folder / NOTE_NAME)
        tracking = (record.config or {}).get("tracking", {})
        if note.get("url") == without_secrets(url):
            target = Target(str(note.get("project", "")), str(note.get("entity", "")))
        elif tracking.get("wandb") == "online":
            target = Target(str(tracking.get("project", "")), str(tracking.get("entity", "")))
        else:
            continue
        counts[target] = counts.get(target, 0) + 1
    if not counts:
        raise ValueError(
            f"no trial of {sweep.name} has been sent to {without_secrets(url)} (tracking.wandb is not online): type "
            f"`{typed('jobs/sync.py', sweep.name)}` first"
        )
    if len(counts) > 1:
        listed = ", ".join(
            f"{count} in {target.entity or 'your own'}/{target.project}" for target, count in counts.items()
        )
        raise ValueError(
            f"the trials of {sweep.name} are in several projects of wandb ({listed}), and a report shows one: bring "
            f"them together with `{typed('jobs/sync.py', sweep.name, '--project', 'PROJECT', '--entity', 'ENTITY')}`"
        )
    return next(iter(counts))


def read_mark(folder: Path) -> Mapping[str, str]:
    """The content of wandb_report.json, {} if it is missing or unreadable."""
    try:
        mark = read_json(folder / MARK_NAME)
    except (OSError, ValueError):
        return {}
    return {name: str(value) for name, value in mark.items()} if isinstance(mark, dict) else {}


def describe(saved: Saved, mark: Mapping[str, str]) -> str:
    if saved.made == "updated":
        return "the sweep's report is updated"
    if saved.made == "anew":
        return f"a new report is made: the one of before, {mark['url']}, is no longer there"
    if mark:
        return f"a new report is made: the one of before, {mark.get('url', '')}, is in another place than the runs now"
    return "a new report is made"


def warn_about_runs(sweep: Sweep, records: Sequence[Record], runs: int) -> tuple[str, ...]:
    """A message if the panels have other runs than the text."""
    begun = sum(bool(record.rows) for record in records)
    if runs < begun:
        return (f"wandb has {runs} of {begun} trials: `{typed('jobs/sync.py', sweep.name)}` sends the others",)
    if runs > len(records):
        more = f"wandb has {runs} runs of the group {sweep.name}, and the sweep {len(records)} trials"
        return (f"{more}: the panels show another sweep of that name too",)
    return ()


def trouble(sweep: Sweep, answer: Mapping[str, str]) -> Exception:
    """The exception for an error of the client."""
    text = reason(answer)
    if answer["error"] == NothingToShow.__name__:
        return ValueError(f"{text}: type `{typed('jobs/sync.py', sweep.name)}` first")
    if is_refusal(answer["error"], text):
        return Failure(f"wandb refuses the report ({answer['error']}: {text})")
    return Interrupted(f"wandb did not take the report ({answer['error']}: {text}): the same command tries again")
