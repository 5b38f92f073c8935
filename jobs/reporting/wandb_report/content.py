"""The content of a sweep's wandb Report: its text and the panels of its runs, without importing wandb.

petseg.tracking.client writes the runs: rows by `epoch`, the fields of their config by their dotted names,
`best_dice` in their summary, the group (the sweep's name) and the job type `train`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jobs.reporting.rows import INTERVALS_NOTE, table_markdown
from jobs.reporting.sections.protocol import protocol, state_counts, warnings
from jobs.reporting.sections.trials import attempts_of, reproduce
from jobs.reporting.statistics.records import Record, rank
from jobs.reporting.statistics.verdict import Leaderboard
from jobs.reporting.statistics.wording import short, verdict_of
from jobs.runs.trial import SEED_AXIS, Sweep
from shards.command import typed, without_secrets

CURVES = {
    "val/dice": "Dice on val",
    "train/dice": "Dice on train",
    "val/loss": "Loss on val",
    "train/loss": "Loss on train",
}
RANKED_BY = "best_dice"  # in a run's summary: of its best epoch, which pruned trials have too
SUMMARY_DICE = "val/dice"  # in a run's summary: of its best weights
PICTURES = "val/overlays"
MAX_LEVELS = 12  # of an axis that curves are grouped by: a search's learning rates are a level each
MAX_LINES = 48
MAX_COMMANDS = 6
MAX_TITLE = 128  # characters, by wandb-workspaces' own check


@dataclass(frozen=True)
class Lines:
    """Curves over the epochs: the mean of a group of runs, and an area around it."""

    title: str
    metric: str
    area: Literal["stddev", "minmax"]
    group_by: str = ""  # a config field; "" = as the grid's runs are grouped
    most: int = MAX_LINES
    kind: Literal["lines"] = "lines"


@dataclass(frozen=True)
class Parallel:
    """A line per run through its values on the axes to its Dice."""

    title: str
    axes: tuple[str, ...]  # config fields
    metric: str  # of the summary
    kind: Literal["parallel"] = "parallel"


@dataclass(frozen=True)
class Importance:
    """The importance of config fields for a metric of the summary."""

    metric: str
    kind: Literal["importance"] = "importance"


@dataclass(frozen=True)
class Pictures:
    title: str
    metric: str
    kind: Literal["pictures"] = "pictures"


Panel = Lines | Parallel | Importance | Pictures


@dataclass(frozen=True)
class Heading:
    text: str
    kind: Literal["heading"] = "heading"


@dataclass(frozen=True)
class Markdown:
    text: str
    kind: Literal["markdown"] = "markdown"


@dataclass(frozen=True)
class Grid:
    """Panels on the sweep's runs."""

    name: str
    panels: tuple[Panel, ...]
    group_by: tuple[str, ...] = ()  # config fields in which runs of one line are alike
    kind: Literal["grid"] = "grid"


Block = Heading | Markdown | Grid


@dataclass(frozen=True)
class Content:
    """A report."""

    title: str
    description: str
    group: str  # of the runs that its grids draw
    blocks: tuple[Block, ...] = field(default=())


def compose(sweep: Sweep, records: Sequence[Record], board: Leaderboard) -> Content:
    """The report of a sweep; the same folder gives the same content."""
    counts = ", ".join(f"{count} {state}" for state, count in state_counts(records))
    verdict = verdict_of(board)
    axes = [axis for axis in board.axes if len({record.values.get(axis) for record in records}) <= MAX_LEVELS]
    known = {name for record in records for row in record.rows for name in row}
    curves = {metric: title for metric, title in CURVES.items() if metric in known}
    blocks: list[Block] = [
        Heading("Verdict"),
        Markdown(plain("\n".join([f"**{verdict.lead}**", "", *(f"- {point}" for point in verdict.points)]))),
        Heading("Leaderboard"),
        Markdown(plain(f"{table_markdown(board)}\nMeans over seeds. {INTERVALS_NOTE if board.val else ''}".rstrip())),
        Heading("Curves"),
        *grids(sweep.name, axes, curves, whole=len(axes) == len(board.axes)),
        Heading("What matters"),
        Grid(
            f"{sweep.name}: trials",
            (
                Parallel("Axes and val Dice", tuple(board.axes or (SEED_AXIS,)), SUMMARY_DICE),
                Importance(RANKED_BY),
                Pictures("Validation pictures with their masks", PICTURES),
            ),
        ),
        Heading("How it was measured"),
        Markdown(plain(facts(protocol(sweep, records, board.val), warnings(records, board.axes, list(sweep.axes))))),
        Heading("How to reproduce it"),
        Markdown(without_secrets(commands(sweep, board))),
    ]
    title = f"petseg sweep {sweep.name}".replace("/", "-")[:MAX_TITLE]
    description = without_secrets(f"{len(records)} trials: {counts}. {verdict.lead}")
    return Content(title, description, sweep.name, tuple(blocks))


def plain(text: str) -> str:
    """The text without HTML and without secrets in addresses."""
    return without_secrets(text).replace("<", "&lt;")


def grids(name: str, axes: Sequence[str], curves: dict[str, str], whole: bool) -> list[Grid]:
    """The curves of the cells with their spread over seeds, and the curves of each axis' levels over all other axes.

    whole: the axes distinguish all cells
    """
    if not curves:
        return []
    curve_grids = []
    if whole:
        cells = " · ".join(short(axis) for axis in axes) or "all trials"
        panels = [Lines(f"{title}, {cells}: mean and sd over seeds", m, "stddev") for m, title in curves.items()]
        curve_grids.append(Grid(f"{name}: {cells}", tuple(panels), tuple(axes)))
    if len(axes) > 1 or not whole:
        panels = [
            Lines(f"{title}, {short(axis)}: mean and range", metric, "minmax", axis)
            for axis in axes
            for metric, title in curves.items()
        ]
        if panels:
            curve_grids.append(Grid(f"{name}: one axis at a time", tuple(panels)))
    return curve_grids


def facts(protocol_facts: Iterable[tuple[str, str]], warned: Sequence[str]) -> str:
    lines = [f"- **{name}**: {text}" for name, text in protocol_facts]
    return "\n".join([*lines, *(["", "**Before you believe it:**", ""] if warned else []), *(f"- {w}" for w in warned)])


def commands(sweep: Sweep, board: Leaderboard) -> str:
    """The commands and the code that run the best trial of each of the first cells again."""
    lines: list[str] = []
    codes: dict[str, None] = {}
    for ranked in rank(board.groups)[:MAX_COMMANDS]:
        best = ranked.group.best()
        if best is None:
            continue
        lines += [f"# {ranked.group.label}, {best.id}", reproduce(best) or "# its config.json cannot be read"]
        codes |= dict.fromkeys(attempt.code or "the working tree" for attempt in attempts_of(best))
    sets = f"the shard set{'s' * (len(sweep.hashes) > 1)} {', '.join(one[:10] for one in sweep.hashes)}"
    code = f" with the code {', '.join(codes)}" if codes else ""
    text = (
        f"The best trial of each cell, on {sets}{code}; each trial's whole config is "
        f"in its run. This page is made and updated by `{typed('jobs/report.py', sweep.name, '--to', 'wandb')}`, which "
        "replaces what is changed here by hand: copy it first."
    )
    return "\n".join([text, "", "```", *lines, "```"] if lines else [text])
