from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm import cluster, patience
from slurm.cluster import JobState

SQUEUE = """\
12_3|PENDING|JobArrayTaskLimit|
12_0|RUNNING|None|node1
13|PENDING|(ReqNodeNotAvail, UnavailableNodes:node[1-2])|
14|RUNNING|None|node[1-2]
"""
SACCT = """\
12_0|COMPLETED|node2|0:0
12_1|COMPLETED|node1|0:0
12_2|CANCELLED by 1000|None assigned|0:15
12_[4-9%2]|PENDING|None assigned|0:0
15|NODE_FAIL|node[1-2]|1:0
"""


def test_parse_squeue():
    assert cluster.parse_squeue(SQUEUE) == {
        "12_3": JobState("PENDING", "JobArrayTaskLimit", "", "squeue"),
        "12_0": JobState("RUNNING", "", "node1", "squeue"),
        "13": JobState("PENDING", "(ReqNodeNotAvail, UnavailableNodes:node[1-2])", "", "squeue"),
        "14": JobState("RUNNING", "", "node[1-2]", "squeue"),
    }


def test_parse_sacct():
    assert cluster.parse_sacct(SACCT) == {
        "12_0": JobState("COMPLETED", "", "node2", "sacct", "0:0"),
        "12_1": JobState("COMPLETED", "", "node1", "sacct", "0:0"),
        "12_2": JobState("CANCELLED", "by 1000", "", "sacct", "0:15"),
        "15": JobState("NODE_FAIL", "", "node[1-2]", "sacct", "1:0"),
    }


def test_parse_partitions_puts_the_default_first():
    assert cluster.parse_partitions("low\ngpu*\nbig\n") == ["gpu", "low", "big"]


def test_parse_max_array_size():
    assert cluster.parse_max_array_size("MaxArrayTasks = 7\nMaxArraySize            = 2001\n") == 2001
    assert cluster.parse_max_array_size("") == 1001


def test_one_line_names_each_complaint_once():
    stderr = "sbatch: error: invalid partition\nsbatch: error: invalid partition\nsbatch: fatal: no\n"
    assert patience.one_line(stderr) == "invalid partition; no"


def test_only_what_slurm_is_sure_of_is_over():
    assert JobState("TIMEOUT", "", "", "squeue").is_over
    assert JobState("MISSING", "", "", "squeue").is_over
    assert JobState("RUNNING", "", "", "sacct").is_over  # accounting missed its end: squeue has it no more
    assert not JobState("PREEMPTED", "", "", "squeue").is_over
    assert not JobState("UNKNOWN", "", "", "none").is_over


def test_without_slurm_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cluster.job_states(["7"]) == {"7": JobState("UNKNOWN", "no squeue on PATH", "", "none")}
    assert cluster.job_states([]) == {}
    assert cluster.partitions() == []
    assert cluster.max_array_size() == 1001


def fake_command(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\necho {name} \"$@\" >> {folder}/calls\ncat <<'END'\n{text}END\n")
    (folder / name).chmod(0o755)


def test_sacct_is_asked_once_and_only_for_what_squeue_forgot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_command(tmp_path, "squeue", SQUEUE)
    fake_command(tmp_path, "sacct", SACCT)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    states = cluster.job_states(["12_0", "12_1", "12_2", "15", "99"])

    assert {job_id: (state.state, state.source) for job_id, state in states.items()} == {
        "12_0": ("RUNNING", "squeue"),  # accounting may still have the end of an earlier start
        "12_1": ("COMPLETED", "sacct"),
        "12_2": ("CANCELLED", "sacct"),
        "15": ("NODE_FAIL", "sacct"),
        "99": ("MISSING", "squeue"),
    }
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["squeue", "sacct"]
    assert calls[0].endswith("--jobs=12,15,99")
    assert calls[1].endswith("--jobs=12,15,99")
    assert "--allocations" in calls[1].split()  # without, sacct lists each step of a job as a job of its own


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "Unable to contact"),
        ("exec sleep 60", "did not answer in 0 s"),
    ],
)
def test_a_silent_slurmctld_is_not_taken_for_finished_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
):
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    state = cluster.job_states(["1"], timeout_s=0.3)["1"]
    assert (state.state, state.source, state.is_over) == ("UNKNOWN", "none", False)
    assert reason in state.reason


@pytest.mark.slurm
def test_a_real_array_without_accounting(on_cluster, tmp_path: Path, wait_for: Callable[..., None]):
    command = ["sbatch", "--parsable", "--array=0-1%1", f"--output={tmp_path}/%a", "--wrap", "sleep 300"]
    job = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    ids = [f"{job}_0", f"{job}_1"]

    wait_for(lambda: cluster.job_states(ids)[ids[0]].state == "RUNNING")
    running, waiting = (cluster.job_states(ids)[job_id] for job_id in ids)
    assert (running.nodes, running.source) == ("node1", "squeue") or running.nodes.startswith("127.")
    assert (waiting.state, waiting.reason) == ("PENDING", "JobArrayTaskLimit")

    subprocess.run(["scancel", job], check=True, timeout=30)
    wait_for(lambda: all(state.state == "CANCELLED" for state in cluster.job_states(ids).values()))
    assert cluster.job_states(["999999"])["999999"].state == "MISSING"
    both = cluster.job_states([ids[0], "999999"])
    assert (both[ids[0]].state, both["999999"].state) == ("CANCELLED", "MISSING")


@pytest.mark.slurm
def test_what_the_real_cluster_offers(on_cluster):
    assert cluster.partitions() == ["gpu", "low"]
    assert cluster.max_array_size() == 1001


def test_jobs_are_found_by_their_token_in_name_or_comment(monkeypatch: pytest.MonkeyPatch):
    """A site may replace the comment, and the name has the token without its prefix."""
    listing = """12_0|pets-aaaa|(null)
12_3|pets-aaaa|(null)
13|pets|petseg:bbbb
14|pets|mine petseg:cccc
15_1|other|(null)
"""
    monkeypatch.setattr(cluster.patience, "call", lambda command, patience_s: listing)
    assert cluster.jobs_by_token(["petseg:aaaa", "petseg:bbbb", "petseg:cccc", "petseg:dddd"]) == {
        ("petseg:aaaa", 0): "12_0",
        ("petseg:aaaa", 3): "12_3",
        ("petseg:bbbb", 0): "13",
        ("petseg:cccc", 0): "14",
    }


def test_where_squeue_refuses_no_job_counts_as_missing(monkeypatch: pytest.MonkeyPatch):
    def refuse(command: list[str], patience_s: float | None) -> str:
        raise subprocess.CalledProcessError(1, command, "", "squeue: error: Invalid user: me\n")

    monkeypatch.setattr(cluster.patience, "call", refuse)
    with pytest.raises(OSError, match=r"^squeue does not say which jobs there are: Invalid user: me$"):
        cluster.jobs_by_token(["petseg:aaaa"])
