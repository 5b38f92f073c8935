"""What the doctor tries of a folder, and what it reckons that a sweep needs there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.checks import folders
from jobs.checks.folders import (
    _clock_skew_s,
    _free_files,
    _gb,
    _lock_problem,
    _needed_bytes,
    _rename_problem,
    _weight_bytes,
    nearest_folder,
)
from jobs.checks.setup import Command, NotChecked, Setup
from jobs.design.expansion import expand
from jobs.design.spec import Spec
from petseg.config import ModelConfig, RunConfig


def test_the_nearest_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to nowhere is in the way: what is below it will fail to be written."""
    monkeypatch.chdir(tmp_path)
    assert nearest_folder(tmp_path / "a" / "b") == nearest_folder(Path("a")) == tmp_path
    assert nearest_folder(tmp_path) == tmp_path
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert nearest_folder(tmp_path / "link" / "b") == tmp_path / "link"


def test_a_folder_that_keeps_its_promises(tmp_path: Path) -> None:
    assert _rename_problem(tmp_path) == _lock_problem(tmp_path) == ""
    assert abs(_clock_skew_s(tmp_path)) < 1


@pytest.mark.parametrize("trouble", [FileNotFoundError(2, "gone"), b"half of it"])
def test_a_reader_that_misses_a_file_while_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception | bytes
) -> None:
    looked, replace_file = threading.Event(), Path.replace

    def read(path: Path) -> bytes:
        looked.set()
        if isinstance(trouble, Exception):
            raise trouble
        return trouble

    def replace_later(path: Path, target: Path) -> Path:
        assert looked.wait(30)
        return replace_file(path, target)

    monkeypatch.setattr(folders, "RENAMES", 1)
    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(Path, "replace", replace_later)
    said = "a file that is replaced is for a moment not there, or half-written"
    assert _rename_problem(tmp_path) == said


@pytest.mark.parametrize(
    ("code", "stderr", "problem"),
    [
        (1, "", ""),
        (0, "", "two processes hold the same lock (flock): two launchers could submit a sweep twice"),
        (1, "OSError: [Errno 95] Not supported\n", "flock does not work: OSError: [Errno 95] Not supported"),
        (2, "x" * 300, f"flock does not work: {'x' * 200}"),
    ],
)
def test_a_lock_that_another_process_gets_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, problem: str
) -> None:
    asked: list[Any] = []

    def run(command: list[str], **how: Any) -> SimpleNamespace:
        asked.append((command, how["timeout"]))
        return SimpleNamespace(returncode=code, stderr=stderr)

    monkeypatch.setattr(subprocess, "run", run)
    assert _lock_problem(tmp_path) == problem
    assert asked == [([sys.executable, "-c", folders.TRY_LOCK, str(tmp_path / ".lock")], 30)]


@pytest.mark.parametrize(("stamp", "skew_s"), [(90.0, -10.0), (100.0, 0.0), (101.5, 0.0), (102.0, 0.0), (105.0, 3.0)])
def test_a_stamp_between_two_looks_at_the_clock_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stamp: float, skew_s: float
) -> None:
    clock = iter([100.0, 102.0])
    monkeypatch.setattr(folders.time, "time", lambda: next(clock))
    monkeypatch.setattr(folders, "_write", lambda path, content: (path.touch(), os.utime(path, (stamp, stamp))))
    assert _clock_skew_s(tmp_path) == skew_s


@pytest.mark.parametrize(("there", "free", "files"), [(1000, 7, 7), (0, 0, sys.maxsize)])
def test_some_file_systems_have_no_limit_of_files(
    monkeypatch: pytest.MonkeyPatch, there: int, free: int, files: int
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_files=there, f_favail=free))
    assert _free_files(Path("x")) == files


def test_a_trial_keeps_three_checkpoints_of_weights_and_two_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model is built once, with the classes that its cells learn."""
    built: list[tuple[int, int]] = []

    def weights(model: ModelConfig, num_classes: int) -> int:
        built.append((model.width, num_classes))
        return 100 * model.width * num_classes

    monkeypatch.setattr(folders, "_weight_bytes", weights)
    monkeypatch.setattr(folders, "_num_classes", lambda setup, config: 2 if config.data.shards == "a" else 5)
    setup = Setup(Command(), Path("x"))
    axes = {"model.width": [2, 4], "data.shards": ["a", "b"], "train.seed": [0, 1]}
    setup.cells = expand(Spec("lab", axes, {}))
    assert _needed_bytes(setup) == 3 * 3 * 2 * 100 * (2 + 4) * (2 + 5)
    assert sorted(built) == [(2, 2), (2, 5), (4, 2), (4, 5)]


def test_weights_have_four_bytes_each() -> None:
    """One more class is one more filter of the last layer, with its bias."""
    two, three = (_weight_bytes(replace(ModelConfig(), arch="unet", width=4), classes) for classes in (2, 3))
    assert three - two == 4 * (4 + 1)


def test_classes_of_a_set_that_cannot_be_read_are_two() -> None:
    class Gone:
        def store_of(self, config: RunConfig) -> Any:
            raise NotChecked("shards", "not there")

    assert folders._num_classes(Gone(), RunConfig()) == 2  # type: ignore[arg-type]


def test_sizes_are_gigabytes() -> None:
    assert [_gb(size) for size in (1e9, 123_400_000_000, 984_000)] == ["1 GB", "123 GB", "0.000984 GB"]
