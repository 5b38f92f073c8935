"""Send a sweep's report to wandb, made once and then updated: wandb_report.json in its folder says which it is."""

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
from jobs.wandb_sync.call import ask, is_refusal, require_workspaces
from jobs.wandb_sync.login import require_wandb
from jobs.wandb_sync.trials import NOTE_NAME, read_note
from shards.command import Failure, Interrupted, typed, without_secrets
from shards.files import read_json, write_whole

MARK_NAME = "wandb_report.json"
LOCK_NAME = "wandb_report.lock"
TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Target:
    """Where the runs of a sweep are."""

    project: str
    entity: str  # "" = the key's own


@dataclass(frozen=True)
class Sent:
    """A report in wandb, and how it came there."""

    url: str
    told: tuple[str, ...]  # lines


def send_report(sweep: Sweep, records: Sequence[Record], content: Content, timeout_s: float = TIMEOUT_S) -> Sent:
    """Make the sweep's report in wandb, or update the one that it has.

    Raises ValueError (no package, no key, no network, no runs there), Interrupted if wandb did not take it for a reason
    that passes, Failure if it refuses it for good.
    """
    require_workspaces("--to wandb")
    url = require_wandb()
    target = target_of(sweep, records, url)
    try:
        with FileLock(sweep.folder / LOCK_NAME, timeout=0):
            mark = read_mark(sweep.folder)
            is_there = all(mark.get(name) == value for name, value in _place(url, target).items())
            request = Request(asdict(content), target.project, target.entity, mark.get("id", "") if is_there else "")
            answer = ask("jobs.reporting.wandb_report.client", asdict(request), timeout_s)
            if "error" in answer:
                raise trouble(sweep, answer)
            saved = Saved(**answer)
            kept = _place(url, target) | {"id": saved.id, "url": saved.url}
            write_whole(sweep.folder / MARK_NAME, json.dumps(kept, indent=2) + "\n")
    except Timeout:
        raise ValueError(f"another jobs/report.py sends the report of {sweep.folder}: wait for it") from None
    return Sent(saved.url, (told(saved, mark), *runs_told(sweep, records, saved.runs)))


def _place(url: str, target: Target) -> dict[str, str]:
    return {"server": without_secrets(url), "project": target.project, "entity": target.entity}


def target_of(sweep: Sweep, records: Sequence[Record], url: str) -> Target:
    """The one project that the trials are in; raises ValueError if there is none, or more than one."""
    found: dict[Target, int] = {}
    for record in records:
        note = read_note(record.trial_status.trial.folder / NOTE_NAME)
        tracking = (record.config or {}).get("tracking", {})
        if note.get("url") == without_secrets(url):
            place = Target(str(note.get("project", "")), str(note.get("entity", "")))
        elif tracking.get("wandb") == "online":
            place = Target(str(tracking.get("project", "")), str(tracking.get("entity", "")))
        else:
            continue
        found[place] = found.get(place, 0) + 1
    if not found:
        raise ValueError(
            f"no trial of {sweep.name} has been sent to {without_secrets(url)} (tracking.wandb is not online): type "
            f"`{typed('jobs/sync.py', sweep.name)}` first"
        )
    if len(found) > 1:
        listed = ", ".join(f"{count} in {place.entity or 'your own'}/{place.project}" for place, count in found.items())
        raise ValueError(
            f"the trials of {sweep.name} are in several projects of wandb ({listed}), and a report shows one: bring "
            f"them together with `{typed('jobs/sync.py', sweep.name, '--project', 'PROJECT', '--entity', 'ENTITY')}`"
        )
    return next(iter(found))


def read_mark(folder: Path) -> Mapping[str, str]:
    """Which report is the sweep's, {} if it has none; a file that cannot be read counts as none."""
    try:
        found = read_json(folder / MARK_NAME)
    except (OSError, ValueError):
        return {}
    return {name: str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def told(saved: Saved, mark: Mapping[str, str]) -> str:
    if saved.made == "updated":
        return "the sweep's report is updated"
    if saved.made == "anew":
        return f"a new report is made: the one of before, {mark['url']}, is no longer there"
    if mark:
        return f"a new report is made: the one of before, {mark.get('url', '')}, is in another place than the runs now"
    return "a new report is made"


def runs_told(sweep: Sweep, records: Sequence[Record], runs: int) -> tuple[str, ...]:
    """What keeps the panels from showing what the text says."""
    begun = sum(bool(record.rows) for record in records)
    if runs < begun:
        return (f"wandb has {runs} of {begun} trials: `{typed('jobs/sync.py', sweep.name)}` sends the others",)
    if runs > len(records):
        more = f"wandb has {runs} runs of the group {sweep.name}, and the sweep {len(records)} trials"
        return (f"{more}: the panels show another sweep of that name too",)
    return ()


def trouble(sweep: Sweep, answer: Mapping[str, str]) -> Exception:
    """What to raise for an error that the client met."""
    text = " ".join(answer["text"].split()) or "no reason given"
    if answer["error"] == NothingToShow.__name__:
        return ValueError(f"{text}: type `{typed('jobs/sync.py', sweep.name)}` first")
    if is_refusal(answer["error"], text):
        return Failure(f"wandb refuses the report ({answer['error']}: {text})")
    return Interrupted(f"wandb did not take the report ({answer['error']}: {text}): the same command tries again")
