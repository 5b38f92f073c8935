"""What status shows: the table of trials, each distinct failure once, and the same as one JSON document."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.runs.trial import Sweep
from jobs.state.slurm_states import Answer
from jobs.state.triage import Diagnosis
from jobs.state.trial_status import LIVE, STATES, TrialStatus
from jobs.state.waits import Wait
from jobs.state.wandb_status import wandb_status
from shards.command import typed
from shards.terminal import duration

FORMAT_VERSION = 1
MAX_NAMED = 12  # trials listed of one failure
MAX_TRACEBACK_LINES = 40
MAX_FOLDED = 200  # rows
LOG_WIDTH = 130  # characters of the terminal
STYLES = {
    "running": "green",
    "done": "",
    "failed": "red",
    "stalled": "yellow",
    "interrupted": "yellow",
    "unknown": "yellow",
}


@dataclass(frozen=True)
class Failed:
    """Trials that ended in the same way."""

    verdict: Diagnosis
    rows: tuple[TrialStatus, ...]


def group_failures(rows: Sequence[TrialStatus]) -> list[Failed]:
    """The distinct failures and interruptions, the most frequent first."""
    groups: dict[tuple[str, str], list[TrialStatus]] = {}
    for row in rows:
        if row.verdict:
            groups.setdefault((row.verdict.cause, row.verdict.signature), []).append(row)
    failures = [Failed(members[0].verdict, tuple(members)) for members in groups.values() if members[0].verdict]
    return sorted(failures, key=lambda failed: -len(failed.rows))


def title_of(sweep: Sweep, rows: Sequence[TrialStatus]) -> str:
    counts = Counter(row.status for row in rows)
    return f"{sweep.name}: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def source_line(answer: Answer) -> str:
    """Who said what the jobs do, and when."""
    if not answer.source:
        return ""
    if answer.source == "none":
        return f"Slurm does not answer ({answer.why}): what became of their jobs is unknown"
    return f"states of jobs by {answer.source}, {answer.age_s:.0f} s ago"


COLUMNS = ("trial", "axes", "state", "epoch", "val Dice", "host", "log")
RIGHT = ("epoch", "val Dice")


def render(sweep: Sweep, rows: Sequence[TrialStatus], answer: Answer, width: int, max_rows: int = 0) -> RenderableType:
    """All that status shows. max_rows: so many trials at most, those that live first; 0 = all, in the sweep's order."""
    shown = list(rows)
    if max_rows and len(rows) > max_rows:
        shown = sorted(rows, key=lambda row: STATES.index(row.status))[:max_rows]
    parts: list[RenderableType] = [render_table(title_of(sweep, rows), shown, width)]
    if len(shown) < len(rows):
        parts.append(Text(f"and {len(rows) - len(shown)} more trials"))
    parts += [Text(line) for line in (*failure_lines(sweep, rows), *wait_lines(sweep, rows))]
    parts += [Text(line) for line in wandb_status(sweep.folder, rows).lines()]
    if line := source_line(answer):
        parts.append(Text(line, style="dim"))
    return Group(*parts)


def render_table(title: str, rows: Sequence[TrialStatus], width: int) -> RenderableType:
    """A table; of many rows one without lines and folds, because rich takes 0.6 s for a thousand.

    A narrow one leaves out the paths of the logs, which `jobs/logs.py` knows too.
    """
    columns = COLUMNS if width >= LOG_WIDTH else COLUMNS[:-1]
    lines = [_cells(row)[: len(columns)] for row in rows]
    if len(rows) > MAX_FOLDED:
        return plain_table(title, [columns, *lines])
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in RIGHT else "left", overflow="fold")
    for row, cells in zip(rows, lines, strict=True):
        table.add_row(*(Text(cell) for cell in cells), style=STYLES.get(row.status, ""))
    return table


