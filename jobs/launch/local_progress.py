"""Shows the progress of trials on this machine: a live table on a terminal, plain lines elsewhere."""

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

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs.runs.trial import Trial
from jobs.runs.trial_state import LAST_WORDS, Status, TrialState
from jobs.state.liveness import planned, planned_epochs, read_last_row, time_left_s
from petseg.run_folder.attempts import read_attempts
from petseg.run_folder.heartbeat import read_heartbeat
from shards.terminal import Terminal, duration

LOOK_EVERY_S = 1.0
LINE_EVERY_S = 30.0  # in a log file
MAX_ROWS = 20
BAR_WIDTH, MIN_BAR_WIDTH = 16, 6
GAP = 2  # columns between two cells

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningTrial:
    """One trial that runs."""

    trial: Trial
    epoch: int = 0  # finished
    epochs: int = 0  # 0 = not known yet
    share: float = 0.0  # of its steps
    dice: float | None = None  # of the last epoch
    left_s: float | None = None  # of training; None until its pace is known
    ran_s: float = 0.0  # since it began
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

    @property
    def whole_s(self) -> float:
        """About how long the whole trial takes; 0 until that is known. What it did in an earlier attempt counts too."""
        if self.left_s is None:
            return 0.0
        return max(self.ran_s + self.left_s, self.left_s / (1 - self.share) if self.share < 1 else 0.0)


@dataclass
class LocalProgress:
    """The trials of one launch on this machine, each of which is reported as soon as it begins and ends.

    The launcher says which jobs start and end. When a trial of several that share a job does so, its own state tells.
    """

    trials: Sequence[Trial]
    slots: int  # trials that run at a time
    jobs: dict[str, str] = field(default_factory=dict)  # trial id -> id of its job, once that has started
    began: dict[str, float] = field(default_factory=dict)  # trial id -> when it began; until it does, when its job did
    ran: dict[str, float] = field(default_factory=dict)  # trial id -> seconds, of those that ended; 0 = not known
    positions: dict[str, str] = field(default_factory=dict)  # of trials that share a job and have not begun
    reported: dict[str, str] = field(default_factory=dict)  # trial id -> how it ended
    lock: threading.Lock = field(default_factory=threading.Lock)

    def started(self, trials: Sequence[Trial], job_id: str, position: str) -> None:
        """A job of these trials starts. place: such as `1 of 6`, among the jobs of the launch."""
        with self.lock:
            self.jobs |= {trial.id: job_id for trial in trials}
            self.began |= {trial.id: time.time() for trial in trials}
            if len(trials) == 1:
                logger.info("%s %s: started as job %s (%s)", trials[0].id, trials[0].label, job_id, position)
                return
            logger.info("job %s (%s) started with %d trials", job_id, position, len(trials))
            numbers = enumerate(trials, start=1)
            self.positions |= {trial.id: f"{number} of {len(trials)}" for number, trial in numbers}

    def ended(self, trials: Sequence[Trial]) -> None:
        """The job of these trials is over."""
        with self.lock:
            for trial in trials:
                self._notice(trial)
                took = 0.0 if trial.id in self.positions else time.time() - self.began[trial.id]
                self.ran.setdefault(trial.id, took)
                self._report_end(trial)

    def look(self) -> list[RunningTrial]:
        """The trials that run now; reports those that have begun and ended since the last look."""
        running: list[RunningTrial] = []
        with self.lock:
            for trial in [trial for trial in self.trials if trial.id in self.began and trial.id not in self.ran]:
                status = self._notice(trial)
                if status == "running":
                    running.append(look_at(trial, self.began[trial.id]))
                elif status in LAST_WORDS:
                    self._report_end(trial)
                elif len(running) < self.slots:
                    # its process imports what it needs, or it waits for its turn
                    running.append(_idle(trial, is_saved=status == "interrupted"))
        return running[: self.slots]

    def _notice(self, trial: Trial) -> Status:
        """The trial's status in its job, empty if it has not begun; reports its start if it shares the job."""
        state = trial.state().of_job(self.jobs[trial.id])
        if not state.job_id:
            return ""
        if position := self.positions.pop(trial.id, ""):
            logger.info("%s %s: started in job %s (%s)", trial.id, trial.label, self.jobs[trial.id], position)
            self.began[trial.id] = max(self.began[trial.id], _began(trial, state))
        if state.status in LAST_WORDS:
            self.ran[trial.id] = max(0.0, state.time - self.began[trial.id])
        return state.status

    def _report_end(self, trial: Trial) -> None:
        """Report how it ended, unless that was reported before; a restarted job may repair a failure."""
        text = describe(trial, self.jobs[trial.id])
        if self.reported.get(trial.id) != text:
            self.reported[trial.id] = text
            logger.info("%s %s: %s", trial.id, trial.label, text)

    def left_s(self, running: Sequence[RunningTrial]) -> float | None:
        """Until the last trial ends, if those that wait take as long as the others; None while no pace is known."""
        took = [seconds for seconds in self.ran.values() if seconds > 0]
        took = took or [seconds for look in running if (seconds := self._expected_s(look))]
        if not took:
            return None
        one_s = fmean(took)
        slots = [one_s if look.left_s is None else look.left_s for look in running] or [0.0]
        heapq.heapify(slots)
        for _ in range(len(self.trials) - len(self.ran) - len(running)):
            if len(slots) < self.slots:
                heapq.heappush(slots, one_s)
            else:
                heapq.heapreplace(slots, slots[0] + one_s)
        return max(slots)

    def _expected_s(self, look: RunningTrial) -> float:
        """How long a running trial takes in all; 0 if that is not known."""
        if look.share < 1:
            return look.whole_s
        return max(look.whole_s, time.time() - self.began.get(look.trial.id, time.time()))

    def summary(self, running: Sequence[RunningTrial]) -> str:
        """`3 of 12 trials have ended, 2 run, 7 wait; about 14 min left`."""
        waiting = len(self.trials) - len(self.ran) - len(running)
        left_s = self.left_s(running)
        about = "how long it takes is not known yet" if left_s is None else f"about {duration(left_s)} left"
        return f"{len(self.ran)} of {len(self.trials)} trials have ended, {len(running)} run, {waiting} wait; {about}"

    def render(self, running: Sequence[RunningTrial], width: int) -> RenderableType:
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


