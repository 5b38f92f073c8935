"""The first rows of the report's leaderboard, shown below a table that is redrawn regularly."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from rich.text import Text

from jobs.runs.trial import Sweep
from jobs.state.table import plain_table
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.layout import RESULT_NAME
from shards.command import typed

TOP = 5  # cells
INTERVALS = "[ ]: marginal 95 % of a mean, simultaneous 95 % of a difference, which excludes 0 exactly where p < 0.05"
RESULTS = ("val Dice", "rank", "seeds", "from the best", "p", "finding")


class Leaders:
    """The leaderboard, computed in a thread after each new result: it takes 5 s for 1,000 trials."""

    def __init__(self) -> None:
        self._known: object = None
        self._text = Text("")
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()

    @property
    def height(self) -> int:
        """Lines."""
        return self._text.plain.count("\n") + 1 if self._text else 0

    def look(self, sweep: Sweep, rows: Sequence[TrialStatus]) -> Text:
        """The newest text, empty before the first result; starts to compute another after a new result."""
        known = results_of(rows)
        if known and known != self._known and not (self._thread and self._thread.is_alive()):
            self._known = known
            self._thread = threading.Thread(target=self._work, args=(sweep, rows), daemon=True)
            self._thread.start()
        return self._text

    def pause(self, seconds: float) -> None:
        """Wait for some seconds, or until a new text is ready."""
        if self._ready.wait(seconds):
            self._ready.clear()

    def last(self, sweep: Sweep, rows: Sequence[TrialStatus], wait_s: float) -> Text:
        """The text of exactly these rows if it is ready in time, or else the newest."""
        if self._thread:
            self._thread.join(wait_s)
        self.look(sweep, rows)
        if self._thread:
            self._thread.join(wait_s)
        return self._text

    def _work(self, sweep: Sweep, rows: Sequence[TrialStatus]) -> None:
        try:
            self._text = lead(sweep, rows)
        except Exception as error:  # a damaged file of one trial must not end the watch
            self._text = Text(f"no leaderboard: {type(error).__name__}: {error}")
        self._ready.set()


def results_of(rows: Sequence[TrialStatus]) -> object:
    """A key that changes with the trials and their results; None if no trial has finished."""
    done = [row.trial for row in rows if row.status == "done"]
    times = tuple((trial.id, (trial.folder / RESULT_NAME).stat().st_mtime_ns) for trial in done)
    return (len(rows), times) if times else None


def lead(sweep: Sweep, rows: Sequence[TrialStatus]) -> Text:
    """The report's verdict in a sentence and the first rows of its leaderboard, for cells with a finished trial."""
    from jobs.reporting.rows import shown
    from jobs.reporting.statistics.records import read_record  # these take a second to import, because of scipy
    from jobs.reporting.statistics.verdict import build_leaderboard
    from jobs.reporting.statistics.wording import lead as verdict_lead
    from jobs.reporting.statistics.wording import short

    board = build_leaderboard(sweep, [read_record(row, epochs=False) for row in rows])
    cells = [row for row in shown(board) if row["#"]]
    axes = board.axes or ["trials"]
    columns = ["#", *axes, *(name for name in RESULTS if any(row[name] for row in cells))]
    lines = [[short(name) if name in axes else name for name in columns]]
    lines += [[row[name] for name in columns] for row in cells[:TOP]]
    text = Text("\n").append_text(Text(verdict_lead(board))).append("\n").append_text(plain_table("", lines))
    if board.val:
        text.append(f"\n{INTERVALS}")
    if len(cells) > TOP:
        more = len(cells) - TOP
        text.append(f"\nand {more} more cell{'s' * (more > 1)}: {typed('jobs/report.py', sweep.folder)}")
    return text
