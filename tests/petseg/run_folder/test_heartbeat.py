"""heartbeat.json: what a run writes is what its reader gets, and another's file is no heartbeat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from petseg.run_folder.heartbeat import HEARTBEAT_NAME, Heartbeat, HeartbeatWriter, read_heartbeat, save_heartbeat

BEAT = Heartbeat(time=1.7e9, epoch=2, epochs=10, step=30, steps_per_epoch=100, images_per_s=64.5)
CONTENT = {"time": 1.7e9, "epoch": 2, "epochs": 10, "step": 30, "steps_per_epoch": 100, "images_per_s": 64.5}


def test_the_file_has_the_fields_that_other_versions_wrote_and_read(tmp_path: Path) -> None:
    save_heartbeat(BEAT, tmp_path)
    assert json.loads((tmp_path / HEARTBEAT_NAME).read_text()) == CONTENT
    assert read_heartbeat(tmp_path) == BEAT


def test_a_run_beats_once_in_a_while(tmp_path: Path) -> None:
    writer = HeartbeatWriter(tmp_path, epochs=3, steps_per_epoch=4)
    writer.beat(1, 2, 10.0)
    writer.beat(1, 3, 10.0)
    beat = read_heartbeat(tmp_path)
    assert beat is not None
    assert (beat.epoch, beat.epochs, beat.step, beat.steps_per_epoch, beat.images_per_s) == (1, 3, 2, 4, 10.0)


def test_a_run_beats_again_once_15_seconds_have_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    now = 100.0
    monkeypatch.setattr("petseg.run_folder.heartbeat.time.monotonic", lambda: now)
    writer = HeartbeatWriter(tmp_path, epochs=3, steps_per_epoch=4)
    for step, now in enumerate((100.0, 114.9, 115.0, 129.9, 130.0, 130.1)):  # noqa: B007 - read by the clock
        writer.beat(1, step, 10.0)
        beat = read_heartbeat(tmp_path)
        assert beat is not None
        seen.append(beat.step)
    assert seen == [0, 0, 2, 2, 4, 4]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"time": "x"}', json.dumps(CONTENT | {"epoch": None})])
def test_a_file_that_is_no_heartbeat_counts_as_none(tmp_path: Path, text: str) -> None:
    assert read_heartbeat(tmp_path) is None
    (tmp_path / HEARTBEAT_NAME).write_text(text)
    assert read_heartbeat(tmp_path) is None


def test_a_link_to_a_heartbeat_is_not_followed(tmp_path: Path) -> None:
    save_heartbeat(BEAT, tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / HEARTBEAT_NAME).symlink_to(tmp_path / HEARTBEAT_NAME)
    assert read_heartbeat(tmp_path / "run") is None


def test_a_full_disk_does_not_end_a_run_for_its_heartbeat(tmp_path: Path) -> None:
    HeartbeatWriter(tmp_path / "nowhere", 1, 4).beat(1, 1, 10.0)
    assert not (tmp_path / "nowhere").exists()
