"""Which trials are submitted again, with what changes, and which jobs that Slurm holds are released."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.state.observed import Observed
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.layout import load_config, load_overrides
from shards.cause import Cause
from shards.command import NotKnown, typed

ACCUMULATION = "train.accumulation_steps"
TOO_SMALL_TO_SPLIT = "a pass has one sample already: choose a smaller model or picture"


@dataclass(frozen=True)
class Wanted:
    """Which of the observed trials the user means."""

    failed: bool = False  # all that failed, were interrupted, or are held because a start failed
    held: bool = False  # all that are held, by whomever
    cause: Cause | None = None  # all that ended for this reason
    by_name: bool = False  # those that were observed were named one by one
    even_so: bool = False  # also those that would only fail again


@dataclass(frozen=True)
class Decision:
    """The trials to submit again, with changes to their configs, those to refuse, and those to release."""

    submit: tuple[TrialStatus, ...]
    overrides: Mapping[str, Mapping[str, Any]]  # trial -> dotted config field -> value
    refused: tuple[tuple[TrialStatus, str], ...]  # and why
    release: tuple[TrialStatus, ...]


def decide(observed: Observed, wanted: Wanted) -> Decision:
    """Decide what to do with each of the trials, which reads their config.json where memory was short."""
    submit, refused = [], []
    overrides: dict[str, dict[str, Any]] = {}
    for row in _ended(observed, wanted):
        assert row.verdict is not None
        if not (row.verdict.retryable or wanted.even_so):
            refused.append((row, row.verdict.advice))
            continue
        if row.cause == Cause.GPU_MEMORY:
            steps = more_accumulation(row.trial.folder)
            if steps is None:
                refused.append((row, TOO_SMALL_TO_SPLIT))
                continue
            overrides[row.trial.id] = {ACCUMULATION: steps}
        submit.append(row)
    return Decision(tuple(submit), overrides, tuple(refused), tuple(_held(observed, wanted)))


def _ended(observed: Observed, wanted: Wanted) -> list[TrialStatus]:
    """The rows that ended without a result, if the user means those."""
    if wanted.held and not (wanted.failed or wanted.cause):
        return []
    return [row for row in observed.rows if row.verdict and wanted.cause in (None, row.cause)]


def _held(observed: Observed, wanted: Wanted) -> list[TrialStatus]:
    """The held rows that the user means."""
    if wanted.cause:
        return []
    anyone = wanted.held or (wanted.by_name and not wanted.failed)
    waiting = ((row, row.wait) for row in observed.rows)
    return [row for row, wait in waiting if wait and wait.is_held and (anyone or wait.kind == "failed_launch")]


def require_some(decision: Decision, observed: Observed, wanted: Wanted) -> None:
    """Raises ValueError if nothing is to be done, with the states of the trials; NotKnown where Slurm does not say."""
    rows, folder = observed.rows, observed.sweep.folder
    if decision.submit or decision.refused or decision.release:
        return
    if observed.doubt:
        raise NotKnown(observed.doubt)
    causes = ", ".join(sorted({row.cause for row in rows if row.verdict}))
    if causes and wanted.cause:
        raise ValueError(f"none of them ended by {wanted.cause}, but by {causes}")
    if wanted.held:
        raise ValueError(f"none of these {len(rows)} trials is held: see `{typed('jobs/status.py', folder)}`")
    states = ", ".join(sorted({row.status for row in rows}))
    then = typed("jobs/cancel.py" if observed.live else "jobs/status.py", folder)
    waits = "".join(sorted({f"; {row.wait.reason}: {row.wait.advice}" for row in rows if row.wait}))
    raise ValueError(f"none of these {len(rows)} trials has failed or was interrupted ({states}): see `{then}`{waits}")


def more_accumulation(folder: Path) -> int | None:
    """Twice the accumulation steps of a trial, or the next number that divides its batch; None if there is none.

    Raises ValueError if the trial's config.json cannot be read.
    """
    try:
        train = load_config(folder)["config"]["train"]
        steps = int(load_overrides(folder).get(ACCUMULATION, train["accumulation_steps"]))
        batch_size = int(train["batch_size"])
    except KeyError as error:
        raise ValueError(f"{folder}: its config.json has no {error}") from None
    return next((more for more in range(max(2 * steps, 2), batch_size + 1) if batch_size % more == 0), None)
