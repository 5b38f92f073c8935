import os
import socket
from pathlib import Path

import pytest

from jobs.status import main, standing
from jobs.trial import Submission, Trial
from shards.command import run_command
from slurm.cluster import JobState


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial("0123456789", {"model.arch": "unet", "train.seed": 3}, tmp_path / "0123456789")


def on_slurm(state: str, reason: str = "") -> tuple[Submission, dict[str, JobState]]:
    return Submission("0123456789", "12_0", "slurm", "x.out"), {"12_0": JobState(state, reason, "", "squeue")}


def test_a_label_says_where_it_lies_on_the_axes(trial: Trial) -> None:
    assert trial.label == "unet seed=3"


def test_states_on_slurm(trial: Trial) -> None:
    assert standing(trial, None, {}).status == "planned"
    row = standing(trial, *on_slurm("PENDING", "Priority"))
    assert (row.status, row.note) == ("queued", "Priority")
    assert standing(trial, *on_slurm("RUNNING")).status == "running"
    assert standing(trial, *on_slurm("UNKNOWN")).status == "running"  # not knowing is not over
    assert standing(trial, *on_slurm("FAILED")).status == "interrupted"
    trial.write_state(status="running", host="node1", job_id="12_0")
    assert standing(trial, *on_slurm("NODE_FAIL")).status == "interrupted"
    trial.write_state(status="failed", error="ValueError: x", host="node1", job_id="12_0")
    row = standing(trial, *on_slurm("FAILED"))
    assert (row.status, row.note, row.host) == ("failed", "ValueError: x", "node1")
    assert standing(trial, *on_slurm("UNKNOWN")).status == "failed"


def test_states_on_this_machine(trial: Trial) -> None:
    mine = Submission(trial.id, str(os.getpid()), "local", "x.out")
    gone = Submission(trial.id, "999999999", "local", "x.out")
    trial.write_state(status="running", host=socket.gethostname(), job_id=mine.job_id)
    assert standing(trial, mine, {}).status == "running"
    assert standing(trial, gone, {}).status == "interrupted"
    trial.write_state(status="running", host="another", job_id=gone.job_id)
    assert standing(trial, gone, {}).status == "running"


def test_no_sweep_is_one_line_that_names_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sweep.json").write_text("{}")
    assert run_command(main, ["lab", "--runs-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no sweep in" in error
    assert error.endswith("or name one of other\n")
