"""Finds trials by what people type: an id, its beginning, or words of the axes."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.runs.trial import Sweep, Trial

MAX_LISTED = 12


def matches(trial: Trial, words: str) -> bool:
    """Whether `words` are the beginning of its id, or each of them is one of its label, as in `unet seed=0`."""
    label = trial.label.split()
    wanted = words.split()
    return bool(wanted) and (trial.id.startswith(words.strip()) or all(word in label for word in wanted))


def choose(sweep: Sweep, words: str) -> list[Trial]:
    """The trials that the words mean; raises ValueError that lists the choices if there is none."""
    exact = [trial for trial in sweep.trials if trial.label == words.strip()]
    trials = exact or [trial for trial in sweep.trials if matches(trial, words)]
    if not trials:
        raise ValueError(f"no trial {words!r} in {sweep.folder}; its trials:\n{listed(sweep.trials)}")
    return trials


def choose_one(sweep: Sweep, words: str) -> Trial:
    """The one trial that the words mean; raises ValueError that lists the candidates if there are several or none."""
    trials = choose(sweep, words)
    if len(trials) > 1:
        raise ValueError(f"{words!r} means {len(trials)} trials of {sweep.folder}, name one:\n{listed(trials)}")
    return trials[0]


def choose_all(sweep: Sweep, selections: Sequence[str]) -> list[Trial]:
    """The trials that any of the selections mean, in the sweep's order; all of them without one."""
    if not selections:
        return list(sweep.trials)
    chosen = {trial.id for words in selections for trial in choose(sweep, words)}
    return [trial for trial in sweep.trials if trial.id in chosen]


def listed(trials: Sequence[Trial]) -> str:
    lines = [f"  {trial.id} {trial.label}" for trial in trials[:MAX_LISTED]]
    more = [f"  and {len(trials) - MAX_LISTED} more"] if len(trials) > MAX_LISTED else []
    return "\n".join([*lines, *more])
