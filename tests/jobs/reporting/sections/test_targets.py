"""The targets of a sweep's runs, in the order in which the runs stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.reporting.sections.targets import counted_words, targets_of
from jobs.reporting.statistics.records import Record
from jobs.runs.trial import Trial
from jobs.state.trial_status import TrialStatus
from petseg.config import DataConfig
from petseg.run_folder.layout import Result
from petseg.targets import TARGET_NAME
from petseg.targets.target import implied_target, packed_target, save_target
from shards.classes import ClassEntry, ClassTable
from shards.manifest import Manifest, Source

DONE = Result("0", {"val/dice": 0.9}, 1, 1, 1, 1, "node1", "cpu", 1.0, 1.0, 0.0, 1.0)


def street(*names: str) -> Manifest:
    table = ClassTable(tuple(ClassEntry(name, i, (i, i, i)) for i, name in enumerate(names)))
    return Manifest(Source("street", "", {}), {}, {}, (), classes=table)


def record(folder: Path, names: tuple[str, ...] = (), result: Result | None = None, rows: int = 0, **of: Any) -> Record:
    """A run whose folder keeps the target of these classes."""
    folder.mkdir()
    if names:
        save_target(packed_target(DataConfig(), street(*names)), folder)
    values = {f"data.{name}": value for name, value in of.items()}
    return Record(TrialStatus(Trial("0", {}, folder), "running"), values, {}, result, [{"epoch": 1}] * rows)


def test_runs_that_have_begun_say_what_they_learn(tmp_path: Path) -> None:
    records = [
        record(tmp_path / "waits", ("background", "sky")),
        record(tmp_path / "runs", ("background", "road", "car"), rows=1, shards="a"),
        record(tmp_path / "done", ("road", "car"), DONE, shards="b"),
        record(tmp_path / "same set", ("other", "names"), DONE, shards="b"),
        record(tmp_path / "same names", ("road", "car"), DONE, shards="c"),
    ]
    assert [target.names for target in targets_of(records)] == [("background", "road", "car"), ("road", "car")]
    assert targets_of(records[:1]) == []
    assert counted_words(targets_of(records)[0]) == "the 2 of 3 classes that count (all but background)"
    assert counted_words(targets_of(records)[1]) == "the 2 classes"


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_that_keeps_no_readable_target_has_the_implied_one(tmp_path: Path, damaged: bool) -> None:
    run = record(tmp_path / "run", result=DONE)
    if damaged:
        (tmp_path / "run" / TARGET_NAME).write_text("{")
    (target,) = targets_of([run])
    assert target.names == implied_target().names
