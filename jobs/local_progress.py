"""How the trials that run on this machine come along: a table that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import heapq
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs.trial import Trial
from jobs.vitals import planned, planned_epochs, read_heartbeat, read_last_row
from petseg.progress import duration

LOOK_EVERY_S = 1.0  # on a terminal
LINE_EVERY_S = 30.0  # in a log file
MAX_ROWS = 20
BAR_WIDTH, MIN_BAR_WIDTH = 16, 6
GAP = 2  # columns between two cells

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """One trial that runs."""

    trial: Trial
    epoch: int = 0  # finished
    epochs: int = 0  # 0 = not known yet
    share: float = 0.0  # of its steps
    dice: float | None = None  # of the last epoch
    left_s: float | None = None  # of training; None until its pace is known
    is_saved: bool = False  # it was told to stop, and has

    @property
    def text(self) -> str:
        """`unet elastic seed=0: epoch 3/10, val Dice 0.7123, 2 min left`."""
        parts = [f"epoch {self.epoch}/{self.epochs or '?'}"]
        parts += [f"val Dice {self.dice:.4f}"] if self.dice is not None else []
        return f"{self.trial.label}: {', '.join([*parts, self.time])}"

    @property
    def cells(self) -> tuple[str, str, str]:
        """`epoch 3/10`, `Dice 0.7123`, `2 min left`, each empty if it is not known."""
        dice = "" if self.dice is None else f"Dice {self.dice:.4f}"
        return f"epoch {self.epoch}/{self.epochs or '?'}", dice, self.time

    @property
    def time(self) -> str:
        if self.share >= 1:
            return "finishing"  # it measures test, and writes what it found
        if self.left_s is not None:
            return f"{duration(self.left_s)} left"
        return "saved" if self.is_saved else "starting"


@dataclass
class LocalProgress:
    """The trials of one launch on this machine; the launcher says which jobs start and end."""

    trials: Sequence[Trial]
    places: int  # trials that run at a time
    began: dict[str, float] = field(default_factory=dict)  # trial id -> when its job started
    ran: dict[str, float] = field(default_factory=dict)  # trial id -> seconds, of those that ended

    def started(self, trials: Sequence[Trial]) -> None:
        self.began |= {trial.id: time.time() for trial in trials}

    def ended(self, trials: Sequence[Trial]) -> None:
        """Their job is over; how long a trial of several took is not told by that."""
        for trial in trials:
            took = time.time() - self.began[trial.id]
            self.ran.setdefault(trial.id, took if len(trials) == 1 else 0.0)

    def look(self) -> list[Look]:
        """The trials that run now; notes those that have ended while others of their job go on."""
        running = []
        for trial in [trial for trial in self.trials if trial.id in self.began and trial.id not in self.ran]:
            state = trial.state()
            said = state.get("status") if state.get("time", 0.0) >= self.began[trial.id] else None
            if said == "running":
                running.append(look_at(trial, float(state["time"])))
            elif said in ("done", "pruned", "failed"):
                self.ran[trial.id] = float(state["time"]) - self.began[trial.id]
            elif len(running) < self.places:
                # its process imports what it needs, or it waits for its turn
                running.append(_idle(trial, is_saved=said == "interrupted"))
        return running[: self.places]

    def left_s(self, running: Sequence[Look]) -> float | None:
        """Until the last trial ends, if those that wait take as long as the others; None while no pace is known."""
        took = [seconds for seconds in self.ran.values() if seconds > 0]
        took = took or [seconds for look in running if (seconds := self._expected_s(look))]
        if not took:
            return None
        one_s = fmean(took)
        places = [one_s if look.left_s is None else look.left_s for look in running] or [0.0]
        heapq.heapify(places)
        for _ in range(len(self.trials) - len(self.ran) - len(running)):
            if len(places) < self.places:
                heapq.heappush(places, one_s)
            else:
                heapq.heapreplace(places, places[0] + one_s)
        return max(places)

    def _expected_s(self, look: Look) -> float:
        """How long a trial that runs takes in all; 0 if that cannot be told."""
        if look.share < 1:
            return (look.left_s or 0.0) / (1 - look.share)
        return time.time() - self.began.get(look.trial.id, time.time())

    def summary(self, running: Sequence[Look]) -> str:
        """`3 of 12 trials have ended, 2 run, 7 wait; about 14 min left`."""
        waiting = len(self.trials) - len(self.ran) - len(running)
        left_s = self.left_s(running)
        about = "how long it takes is not known yet" if left_s is None else f"about {duration(left_s)} left"
        return f"{len(self.ran)} of {len(self.trials)} trials have ended, {len(running)} run, {waiting} wait; {about}"

    def render(self, running: Sequence[Look], width: int) -> RenderableType:
        """A line for each trial on a terminal of so many columns, in which only its name and the bar are cut short."""
        table = Table.grid(padding=(0, GAP))
        for justify in ("left", "left", "right", "right", "right"):
            table.add_column(justify=justify, no_wrap=True)
        cells = [look.cells for look in running[:MAX_ROWS]]
        left = width - sum(GAP + max(map(len, column)) for column in zip(*cells, strict=True))
        longest = max((len(look.trial.label) for look in running), default=0)
        bar = max(MIN_BAR_WIDTH, min(BAR_WIDTH, left - longest - GAP))
        for look, texts in zip(running, cells, strict=False):
            name = Text(look.trial.label)
            name.truncate(max(MIN_BAR_WIDTH, left - bar - GAP), overflow="ellipsis")
            table.add_row(name, ProgressBar(total=1.0, completed=look.share, width=bar), *texts)
        return Group(table, Text(self.summary(running), style="bold"))


def _idle(trial: Trial, is_saved: bool) -> Look:
    """A trial that does not train now: it has saved, or it has not begun in this launch."""
    row, epochs = read_last_row(trial.folder), planned_epochs(trial.folder)
    epoch = int(row.get("epoch", 0))
    return Look(trial, epoch, epochs, epoch / epochs if epochs else 0.0, row.get("val/dice"), is_saved=is_saved)


def look_at(trial: Trial, began: float) -> Look:
    """How far a trial has come since it began."""
    row, beat, plan = read_last_row(trial.folder), read_heartbeat(trial.folder), planned(trial.folder)
    epoch, dice = int(row.get("epoch", 0)), row.get("val/dice")
    epochs = planned_epochs(trial.folder)
    if beat is None or beat.time < began:  # of an earlier life
        return Look(trial, epoch, epochs, epoch / epochs if epochs else 0.0, dice)
    done, total = (beat.epoch - 1) * beat.steps_per_epoch + beat.step, beat.epochs * beat.steps_per_epoch
    return Look(trial, epoch, epochs, min(1.0, done / max(total, 1)), dice, beat.left_s(plan))


@contextlib.contextmanager
def shown(progress: LocalProgress) -> Iterator[None]:
    """Show it while the block runs, by a thread of its own: the launcher waits for processes meanwhile."""
    stop = threading.Event()
    on_terminal = sys.stderr.isatty()
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(Live(console=Console(stderr=True), auto_refresh=False)) if on_terminal else None
        thread = threading.Thread(target=_show, args=(progress, stop, live), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if live:
                live.update("", refresh=True)  # what ended has its own lines above


def _show(progress: LocalProgress, stop: threading.Event, live: Live | None) -> None:
    said: list[str] = []
    while not stop.wait(LOOK_EVERY_S if live else LINE_EVERY_S):
        try:
            running = progress.look()
        except (OSError, ValueError) as error:  # a folder that cannot be read now: look again
            logger.debug("progress: %s", error)
            continue
        if live:
            live.update(progress.render(running, live.console.width), refresh=True)
            continue
        lines = [progress.summary(running), *(look.text for look in running[:MAX_ROWS])]
        if lines != said:  # a log file needs no line that says what the last one said
            for line in lines:
                logger.info("%s", line)
        said = lines