def plain_table(title: str, lines: Sequence[Sequence[str]]) -> Text:
    """Columns without lines between them. lines: the names of the columns, and the rows."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(
            cell.rjust(width) if name in RIGHT else cell.ljust(width)
            for name, cell, width in zip(lines[0], line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
    return Text("\n".join([title, *padded]), no_wrap=True, overflow="ignore")


def _cells(row: TrialStatus) -> tuple[str, ...]:
    return (row.trial.id, row.trial.label, state_text(row), epoch_text(row), dice_text(row), row.host, row.log)


def state_text(row: TrialStatus) -> str:
    """`queued: Priority`, `failed: gpu_memory`, `running, 12 min left, 2 restarts`."""
    if row.status == "failed":
        return f"failed: {row.cause}"
    if row.status == "interrupted":
        return f"interrupted: {row.cause or row.note}"
    parts = [f"{row.status}: {row.note}" if row.note else row.status]
    if row.status == "running" and row.left_s is not None:
        parts.append(f"{duration(row.left_s)} left")
    if row.restarts and row.status in LIVE:
        parts.append(f"{row.restarts} restart{'s' if row.restarts > 1 else ''}")
    return ", ".join(parts)


def epoch_text(row: TrialStatus) -> str:
    """Finished epochs; of a running trial the present one, with its steps."""
    if row.beat and row.status in ("running", "stalled", "unknown"):
        return f"{row.beat.epoch}/{row.epochs or '?'} step {row.beat.step}/{row.beat.steps_per_epoch}"
    return f"{row.epoch}/{row.epochs or '?'}" if row.epoch or row.epochs else ""


def dice_text(row: TrialStatus) -> str:
    return "" if row.dice is None else f"{row.dice:.4f}"


def failure_lines(sweep: Sweep, rows: Sequence[TrialStatus]) -> Iterator[str]:
    """Each distinct failure once: its trials, the error, what to do, and for code the traceback."""
    for failed in group_failures(rows):
        verdict = failed.verdict
        yield f"\n{verdict.cause}: {_named(failed.rows)}"
        first = failed.rows[0]
        if first.note and first.note != verdict.advice:
            yield f"  {first.note.splitlines()[0][:400]}"
        yield f"  {verdict.advice}"
        even_so = () if verdict.retryable else ("--even-so",)
        yield f"  next: {typed('jobs/retry.py', sweep.folder, '--cause', verdict.cause, *even_so)}"
        if verdict.traceback:
            lines = verdict.traceback.splitlines()
            cut = ["..."] if len(lines) > MAX_TRACEBACK_LINES else []
            yield "\n".join(f"  | {line}" for line in [*cut, *lines[-MAX_TRACEBACK_LINES:]])


def group_waits(rows: Sequence[TrialStatus]) -> dict[Wait, list[TrialStatus]]:
    """The queued trials that will not start on their own, by what they wait for."""
    groups: dict[Wait, list[TrialStatus]] = {}
    for row in rows:
        if row.wait and row.status == "queued":
            groups.setdefault(row.wait, []).append(row)
    return groups


def wait_lines(sweep: Sweep, rows: Sequence[TrialStatus]) -> Iterator[str]:
    """Why queued trials will not start on their own, each reason once, with advice."""
    for wait, waiting in group_waits(rows).items():
        yield f"\n{wait.reason}: {_named(waiting)}"
        yield f"  {wait.advice}"
        if wait.is_held:
            flag = "--failed" if wait.kind == "failed_launch" else "--held"
            yield f"  next: {typed('jobs/retry.py', sweep.folder, flag)}"
        elif wait.kind == "never":
            ids = [row.trial.id for row in waiting] if len(waiting) <= MAX_NAMED else []
            yield f"  next: {typed('jobs/cancel.py', sweep.folder, *ids)}"


def _named(rows: Sequence[TrialStatus]) -> str:
    """`2 trials: 3f9a..., 77b0...`"""
    count = len(rows)
    named = ", ".join(row.trial.id for row in rows[:MAX_NAMED])
    more = f" and {count - MAX_NAMED} more" if count > MAX_NAMED else ""
    return f"{count} trial{'s' if count > 1 else ''}: {named}{more}"


def to_document(sweep: Sweep, rows: Sequence[TrialStatus], answer: Answer) -> dict[str, Any]:
    """What --json prints."""
    counts = Counter(row.status for row in rows)
    return {
        "format_version": FORMAT_VERSION,
        "sweep": sweep.name,
        "folder": str(sweep.folder),
        "time": time.time(),
        "slurm": {"source": answer.source, "why": answer.why, "age_s": round(answer.age_s, 1)},
        "counts": {state: counts[state] for state in STATES},
        "trials": [_trial(row) for row in rows],
        "failures": [
            {
                "cause": failed.verdict.cause,
                "signature": failed.verdict.signature,
                "advice": failed.verdict.advice,
                "retryable": failed.verdict.retryable,
                "traceback": failed.verdict.traceback,
                "trials": [row.trial.id for row in failed.rows],
            }
            for failed in group_failures(rows)
        ],
        "waits": [{**asdict(wait), "trials": [row.trial.id for row in of]} for wait, of in group_waits(rows).items()],
        "wandb": wandb_status(sweep.folder, rows).to_dict(),
    }


def _trial(row: TrialStatus) -> dict[str, Any]:
    beat, submission = row.beat, row.submission
    return {
        "id": row.trial.id,
        "label": row.trial.label,
        "axes": row.trial.axes,
        "state": row.status,
        "cause": row.cause,
        "note": row.note,
        "epoch": row.epoch,
        "epochs": row.epochs,
        "step": beat.step if beat else None,
        "steps_per_epoch": beat.steps_per_epoch if beat else None,
        "images_per_s": beat.images_per_s if beat else None,
        "left_s": row.left_s,
        "val_dice": row.dice,
        "restarts": row.restarts,
        "host": row.host,
        "cluster": submission.cluster if submission else "",
        "job_id": submission.job_id if submission else "",
        "log": row.log,
    }
