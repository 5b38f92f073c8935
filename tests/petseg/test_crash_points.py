"""A process that is killed at any change to the file system within a save costs no checkpoint.

What a kill cannot show: whether the bytes are on the disk before their name is. A kill leaves the page cache, so that a
missing fsync goes unnoticed here; only a machine that loses power would tell.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("crashing_saves.py")
BROKEN = ("state_first_in_place", "old_first", "same_step_first", "deleted_in_sight")
Points = list[dict[str, str]]


@pytest.fixture(scope="module")
def quick_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory where there is such a place: some thousand files are written and synced."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("saves")
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


def die(folder: Path, arch: str, moments: str, *variants: str) -> dict[str, Points]:
    command = [sys.executable, SCRIPT, folder, arch, moments, *variants]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    if "skip" in answer:
        pytest.skip(answer["skip"])
    return answer


@pytest.fixture(scope="module")
def deaths(quick_folder: Path) -> dict[str, Points]:
    """Torch is imported once for all."""
    return die(quick_folder, "small", "before,half", "ours", *BROKEN)


def assert_nothing_is_lost(points: Points) -> None:
    assert [point for point in points if point["wrong"]] == []
    for phase in ("first", "one goes", "same step again", "leftovers, buffers"):
        calls = Counter(p["call"] for p in points if p["phase"] == phase and p["moment"] == "before")
        assert calls["mkdir"] >= 2, phase  # checkpoints/ and the hidden folder
        assert calls["open"] >= 4, phase  # metrics.jsonl, model, optimizer, state.json
        assert calls["write"] >= 4, phase
        assert calls["fsync"] >= 7, phase  # metrics.jsonl, three files, three folders
        assert calls["rename"] >= 4, phase  # metrics.jsonl, two by safetensors, the checkpoint
        if phase != "first":  # a checkpoint goes
            assert calls["rename"] >= 5, phase
            assert calls["unlink"] >= 3, phase
            assert calls["rmdir"] >= 1, phase
    assert "mmap" not in {p["call"] for p in points}  # nothing is written past the calls that are counted


def test_a_kill_at_any_change_loses_nothing(deaths: dict[str, Points]) -> None:
    """The newest checkpoint is the one before or the new one, and loads bit for bit; the next save clears up."""
    assert_nothing_is_lost(deaths["ours"])
    assert len(deaths["ours"]) >= 145
    assert sum(p["moment"] == "half" for p in deaths["ours"]) >= 18


@pytest.mark.parametrize(
    ("variant", "symptom"),
    [
        ("state_first_in_place", "a listed checkpoint does not load"),
        ("old_first", "the newest is none"),
        ("same_step_first", "the newest is 3:"),
        ("deleted_in_sight", "a listed checkpoint does not load"),
    ],
)
def test_a_save_in_a_wrong_order_is_caught(deaths: dict[str, Points], variant: str, symptom: str) -> None:
    assert any(point["wrong"].startswith(symptom) for point in deaths[variant])


@pytest.mark.slow
@pytest.mark.long
def test_a_kill_before_within_and_after_any_change_of_a_u_net_loses_nothing(tmp_path: Path) -> None:
    points = die(tmp_path, "unet", "before,half,after", "ours")["ours"]
    assert_nothing_is_lost(points)
    assert len(points) >= 270
