"""Turn a sweep into one self-contained page, and its leaderboard into a table.

python jobs/report.py lab
python jobs/report.py lab --format csv --out lab.csv
python jobs/report.py lab --format parquet
python jobs/report.py lab --to wandb
python jobs/report.py lab --serve
python jobs/report.py runs/single

Exit code 0; 4 if Slurm does not say where some trials stand, which the page then shows as unknown.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import tyro

from jobs.runs.single_runs import find_runs
from jobs.runs.trial import Sweep
from jobs.state.observed import observe
from shards.command import NOT_KNOWN, OK, run_command
from shards.command.flags import parse
from shards.files import write_whole
from shards.terminal import Terminal, table_terminal

if TYPE_CHECKING:
    from rich.table import Table

    from jobs.reporting.statistics.records import Record
    from jobs.reporting.statistics.verdict import Leaderboard

REPORT_NAME, PARQUET_NAME = "report.html", "leaderboard.parquet"
LEFT = ("finding",)


@dataclass(frozen=True)
class Command:
    """Write a sweep's report.html and show its leaderboard."""

    sweep: Annotated[str, tyro.conf.Positional] = "lab"
    """Name of the sweep, or its folder; or a folder of single runs, such as runs/single, which are compared too."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie."""
    format: Literal["html", "md", "csv", "json", "parquet"] = "html"
    """html: the page. The others: the leaderboard alone, the same rows, with all digits in csv, json and parquet (which
    needs pyarrow)."""
    shards: str = ""
    """Folder of the shard set whose pictures the page is to show: best, median and worst ones, and where two models
    disagree. A report opens no shards that are not named here."""
    out: Path | None = None
    """Where to write; by default report.html or leaderboard.parquet in the sweep's folder, and to the terminal what is
    text."""
    to: Literal["file", "wandb"] = "file"
    """wandb: make the sweep's Report there, or update the one it has, and print its address; its runs must be there."""
    serve: bool = False
    """Show the page on 127.0.0.1 while the sweep runs, always as it is now, to whoever has the address that is printed;
    until Ctrl-C."""
    port: int = 0
    """Where --serve listens; 0 = any free port."""

    def __post_init__(self) -> None:
        if self.to == "wandb" and (self.out or self.format != "html"):
            raise ValueError("--to wandb makes a Report of its own form: --format and --out are for --to file")


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    if command.serve and (command.out or command.format != "html" or command.to != "file"):
        raise ValueError("--serve shows the page and writes no file: leave --format, --out and --to out")
    if command.port and not command.serve:
        raise ValueError(f"--port {command.port} is for --serve")
    sweep = find_runs(command.sweep, command.runs_dir)
    from jobs.reporting.statistics.records import read_records  # scipy, which takes a second: `--help` does without
    from jobs.reporting.statistics.verdict import build_leaderboard

    if command.serve:
        from jobs.reporting.serve import serve_report

        serve_report(sweep, command.port, command.shards)
    observed = observe(sweep)
    records, doubt = read_records(sweep, observed.rows), observed.doubt
    board = build_leaderboard(sweep, records)
    if command.to == "wandb":
        return send(sweep, records, board) or exit_code(doubt)
    content, page = render(command, sweep, records, board), command.format == "html"
    by_default = {"html": sweep.folder / REPORT_NAME, "parquet": sweep.folder / PARQUET_NAME}
    path = command.out or by_default.get(command.format)
    if path is None:
        sys.stdout.write(str(content))
        return exit_code(doubt)
    write(path, content, by_choice=command.out is not None)
    console = table_terminal()
    if page:
        console.print(leaderboard(sweep, records, board))
    console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    return exit_code(doubt)


def render(command: Command, sweep: Sweep, records: Sequence[Record], board: Leaderboard) -> str | bytes:
    """The page, or the leaderboard in another format."""
    from jobs.reporting.page import render_page
    from jobs.reporting.parquet import render_parquet
    from jobs.reporting.rows import render_rows

    if command.format == "html":
        return render_page(sweep, records, board, command.shards)
    if command.format == "parquet":
        return render_parquet(sweep, board)
    return render_rows(sweep, board, command.format)


def write(path: Path, content: str | bytes, by_choice: bool) -> None:
    """Write the file; raises ValueError if the sweep's folder is not writable, as one of another user."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        from jobs.launch.lock import NOT_MINE

        if by_choice or error.errno not in NOT_MINE:
            raise
        elsewhere = f"--out {path.name} writes it into this folder"
        raise ValueError(f"{path} cannot be written ({error.strerror}): {elsewhere}") from None


def exit_code(doubt: str) -> int:
    """The exit code; a doubt about the trials goes to stderr, beside the result."""
    if doubt:
        sys.stderr.write(f"{doubt}\n")
    return NOT_KNOWN if doubt else OK


def send(sweep: Sweep, records: Sequence[Record], board: Leaderboard) -> int:
    """Make or update the sweep's report in wandb."""
    from jobs.reporting.wandb_report.content import compose
    from jobs.reporting.wandb_report.send import send_report

    sent = send_report(sweep, records, compose(sweep, records, board))
    Terminal(highlight=False, soft_wrap=True).print("\n".join([*sent.messages, sent.url]))
    return OK


def leaderboard(sweep: Sweep, records: Sequence[Record], board: Leaderboard | None = None) -> Table:
    """The groups by mean val Dice, and the verdict."""
    from rich.table import Table
    from rich.text import Text

    from jobs.reporting.rows import INTERVALS_NOTE, shown
    from jobs.reporting.sections.protocol import floor_of, floor_words, state_counts
    from jobs.reporting.statistics.verdict import build_leaderboard
    from jobs.reporting.statistics.wording import short, verdict_of

    board = board or build_leaderboard(sweep, records)
    counts = ", ".join(f"{count} {state}" for state, count in state_counts(records))
    floor = floor_of(records, "val")
    verdict = verdict_of(board)
    caption = "\n".join([verdict.lead, *verdict.points])
    caption += f"\n{INTERVALS_NOTE}" if board.val else ""
    name = floor_words(records).floor
    caption += f"\n{name[0].lower()}{name[1:]}: {floor:.4f}" if floor is not None else ""
    table = Table(title=Text(f"{sweep.name}: {counts}"), title_justify="left", caption=Text(caption))
    table.caption_justify = "left"
    rows = shown(board)
    empty = {title for title in (rows[0] if rows else ()) if title != "#" and not any(row[title] for row in rows)}
    for title in (name for name in (rows[0] if rows else ()) if name not in empty):
        if title in board.axes or title in LEFT:
            table.add_column(Text(short(title)), overflow="fold")
        else:
            table.add_column(Text(title), justify="right")
    for row in rows:
        table.add_row(*(Text(text.replace(" [", "\n[")) for title, text in row.items() if title not in empty))
    return table


if __name__ == "__main__":
    sys.exit(run_command(main))
