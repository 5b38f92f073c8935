"""The files that say how a run went: written as other versions read them, and named where they cannot stand."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from petseg.config import RunConfig
from petseg.run_folder import layout
from petseg.run_folder.layout import (
    CONFIG_NAME,
    METRICS_NAME,
    PRUNED_NAME,
    RESULT_NAME,
    Pruned,
    Result,
    append_metrics,
    claim_folder,
    load_config,
    load_pruned,
    load_result,
    read_metrics,
    save_pruned,
    save_result,
    warn_once,
    write_metrics,
)

RESULT = Result("0123456789", {"val/dice": 0.5}, 1, 2, 31, 1, "node1", "cpu, 4 threads", 60.0, 83.0, 0.01, 84.0)
PRUNED = Pruned("0123456789", 3, 9, 2, 0.5, 0.5, 0.625, 4, "node1", 60.0)


def test_outcomes_are_read_as_they_were_written(tmp_path: Path) -> None:
    full = replace(RESULT, mfu=0.25, peak_memory_mb=123.5, threads=4)
    assert (load_result(tmp_path), load_pruned(tmp_path)) == (None, None)
    save_result(full, tmp_path)
    save_pruned(PRUNED, tmp_path)
    assert (load_result(tmp_path), load_pruned(tmp_path)) == (full, PRUNED)
    assert load_result(tmp_path / RESULT_NAME) is None  # no folder at all


def test_a_result_of_an_earlier_version_lacks_what_came_later(tmp_path: Path) -> None:
    content = {
        name: value for name, value in asdict(RESULT).items() if name not in ("mfu", "peak_memory_mb", "threads")
    }
    (tmp_path / RESULT_NAME).write_text(json.dumps(content))
    assert load_result(tmp_path) == RESULT


@pytest.mark.parametrize("metrics", [{}, {"test/dice": 0.5}, {"val/dice": math.nan}, {"val/dice": math.inf}])
def test_a_result_without_its_dice_is_damaged(tmp_path: Path, metrics: dict[str, float]) -> None:
    save_result(replace(RESULT, metrics=metrics), tmp_path)
    said = rf"^{tmp_path}/result\.json is damaged \(it has no val/dice\): delete it to measure the run again$"
    with pytest.raises(ValueError, match=said):
        load_result(tmp_path)


def test_outcomes_that_are_no_files_are_named_with_what_to_do(tmp_path: Path) -> None:
    for name in (RESULT_NAME, PRUNED_NAME):
        os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=r"result\.json .*: delete it to measure the run again$"):
        load_result(tmp_path)
    with pytest.raises(ValueError, match=r"pruned\.json .*: delete it to go on with the run$"):
        load_pruned(tmp_path)


@pytest.mark.parametrize(
    ("metrics", "floor"),
    [
        ({"val/all_pet_dice": 0.25}, 0.25),
        ({"val/one_class_dice": 0.75}, 0.75),
        ({"val/one_class_dice": 0.75, "val/all_pet_dice": 0.25}, 0.25),
        ({"test/one_class_dice": 0.75}, None),
    ],
)
def test_the_floor_of_a_split_is_what_was_measured_of_it(metrics: dict[str, float], floor: float | None) -> None:
    assert replace(RESULT, metrics=metrics).floor("val") == floor


@pytest.mark.parametrize(
    ("device", "threads", "on_cpu"), [("cpu", 0, True), ("AMD EPYC", 2, True), ("NVIDIA H100", 0, False)]
)
def test_whether_a_run_had_a_gpu_is_known_of_earlier_versions_too(device: str, threads: int, on_cpu: bool) -> None:
    assert replace(RESULT, device=device, threads=threads).is_on_cpu is on_cpu


def test_a_run_without_its_identity_is_not_gone_on_with(tmp_path: Path) -> None:
    claim_folder(RunConfig(), "0" * 64, tmp_path / "deep" / "run")
    path = tmp_path / "deep" / "run" / CONFIG_NAME
    stored = json.loads(path.read_text())
    del stored["identity"]
    path.write_text(json.dumps(stored))
    said = rf"config\.json is damaged \(its identity is None\): put it back from a copy, or delete {path.parent} and"
    with pytest.raises(ValueError, match=said):
        claim_folder(RunConfig(), "0" * 64, path.parent)
    assert load_config(path.parent)["identity"] == {"manifest_hash": ""}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"config": []}, r"its config is \[\]"),
        ({"trial_id": 7, "config": {}}, "its trial_id is 7"),
        ({"config": "x" * 200}, "its config is 'x{79}"),
    ],
)
def test_a_config_of_other_kinds_of_content_is_damaged(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    (tmp_path / CONFIG_NAME).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"config\.json is damaged \({said}\): put it back from a copy"):
        load_config(tmp_path)


def test_a_config_that_is_no_file_or_of_no_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / CONFIG_NAME)
    with pytest.raises(ValueError, match=rf"{tmp_path}/config\.json"):
        load_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    for folder in ("gone", CONFIG_NAME):
        with pytest.raises(ValueError, match=rf"^no run in {tmp_path}/{folder}: it has no config\.json$"):
            load_config(Path(folder))


@pytest.mark.parametrize("make", ["large", "link"])
def test_rows_that_are_no_file_of_rows_are_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, make: str
) -> None:
    row = {"epoch": 1}
    append_metrics(row, tmp_path)
    run = tmp_path if make == "large" else tmp_path / "run"
    num_bytes = (tmp_path / METRICS_NAME).stat().st_size
    monkeypatch.setattr(layout, "MAX_METRICS_BYTES", num_bytes)
    assert read_metrics(tmp_path) == [row]
    if make == "large":
        monkeypatch.setattr(layout, "MAX_METRICS_BYTES", num_bytes - 1)
    else:
        run.mkdir()
        (run / METRICS_NAME).symlink_to(tmp_path / METRICS_NAME)
    assert read_metrics(run) == []
    assert f"left out: {run / METRICS_NAME}" in caplog.text
    assert read_metrics(tmp_path / METRICS_NAME) == []  # of a file in place of a folder


@pytest.mark.parametrize(("bad", "warned"), [(0, False), (1, False), (2, True)])
def test_a_single_odd_line_may_be_the_half_that_a_kill_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: int, warned: bool
) -> None:
    (tmp_path / METRICS_NAME).write_text('{"epoch": 1}\n' + "odd\n" * bad)
    assert read_metrics(tmp_path) == [{"epoch": 1}]
    assert ("2 of 3 lines are no rows of numbers, and are left out" in caplog.text) is warned


def test_rows_are_replaced_as_a_whole_and_added_at_the_end(tmp_path: Path) -> None:
    for row in ({"epoch": 1, "lr": 0.1}, {"epoch": 2, "lr": 0.1}):
        append_metrics(row, tmp_path)
    write_metrics(read_metrics(tmp_path)[:1], tmp_path)
    append_metrics({"epoch": 2, "lr": 0.2}, tmp_path)
    assert (tmp_path / METRICS_NAME).read_text() == '{"epoch": 1, "lr": 0.1}\n{"epoch": 2, "lr": 0.2}\n'
    write_metrics([], tmp_path)
    assert (tmp_path / METRICS_NAME).read_bytes() == b""


def test_a_warning_is_said_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    for text in (f"{tmp_path} 100%", f"{tmp_path} 100%", f"{tmp_path} 50%"):
        warn_once(text)
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path} 100%", f"{tmp_path} 50%"]
