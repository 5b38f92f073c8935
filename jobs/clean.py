"""Free the space of finished trials: checkpoints but the best, wandb's folders, logs of jobs that were not the last.

python jobs/clean.py lab --dry-run
python jobs/clean.py lab --older-than 0m --checkpoints-only
python jobs/clean.py lab --older-than 30d --best-too

Trials that run or can resume are left alone. Config, metrics, result, overlays, masks and, without --best-too, the best
weights stay; so do offline runs of wandb until `jobs/sync.py` or `wandb sync` has sent them. The size of files that are
too young to go, and of the best weights, is shown. Exit code 4 if Slurm does not say which trials still run: those are
left alone.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import tyro

from jobs.runs.single_runs import find_runs
from jobs.runs.trial import Sweep
from jobs.state.observed import observe
from jobs.state.trial_status import LIVE, TrialStatus
from petseg.run_folder.layout import CHECKPOINTS_NAME, RESULT_NAME
from shards.command import NOT_KNOWN, OK, run_command, typed
from shards.command.flags import parse
from shards.files import read_json_object
from shards.terminal import Terminal

SECONDS = {"m": 60, "h": 3600, "d": 86400}
_STEP = re.compile(r"step-(\d{8})(?:\.(\d+))?")
_LEFTOVER = re.compile(r"\.step-\d{8}(?:\.\d+)?\.tmp|unusable-step-.*")
_OF_JOB = re.compile(r"(\d+(?:_\d+)?)_(?:\d+_log\.(?:out|err)|\d+_result\.pkl|submitted\.pkl)")
_SUBMISSION = re.compile(r"(\d+)_submission\.sh")


@dataclass(frozen=True)
class Command:
    """Free the space of finished trials."""

    sweep: Annotated[str, tyro.conf.Positional]
    """Name of the sweep, or its folder; or a folder of single runs, such as runs/single."""
    older_than: str = "14d"
    """Only what was finished so long ago: 30m, 12h, 14d."""
    checkpoints_only: bool = False
    """Leave wandb's folders and logs."""
    best_too: bool = False
    """Remove the best weights too: of a finished trial nothing can be evaluated, predicted or exported any more, and
    the report shows its numbers without pictures of its masks."""
    dry_run: bool = False
    """Show what would go, and do nothing."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie."""


@dataclass(frozen=True)
class Removable:
    """A file or folder that nobody needs any more."""

    path: Path
    what: str
    num_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    age_s = parse_age(command.older_than)
    sweep = find_runs(command.sweep, command.runs_dir)
    observed = observe(sweep)
    rows = observed.rows
    items = list(removable(sweep, rows, age_s, command.checkpoints_only, command.best_too))
    console = Terminal(soft_wrap=True, highlight=False)
    for item in items:
        console.print(f"{size_text(item.num_bytes):>9}  {item.path}  ({item.what})")
        if not command.dry_run:
            remove(item.path)
    verb = "would be freed" if command.dry_run else "freed"
    console.print(f"{size_text(sum(item.num_bytes for item in items))} {verb}, {len(items)} files and folders")
    for line in left_lines(command, sweep, rows, items):
        console.print(line)
    if unsent := [path for row in rows if row.status == "done" for path in unsent_runs(row.trial.folder / "wandb")]:
        console.print(f"{len(unsent)} offline wandb runs are kept: `{typed('jobs/sync.py', command.sweep)}` sends them")
    if doubt := observed.doubt:
        console.print(f"left alone: {doubt}")
    return NOT_KNOWN if doubt else OK


