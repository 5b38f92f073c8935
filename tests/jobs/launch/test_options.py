"""What people type after jobs/sweep.py, jobs/chain.py and jobs/predict.py, and what of it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.design.spec import Spec
from jobs.launch.options import SEARCH_JOBS, ChainOptions, Options
from jobs.launch.prediction_options import PredictionOptions
from jobs.runs.launch import Launch
from slurm.resources import Resources

ONE = Resources(gpus_per_node=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_parallel": -1}, "--max-parallel -1: must be at least 0"),
        ({"trials_per_job": 0}, "--trials-per-job 0: must be at least 1"),
        ({"trials_at_once": 0}, "--trials-at-once 0: must be at least 1"),
        ({"batch": -1}, "--batch -1: must be at least 0"),
        ({"all": True}, "--all is for --dry-run"),
        ({"budget": "much"}, "--budget 'much': write hours and their unit, such as 20gpuh, 2.5gpuh or 8cpuh"),
        ({"trials_at_once": 2}, "--trials-at-once 2: a job has no more than --trials-per-job 1; raise that too"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(given: dict[str, Any], message: str) -> None:
    for options in (Options, ChainOptions):
        with pytest.raises(ValueError, match=r"^--") as refused:
            options(ONE, **given)
        assert str(refused.value) == message


@pytest.mark.parametrize("name", ["../x", ".x", "a/b", "x" * 101])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^--name '.*' cannot name a sweep, and so a folder"):
        Options(ONE, name=name)


def test_the_least_that_is_allowed_is_allowed() -> None:
    options = Options(ONE, name="x" * 100, max_parallel=0, batch=0, all=True, dry_run=True, budget=".5cpuh")
    assert options.launch == Launch("slurm", ONE, 0, 1, 1)
    more = Options(ONE, cluster="local", max_parallel=3, trials_per_job=4, trials_at_once=2)
    assert more.launch == Launch("local", ONE, 3, 4, 2)


def test_a_sweep_lies_under_the_name_that_is_typed_or_that_of_its_file() -> None:
    spec = Spec("of the file", {})
    assert Options(ONE, runs_dir=Path("r"), name="typed").folder(spec) == Path("r/typed")
    assert Options(ONE, runs_dir=Path("r")).folder(spec) == Path("r/of the file")


@pytest.mark.parametrize(
    ("given", "slots"),
    [
        ({}, SEARCH_JOBS),
        ({"trials_per_job": 3}, 3 * SEARCH_JOBS),
        ({"max_parallel": 2}, 2),
        ({"max_parallel": 2, "trials_per_job": 3}, 6),
        ({"max_parallel": 2, "trials_per_job": 3, "batch": 5}, 5),
        ({"cluster": "local"}, 1),
        ({"cluster": "local", "max_parallel": 2}, 2),
    ],
)
def test_a_search_has_as_many_trials_under_way_as_run_at_a_time(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], slots: int
) -> None:
    monkeypatch.setattr("jobs.runs.launch.visible_gpus", list)
    assert Options(ONE, **given).search_slots == slots


SOME: dict[str, Any] = {"source": ("photos",), "resources": ONE}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PredictionOptions(**SOME, parts=0), "--parts 0: must be at least 1"),
        (lambda: PredictionOptions(**SOME, max_parallel=-1), "--max-parallel -1: must be at least 0"),
        (lambda: PredictionOptions(source=("a",), resources=Resources(gpus_per_node=2)),
         ("a part is predicted by one process, and these jobs have 2: take --gpus 1 (or 0) and --nodes 1, and more "
         "--parts")),
        (lambda: PredictionOptions(sweep="lab", resources=ONE).require_complete(),
         "name the pictures with --source: a folder of pictures, or of shards"),
        (lambda: PredictionOptions(**SOME).require_complete(),
         "name either a sweep, whose winner predicts, or a file with --weights"),
        (lambda: PredictionOptions(**SOME, sweep="lab", weights=(Path("w"),)).require_complete(),
         "name either a sweep, whose winner predicts, or a file with --weights"),
    ],
)  # fmt: skip
def test_a_prediction_needs_pictures_and_one_model(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match="a") as refused:
        make()
    assert str(refused.value) == message


def test_each_part_of_a_prediction_is_a_job() -> None:
    options = PredictionOptions(**SOME, sweep="lab", max_parallel=3, cluster="local")
    options.require_complete()
    PredictionOptions(**SOME, weights=(Path("a"), Path("b"))).require_complete()
    assert options.launch == Launch("local", ONE, 3, 1)
