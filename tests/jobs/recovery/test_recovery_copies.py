"""docs/operating.md, rows 20 and 23: which of two copies, and which checkpoint, is the newest."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from petseg.config import RunConfig
from petseg.run_folder.attempts import read_lives, require_newest
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.training.loop import train
from shards.command import INTERRUPTED, Interrupted
from tests.jobs.disturbed_runs import contents, ended, record
from tests.jobs.faulty_checkout import wait_until

# --- 20: two copies


@pytest.mark.slow
def test_a_copy_that_comes_back_writes_nothing(pet_shards: Path, tmp_path: Path) -> None:
    """A process stands still, as on a node without network; another one takes the run over and ends it."""
    stopped = record(pet_shards, tmp_path, "SIGSTOP:0:1:1")
    try:
        wait_until(lambda: Path(f"/proc/{stopped.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        code, log = ended(record(pet_shards, tmp_path))
        assert code == 0, log
        before = contents(tmp_path / "run")
        stopped.send_signal(signal.SIGCONT)
    finally:
        code, log = ended(stopped)
    assert code == INTERRUPTED, log
    assert "goes on in another process (start 2 on" in log
    assert contents(tmp_path / "run") == before


# --- 23: other clocks


def test_no_clock_decides_who_is_newest(tiny: RunConfig, tmp_path: Path) -> None:
    """A node a century ahead trained first, one in 1970 goes on: the numbers of steps and starts decide."""
    calm = train(tiny, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    lives = json.loads((tmp_path / "run" / "lives.json").read_text())
    (tmp_path / "run" / "lives.json").write_text(json.dumps([life | {"time": 4e9} for life in lives]))
    older, newest = list_checkpoints(tmp_path / "run" / "checkpoints")
    for path, when in ((older.folder, 4e9), (newest.folder, 0.0)):
        for file in (*path.iterdir(), path):
            os.utime(file, (when, when))
    assert train(tiny, tmp_path / "run").metrics == calm.metrics
    first, second = read_lives(tmp_path / "run")
    assert (second.number, second.first_step) == (2, newest.step)
    assert second.time < first.time
    with pytest.raises(Interrupted, match="start 2"):
        require_newest(tmp_path / "run", first)