def _idle(trial: Trial, is_saved: bool) -> RunningTrial:
    """A trial that does not train now: it has saved, or it has not begun in this launch."""
    row, epochs = read_last_row(trial.folder), planned_epochs(trial.folder)
    epoch = int(row.get("epoch", 0))
    return RunningTrial(trial, epoch, epochs, epoch / epochs if epochs else 0.0, row.get("val/dice"), is_saved=is_saved)


def look_at(trial: Trial, began: float) -> RunningTrial:
    """How far a trial has come since it began."""
    row, beat, plan = read_last_row(trial.folder), read_heartbeat(trial.folder), planned(trial.folder)
    epoch, dice = int(row.get("epoch", 0)), row.get("val/dice")
    epochs = planned_epochs(trial.folder)
    if beat is None or beat.time < began:  # of an earlier attempt
        return RunningTrial(trial, epoch, epochs, epoch / epochs if epochs else 0.0, dice)
    done, total = (beat.epoch - 1) * beat.steps_per_epoch + beat.step, beat.epochs * beat.steps_per_epoch
    return RunningTrial(
        trial, epoch, epochs, min(1.0, done / max(total, 1)), dice, time_left_s(beat, plan), time.time() - began
    )


def describe(trial: Trial, job_id: str) -> str:
    """How the trial stands after its job, or after its part of one."""
    try:
        result, pruned = trial.result(), trial.pruned()
    except ValueError as error:  # written by another version
        return str(error)
    if result is not None:
        return f"done, val Dice {result.metrics['val/dice']:.4f}"
    if pruned is not None:
        return f"pruned after epoch {pruned.epoch} of {pruned.epochs}, best val Dice {pruned.best:.4f}"
    state = trial.state().of_job(job_id)
    if not state.job_id:
        return "not begun: its job ended before its turn"
    return f"{state.status or 'ended'} {state.error}".rstrip()


def _began(trial: Trial, state: TrialState) -> float:
    """When the trial's present attempt began, to the second or two that its imports take, by what its folder says."""
    if state.status == "running":
        return state.time
    with contextlib.suppress(OSError, ValueError, TypeError):  # damaged, or of another version
        return max((attempt.time for attempt in read_attempts(trial.folder)), default=0.0)
    return 0.0


@contextlib.contextmanager
def shown(progress: LocalProgress, lines: bool = True) -> Iterator[None]:
    """Show it while the block runs, by a thread of its own: the launcher waits for processes meanwhile.

    lines: besides what begins and ends show how far each trial is
    """
    stop = threading.Event()
    on_terminal = lines and sys.stderr.isatty()
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(Live(console=Terminal(stderr=True), auto_refresh=False)) if on_terminal else None
        thread = threading.Thread(target=_show, args=(progress, stop, live, lines), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if live:
                live.update("", refresh=True)  # what ended has its own lines above


def _show(progress: LocalProgress, stop: threading.Event, live: Live | None, lines: bool) -> None:
    reported: list[str] = []
    next_lines = time.monotonic() + LINE_EVERY_S
    while not stop.wait(min(LOOK_EVERY_S, LINE_EVERY_S)):
        try:
            running = progress.look()
        except (OSError, ValueError) as error:  # a folder that cannot be read now: look again
            logger.debug("progress: %s", error)
            continue
        if live:
            live.update(progress.render(running, live.console.width), refresh=True)
        elif lines and time.monotonic() >= next_lines:
            next_lines += LINE_EVERY_S
            reported = _say(progress, running, reported)


def _say(progress: LocalProgress, running: Sequence[RunningTrial], reported: list[str]) -> list[str]:
    """Log how all trials stand, unless nothing has changed; returns what was logged last."""
    text = [progress.summary(running), *(look.text for look in running[:MAX_ROWS])]
    if text != reported:
        for line in text:
            logger.info("%s", line)
    return text
