"""The leaderboard as plain rows: one list of columns for the terminal, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.reporting.statistics.records import Ranked, rank
from jobs.reporting.statistics.verdict import Leaderboard
from jobs.reporting.statistics.wording import FINDINGS, end, p_number, verdict_of
from jobs.runs.trial import Sweep

# measured of the best weights; a column that no trial has is left out: (key, title, decimals)
METRICS = (
    ("val/iou", "val IoU", 4),
    ("val/iou_dataset", "IoU over the set", 4),
    ("val/boundary_iou", "boundary IoU", 4),
    ("val/hd95_px", "HD95, px", 2),
    ("val/ece", "ECE", 4),
    ("val/loss", "val loss", 4),
)
FORMULA = ("=", "+", "-", "@")
MARKDOWN = str.maketrans({"|": "&#124;", "[": "&#91;", "]": "&#93;", "`": "&#96;"})
MARGINAL, SIMULTANEOUS = "marginal 95 %", "simultaneous 95 %"
INTERVALS_NOTE = (
    "Intervals: a mean's is marginal and holds by itself in 95 % of sweeps; those of differences are simultaneous and "
    "hold together for all pairs of cells in 95 % of sweeps; they exclude 0 exactly where p, adjusted for all pairs, "
    "is less than 0.05. A cell with one seed has no p, and marginal intervals for other pictures alone."
)
Row = dict[str, Any]


def metrics_of(board: Leaderboard) -> list[tuple[str, str, int]]:
    """The columns of METRICS that a trial of the sweep has."""
    known = {name for group in board.groups for record in group.done if record.result for name in record.result.metrics}
    return [metric for metric in METRICS if metric[0] in known]


def rows_of(board: Leaderboard) -> list[Row]:
    """A dict per group, by mean val Dice, highest first; all have the same keys, None where a number is not known."""
    names = [name for name, _, _ in metrics_of(board)]
    return [_row(board, ranked, names) for ranked in rank(board.groups)]


def _row(board: Leaderboard, ranked: Ranked, metrics: Sequence[str]) -> Row:
    group, val = ranked.group, ranked.val_dice
    mean, test = board.mean("val", group), board.mean("test", group)
    difference = board.val.from_best(group) if board.val else None
    measured = group.spread("test/dice")
    return {
        "place": ranked.rank or None,
        **group.axes,
        "val_dice": val.mean if val else None,
        "val_dice_low": mean.low if mean else None,
        "val_dice_high": mean.high if mean else None,
        "val_dice_sd": val.sd if val else None,
        "interval_covers": ("pictures" if mean.pictures_only else "seeds and pictures") if mean else None,
        "interval_kind": MARGINAL if mean else None,
        "rank_best": mean.ranks[0] if mean else None,
        "rank_worst": mean.ranks[1] if mean else None,
        "from_best": difference.value if difference else None,
        "from_best_low": difference.low if difference else None,
        "from_best_high": difference.high if difference else None,
        "p_adjusted": difference.p if difference else None,
        "from_best_kind": (SIMULTANEOUS if difference.p is not None else MARGINAL) if difference else None,
        "finding": FINDINGS[difference.finding] if difference else None,
        "seeds": len(group.done),
        "trials": len(group.records),
        "test_dice": measured.mean if measured else None,
        "test_dice_low": test.low if test else None,
        "test_dice_high": test.high if test else None,
        **{key.replace("/", "_"): s.mean if (s := group.spread(key)) else None for key in metrics},
        **{field: group.mean(field) for field in ("parameters", "images_per_s", "train_s")},
    }


def shown(board: Leaderboard) -> list[dict[str, str]]:
    """The rows for reading, by column title."""
    metrics = metrics_of(board)
    return [_shown(row, board.axes, metrics) for row in rows_of(board)]


def _shown(row: Row, axes: Sequence[str], metrics: Sequence[tuple[str, str, int]]) -> dict[str, str]:
    return {
        "#": str(row["place"] or ""),
        **({name: "?" if row[name] is None else str(row[name]) for name in axes} or {"trials": "all"}),
        "val Dice": ranged(row, "val_dice"),
        "rank": span(row["rank_best"], row["rank_worst"]),
        "seeds": f"{row['seeds']}/{row['trials']}",
        "from the best": ranged(row, "from_best", "+"),
        "p": p_cell(row["p_adjusted"]),
        "finding": row["finding"] or "",
        "test Dice": ranged(row, "test_dice"),
        **{title: number(row[key.replace("/", "_")], f".{digits}f") for key, title, digits in metrics},
    }


def ranged(row: Mapping[str, Any], name: str, sign: str = "") -> str:
    """0.9010 [0.8970, 0.9050]; sign "+": +0.0010 [-0.0030, +0.0050]"""
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if value is None:
        return ""
    return number(value, f"{sign}.4f") + (f" [{end(low, sign)}, {end(high, sign)}]" if low is not None else "")


def span(low: int | None, high: int | None) -> str:
    return "" if low is None else str(low) if low == high else f"{low}-{high}"


def p_cell(value: float | None) -> str:
    return "" if value is None else p_number(value)


def number(value: float | None, form: str = ".4f") -> str:
    return "" if value is None else format(value, form)


def render_rows(sweep: Sweep, board: Leaderboard, form: str) -> str:
    """The leaderboard as md, csv or json text."""
    return {"md": _markdown, "csv": _csv, "json": _json}[form](sweep, board)


def _markdown(sweep: Sweep, board: Leaderboard) -> str:
    verdict = verdict_of(board)
    lines = [f"# {_plain(sweep.name)}", "", _plain(verdict.lead), "", *(f"- {_plain(p)}" for p in verdict.points), ""]
    note = f"\n{INTERVALS_NOTE}\n" if board.val else ""
    return "\n".join(lines) + "\n" + table_markdown(board) + note


def table_markdown(board: Leaderboard) -> str:
    """The leaderboard as a Markdown table, without verdict and notes."""
    rows = shown(board)
    titles = list(rows[0]) if rows else []
    lines = [_cells(titles), _cells(["---"] * len(titles)), *(_cells(list(row.values())) for row in rows)]
    return "\n".join(lines) + "\n"


def _cells(texts: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(text) for text in texts)} |"


def _plain(text: str) -> str:
    """The text as one Markdown cell without HTML or links, whatever a name holds."""
    return html.escape(" ".join(text.split()), quote=False).translate(MARKDOWN)


def _csv(sweep: Sweep, board: Leaderboard) -> str:
    rows, file = rows_of(board), io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([[harmless(name) for name in row] for row in rows[:1]])
    writer.writerows([[harmless(value) for value in row.values()] for row in rows])
    return file.getvalue()


def harmless(value: Any) -> Any:
    """The value for a spreadsheet: text that begins like a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(FORMULA) else value


def _json(sweep: Sweep, board: Leaderboard) -> str:
    verdict = verdict_of(board)
    content = {
        "sweep": sweep.name,
        "manifest_hash": sweep.manifest_hash,
        "manifest_hashes": list(sweep.hashes),
        "verdict": [verdict.lead, *verdict.points],
        "intervals": INTERVALS_NOTE,
        "val_pictures": board.val.num_pictures if board.val else None,
        "rows": rows_of(board),
    }
    return json.dumps(content, indent=2) + "\n"
