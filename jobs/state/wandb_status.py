"""What wandb has of a sweep, by what its trials have noted (petseg.tracking.note): wandb itself is not asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs.state.trial_status import LIVE, TrialStatus
from petseg.tracking.note import TrackingNote, read_note
from shards.command import typed

MAX_REASONS = 3
MAX_REASON = 200  # characters
CUT_OFF = "its process ended before wandb had confirmed everything"


@dataclass(frozen=True)
class WandbStatus:
    """The trials of a sweep that asked for wandb, or were sent by jobs/sync.py, by what became of them."""

    folder: Path
    healthy: tuple[TrackingNote, ...]  # sent, or on the way
    lost: dict[str, TrackingNote]  # trial id -> what is not there, as a whole or in part
    offline: int

    @property
    def project_urls(self) -> list[str]:
        """Where people look; what is no web address is left out."""
        urls = dict.fromkeys(note.project_url for note in (*self.healthy, *self.lost.values()))
        return [_one_line(url) for url in urls if urlsplit(url).scheme in ("http", "https")]

    @property
    def reasons(self) -> list[str]:
        return list(dict.fromkeys(_one_line(note.reason)[:MAX_REASON] for note in self.lost.values()))

    def lines(self) -> Iterator[str]:
        """The project, and what it lacks, with the command that sends it; nothing if the sweep does not use wandb."""
        command = f"`{typed('jobs/sync.py', self.folder)}` sends it"
        for url in self.project_urls:
            yield f"wandb: {url}"
        if self.lost:
            total = len(self.healthy) + len(self.lost) + self.offline
            nothing = len(self.lost) == total and not any(note.url for note in self.lost.values())
            of = f"{len(self.lost)} of {total} trials" if total > 1 else "the trial"
            what = "wandb has nothing of this sweep" if nothing else f"wandb lacks {of}, or a part of it"
            shown = "; ".join(self.reasons[:MAX_REASONS])
            more = f"; and {len(self.reasons) - MAX_REASONS} other reasons" if len(self.reasons) > MAX_REASONS else ""
            yield f"{what} ({shown}{more}): {command}"
        if self.offline:
            yield f"{self.offline} trial{'s are' if self.offline > 1 else ' is'} kept offline: {command}"

    def to_dict(self) -> dict[str, Any]:
        """What status --json says."""
        return {
            "project_urls": self.project_urls,
            "sent": len(self.healthy),
            "not_sent": list(self.lost),
            "offline": self.offline,
            "reasons": self.reasons,
        }


def wandb_status(folder: Path, rows: Sequence[TrialStatus]) -> WandbStatus:
    """The wandb status of these trials. A send that was under way counts as lost if its trial has ended."""
    healthy: list[TrackingNote] = []
    lost: dict[str, TrackingNote] = {}
    offline = 0
    for row in rows:
        note = read_note(row.trial.folder)
        if note is None:
            continue
        if note.state == "offline":
            offline += 1
        elif note.state == "sent" or (note.state in ("starting", "sending") and row.status in LIVE):
            healthy.append(note)
        else:
            lost[row.trial.id] = note if note.reason else TrackingNote("lost", CUT_OFF, note.url, note.project_url)
    return WandbStatus(folder, tuple(healthy), lost, offline)


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
