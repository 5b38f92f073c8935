"""Sweeps written by hand, and their pages."""

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.reporting.page import render_page
from jobs.reporting.statistics.records import read_records
from jobs.runs.trial import Sweep
from tests.jobs.reporting.short_sweep import AXES, plan
from tests.jobs.reporting.written_sweep import DICE, Lab, finish, place


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    (tmp_path / "shards").mkdir()
    return Lab(tmp_path / "runs" / "lab", tmp_path / "shards")


@pytest.fixture
def finished(lab: Lab) -> Sweep:
    sweep = lab.plan()
    for trial in sweep.trials:
        finish(trial, DICE[place(trial)][trial.axes["train.seed"]])
    return sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Eight cells of one seed, none of which has run yet."""
    return plan(tmp_path, AXES | {"train.seed": [0]})


@pytest.fixture
def page() -> Callable[[Sweep], str]:
    return lambda sweep: render_page(sweep, read_records(sweep))
