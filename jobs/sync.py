"""Send a sweep to wandb from its metrics.jsonl: what ran offline, without wandb, or while wandb was gone.

python jobs/sync.py lab
python jobs/sync.py lab --project petseg --entity my-team --parallel 8
python jobs/sync.py runs/single/unet-none-3f9a

Each trial becomes the same wandb run as when it sends itself, and so does each of its evaluations. wandb is asked for
the last step that it has, and gets the rows after it, so nothing is sent twice, however often this command runs or is
interrupted. Running trials are left alone.

Exit code 0: wandb has everything that has ended; 2: wrong use, no key, or no wandb to be reached; 3: wandb has refused
trials for good; 75: some were not sent (time, limits, network): the same command sends those.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import tyro

from jobs.runs.single_runs import find_sweep_with_jobs
from petseg.run_folder.layout import CONFIG_NAME
from shards.command import FAILED, INTERRUPTED, OK, run_command, without_secrets
from shards.command.flags import parse
from shards.terminal import Terminal

if TYPE_CHECKING:
    from rich.console import Console

    from jobs.wandb_sync.replay import Outcome
    from jobs.wandb_sync.trials import SyncPlan

LOCK_NAME = "wandb-sync.lock"


@dataclass(frozen=True)
class Command:
    """Send a sweep to wandb from its metrics.jsonl."""

    sweep: Annotated[str, tyro.conf.Positional]
    """Name of the sweep, or its folder; or the folder of a single run."""
    project: str = ""
    """Project of the runs; by default the one of their config."""
    entity: str = ""
    """User or team of the runs; by default the one of their config, or else the key's."""
    parallel: int = 4
    """Runs at a time."""
    runs_per_s: float = 2.0
    """Runs that are begun in a second at most, over all trials; wandb's limit is 80 for a whole project."""
    timeout_s: float = 120.0
    """Longest time for one run, which is then left for the next call."""
    artifacts: Literal["config", "none", "small", "all"] = "config"
    """What wandb keeps of finished trials besides numbers, as tracking.artifacts, which it is by default."""
    again: bool = False
    """Ask wandb about runs too that are noted as sent."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    from filelock import FileLock, Timeout

    from jobs.wandb_sync.login import require_wandb
    from jobs.wandb_sync.replay import Limits, replay_all
    from jobs.wandb_sync.trials import Target, mark_sent, plan_replays  # numpy, which `--help` does without

    limits = Limits(command.parallel, command.runs_per_s, command.timeout_s)
    folder = find_folder(command.sweep, command.runs_dir)
    url = require_wandb()
    console = Terminal(soft_wrap=True, highlight=False)
    try:
        with FileLock(folder / LOCK_NAME, timeout=0):
            which = None if command.artifacts == "config" else command.artifacts
            target = Target(url, command.project, command.entity, which)
            plan = plan_replays(folder, target, command.again)
            for line in plan.left_out:
                console.print(line)
            outcomes = replay_all(plan.replays, limits, mark_sent)
    except Timeout:
        raise ValueError(f"another jobs/sync.py is at work on {folder}: wait for it") from None
    return tell(outcomes, plan, url, console)


def find_folder(name: str, runs_dir: Path) -> Path:
    """The folder of a sweep or of a single run. Raises ValueError if there is none."""
    if (Path(name) / CONFIG_NAME).exists():
        return Path(name)
    return find_sweep_with_jobs(name, runs_dir, "name the folder of one of them").folder


def tell(outcomes: Sequence[Outcome], plan: SyncPlan, url: str, console: Console) -> int:
    """Print the outcome of the runs, their address and each different trouble once; returns the exit code."""
    evaluations = {replay.id for replay in (*plan.replays, *plan.sent_before) if replay.is_evaluation}
    trials = {replay.id for replay in (*plan.replays, *plan.sent_before)} - evaluations
    counts = [count_text(kind, ids, outcomes, plan) for kind, ids in (("trial", trials), ("evaluation", evaluations))]
    console.print("; ".join([*filter(None, counts), f"{sum(o.rows for o in outcomes if o.ok)} new rows"]))
    addresses = dict.fromkeys([*plan.project_urls, *(outcome.project_url for outcome in outcomes)])
    for address in [one for one in addresses if one] or [without_secrets(url)]:
        console.print(f"wandb: {address}")
    troubles: dict[str, list[str]] = {}
    for outcome in outcomes:
        if not outcome.ok:
            troubles.setdefault(outcome.trouble, []).append(outcome.id)
    for trouble, ids in troubles.items():
        more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
        sys.stderr.write(f"not sent: {', '.join(ids[:3])}{more}: {trouble}\n")
    if any(outcome.refused for outcome in outcomes):
        return FAILED
    if sum(outcome.ok for outcome in outcomes) < len(plan.replays):
        sys.stderr.write("the same command sends what is left\n")
        return INTERRUPTED
    return OK


def count_text(kind: str, ids: AbstractSet[str], outcomes: Sequence[Outcome], plan: SyncPlan) -> str:
    """`6 trials: 0 sent, 6 already there`; "" for evaluations if there are none."""
    if not ids and kind != "trial":
        return ""
    ended = [outcome for outcome in outcomes if outcome.id in ids]
    sent, done = sum(outcome.is_new for outcome in ended), sum(outcome.ok for outcome in ended)
    noted = sum(replay.id in ids for replay in plan.sent_before)
    missing = len(ids) - noted - done
    parts = [f"{sent} sent", f"{noted + done - sent} already there", *([f"{missing} not sent"] if missing else [])]
    return f"{len(ids)} {kind}{'' if len(ids) == 1 else 's'}: {', '.join(parts)}"


if __name__ == "__main__":
    sys.exit(run_command(main))