def parse_age(text: str) -> float:
    """`14d`, `12h` or `30m` in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", text.strip())
    if not match:
        raise ValueError(f"--older-than {text!r}: write 30m, 12h or 14d")
    return float(match[1]) * SECONDS[match[2]]


def left_lines(
    command: Command, sweep: Sweep, rows: Sequence[TrialStatus], items: Sequence[Removable]
) -> Iterator[str]:
    """What finished trials still hold, and the commands that free it."""
    going = {item.path for item in items}
    young = [item for item in removable(sweep, rows, 0.0, command.checkpoints_only, False) if item.path not in going]
    flags = ["--checkpoints-only"] if command.checkpoints_only else []
    if young:
        again = typed("jobs/clean.py", command.sweep, "--older-than", "0m", *flags)
        yield f"{_sum_text(young)} are younger than {command.older_than}, and stay: `{again}` frees them"
    spare = {item.path for item in removable(sweep, rows, 0.0, True, False)}
    best = [item for item in removable(sweep, rows, 0.0, True, True) if item.path not in spare | going]
    if best:
        again = typed("jobs/clean.py", command.sweep, "--older-than", "0m", *flags, "--best-too")
        yield (
            f"{_sum_text(best)} are the best weights of finished trials, and stay: `{again}` frees them, and then "
            "nothing of those trials can be evaluated"
        )


def _sum_text(items: Sequence[Removable]) -> str:
    return f"{size_text(sum(item.num_bytes for item in items))} in {len(items)} files and folders"


def removable(
    sweep: Sweep, rows: Sequence[TrialStatus], age_s: float, checkpoints_only: bool, best_too: bool
) -> Iterator[Removable]:
    """What can go; it lies within the sweep's folder, and no link is followed."""
    before = time.time() - age_s
    for row in rows:
        if row.trial.folder.is_symlink():  # among single runs; what it points to is not theirs
            continue
        if row.status != "done" or not _is_older(row.trial.folder / RESULT_NAME, before):
            continue
        yield from spare_checkpoints(row.trial.folder / CHECKPOINTS_NAME, best_too)
        if not checkpoints_only:
            yield from sent_runs(row.trial.folder / "wandb")
    if not checkpoints_only:
        yield from old_logs(sweep, rows, before)


def spare_checkpoints(folder: Path, best_too: bool) -> Iterator[Removable]:
    """All checkpoints of a finished run, or all but the best one; none if it cannot be told which that is."""
    steps = {
        path: (int(match[1]), int(match[2] or 0)) for path in _folders(folder) if (match := _STEP.fullmatch(path.name))
    }
    newest = max(steps, key=lambda path: steps[path], default=None)
    if newest is None:
        return
    try:
        best_step = read_json_object(newest / "state.json")["best"]["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    best = max((path for path in steps if steps[path][0] == best_step), key=lambda path: steps[path], default=None)
    if best is None or not (best / "model.safetensors").is_file():
        return
    for path in _folders(folder):
        if (best_too or path != best) and (path in steps or _LEFTOVER.fullmatch(path.name)):
            yield Removable(path, "checkpoint", size_of(path))


def sent_runs(folder: Path) -> Iterator[Removable]:
    """wandb's folders of runs that went online, or were sent since."""
    for path in _runs(folder):
        if path not in unsent_runs(folder):
            yield Removable(path, "wandb", size_of(path))


def unsent_runs(folder: Path) -> list[Path]:
    """Offline runs that `wandb sync` has not marked."""
    return [path for path in _runs(folder) if path.name.startswith("offline-") and not any(path.glob("*.synced"))]


def _runs(folder: Path) -> list[Path]:
    return [path for path in _folders(folder) if re.match(r"(offline-)?run-", path.name)]


def old_logs(sweep: Sweep, rows: Sequence[TrialStatus], before: float) -> Iterator[Removable]:
    """Logs and pickles of jobs that are no trial's last one, nor a live trial's."""
    last = {row.submission.job_id for row in rows if row.submission}
    live = {row.trial.id for row in rows if row.status in LIVE}
    given: dict[str, set[str]] = {}  # job -> its trials
    for one in sweep.all_submissions():
        given.setdefault(one.job_id, set()).add(one.trial)
    over = {job_id for job_id, trials in given.items() if job_id and job_id not in last and not trials & live}
    arrays = {job_id.partition("_")[0] for job_id in given if job_id not in over}
    for path in sorted((sweep.folder / "logs").glob("*")):
        of_job, submission = _OF_JOB.fullmatch(path.name), _SUBMISSION.fullmatch(path.name)
        goes = (of_job and of_job[1] in over) or (
            submission and submission[1] not in arrays and any(job.startswith(f"{submission[1]}_") for job in over)
        )
        if goes and path.is_file() and not path.is_symlink() and _is_older(path, before):
            yield Removable(path, "earlier job", path.stat().st_size)


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, links left out."""
    if not folder.is_dir() or folder.is_symlink():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def _is_older(path: Path, before: float) -> bool:
    try:
        return path.stat().st_mtime < before
    except OSError:
        return False


def size_of(path: Path) -> int:
    """Bytes of a folder's files."""
    return sum(Path(parent, name).lstat().st_size for parent, _, names in os.walk(path) for name in names)


def remove(path: Path) -> None:
    """A checkpoint goes out of sight first: half of one must not look like a whole one."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if _STEP.fullmatch(path.name):
        path = path.rename(path.with_name(f".{path.name}.tmp"))
    shutil.rmtree(path)


def size_text(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.exit(run_command(main))
