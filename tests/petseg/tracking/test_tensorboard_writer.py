"""What TensorBoard's own reader finds in the event files of a run, of one attempt and of several."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from petseg.config import RunConfig, TrackingConfig
from petseg.run_folder.layout import read_metrics
from petseg.tracking.naming import RunName
from petseg.tracking.tensorboard_writer import FOLDER_NAME
from petseg.tracking.tracker import Tracker
from petseg.training.loop import train

ON = TrackingConfig(tensorboard=True)


def attempt(folder: Path, resumed_epoch: int, epochs: range, dice: float, config: TrackingConfig = ON) -> None:
    """An attempt that starts after an epoch, and says of each of its epochs that Dice was `dice`."""
    tracker = Tracker(folder, config, RunName("x"), {}, resumed_epoch)
    for epoch in epochs:
        tracker.log({"epoch": epoch, "step": 10 * epoch, "val/dice": dice})
    tracker.finish({})


def points(folder: Path, tag: str = "val/dice") -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / FOLDER_NAME))
    events.Reload()
    return [(event.step, round(event.value, 6)) for event in events.Scalars(tag)]


def test_tensorboard_has_the_rows_of_metrics(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    train(tiny(tracking__tensorboard=True), tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert len(rows) > 1
    events = EventAccumulator(str(tmp_path / "run" / FOLDER_NAME))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"epoch"}
    for name in set(rows[0]) - {"epoch"}:
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in rows]


def test_a_resumed_attempt_adds_no_duplicate_points(tmp_path: Path) -> None:
    attempt(tmp_path, 0, range(1, 5), 0.25)
    attempt(tmp_path, 2, range(3, 6), 0.5)  # the checkpoints of epochs 3 and 4 were lost
    attempt(tmp_path, 5, range(6, 7), 0.75)
    assert points(tmp_path) == [(1, 0.25), (2, 0.25), (3, 0.5), (4, 0.5), (5, 0.5), (6, 0.75)]
    assert points(tmp_path, "step")[-1] == (6, 60)


def test_tensorboard_switched_on_late_has_earlier_epochs(tmp_path: Path) -> None:
    attempt(tmp_path, 0, range(1, 4), 0.25, TrackingConfig())
    attempt(tmp_path, 2, range(3, 5), 0.5)
    assert points(tmp_path) == [(1, 0.25), (2, 0.25), (3, 0.5), (4, 0.5)]


def test_a_truncated_event_does_not_hide_later_attempts(tmp_path: Path) -> None:
    attempt(tmp_path, 0, range(1, 4), 0.25)
    (file,) = (tmp_path / FOLDER_NAME).iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    attempt(tmp_path, 2, range(3, 5), 0.5)
    assert points(tmp_path) == [(1, 0.25), (2, 0.25), (3, 0.5), (4, 0.5)]


def test_a_failing_event_file_warns_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(tmp_path, ON, RunName("x"), {}, 0)
    tracker.log({"epoch": 1, "val/dice": 0.25})
    (file,) = (tmp_path / FOLDER_NAME).iterdir()
    file.unlink()
    file.mkdir()  # root, who runs the tests, may write wherever there is a file
    for epoch in (2, 3):
        tracker.log({"epoch": epoch, "val/dice": 0.5})
    tracker.finish({})
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    (record,) = caplog.records
    assert "tensorboard is off for this run (IsADirectoryError" in record.message
    assert f"delete {tmp_path / FOLDER_NAME}" in record.message


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FOLDER_NAME).write_text("a file")
    attempt(tmp_path, 0, range(1, 3), 0.25)
    assert len(read_metrics(tmp_path)) == 2
    assert ["tensorboard is off" in record.message for record in caplog.records] == [True]


def test_a_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'petseg\[tensorboard\]'"):
        Tracker(tmp_path, ON, RunName("x"), {}, 0)


def test_tensorboard_is_off_by_default(tmp_path: Path) -> None:
    attempt(tmp_path, 0, range(1, 2), 0.25, TrackingConfig())
    assert not (tmp_path / FOLDER_NAME).exists()
