"""The leaderboard as a Parquet file, for notebooks: the rows of jobs.reporting.rows with their types."""

from __future__ import annotations

import io
import json
from typing import Any

from jobs.reporting.rows import rows_of
from jobs.reporting.statistics.verdict import Leaderboard
from jobs.reporting.statistics.wording import verdict_of
from jobs.runs.trial import Sweep


def render_parquet(sweep: Sweep, board: Leaderboard) -> bytes:
    """A row per cell, and in the metadata the sweep, its data and the verdict. Raises ValueError without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            "--format parquet needs pyarrow: pip install 'petseg[parquet]', or take --format csv"
        ) from None
    rows = rows_of(board)
    columns = {name: unify([row[name] for row in rows]) for name in (rows[0] if rows else ())}
    verdict = verdict_of(board)
    notes = {
        "sweep": sweep.name,
        "manifest_hash": ",".join(sweep.hashes),
        "verdict": json.dumps([verdict.lead, *verdict.points]),
    }
    table = pyarrow.table(columns).replace_schema_metadata(notes)
    content = io.BytesIO()
    parquet.write_table(table, content)
    return content.getvalue()


def unify(values: list[Any]) -> list[Any]:
    """The values, as floats if they mix int and float, and as strings if they mix other types; None stays None."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    return values if len(kinds) <= 1 else [None if value is None else str(value) for value in values]
