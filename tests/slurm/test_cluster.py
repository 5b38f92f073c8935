from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.command import Unavailable
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


def test_what_slurm_is_asked_about_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fields in the order in which they are read, tasks of arrays one by one, and jobs that are over too."""
    fake_command(tmp_path, "squeue", "")
    fake_command(tmp_path, "sacct", "")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    missing = JobState("MISSING", "neither squeue nor sacct knows it", "", "squeue")
    assert cluster.job_states(["12_1", "13", "12_1"]) == {"12_1": missing, "13": missing}
    assert (tmp_path / "calls").read_text().splitlines() == [
        "squeue --noheader --array --states=all --format=%i|%T|%r|%N --jobs=12,13",
        "sacct --noheader --parsable2 --allocations --format=JobID,State,NodeList,ExitCode --jobs=12,13",
    ]


def test_sacct_is_not_asked_about_jobs_that_squeue_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_command(tmp_path, "squeue", SQUEUE)
    fake_command(tmp_path, "sacct", SACCT)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    cluster.job_states(["13", "14"])
    assert [call.split()[0] for call in (tmp_path / "calls").read_text().splitlines()] == ["squeue"]
    cluster.job_states(["13", "15"])
    assert (tmp_path / "calls").read_text().splitlines()[-1].endswith(" --jobs=15")


def answer_by(monkeypatch: pytest.MonkeyPatch, folder: Path, **scripts: str) -> None:
    """Stand-ins for commands, as shell scripts."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_job_that_squeue_has_forgotten_is_asked_of_sacct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Asked for it alone, squeue fails."""
    forgotten = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    answer_by(monkeypatch, tmp_path, squeue=forgotten, sacct="echo '12|FAILED|node1|1:0'")
    assert cluster.job_states(["12"], timeout_s=30) == {"12": JobState("FAILED", "", "node1", "sacct", "1:0")}
    answer_by(monkeypatch, tmp_path, sacct="echo '12|FAILED|node1|1:0'; exit 1")
    assert cluster.job_states(["12"])["12"].state == "MISSING"  # what a command that failed has printed is no answer


@pytest.mark.parametrize("timeout_s", [None, 30.0])
def test_why_squeue_could_not_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float | None):
    answer_by(monkeypatch, tmp_path, squeue="exit 3", sacct="echo '12|FAILED|node1|1:0'")
    unknown = JobState("UNKNOWN", "squeue failed with exit code 3", "", "none")
    assert cluster.job_states(["12", "13"], timeout_s) == {"12": unknown, "13": unknown}
    answer_by(monkeypatch, tmp_path, squeue="echo 'squeue: error: no' >&2; echo 'squeue: error: way' >&2; exit 1")
    assert cluster.job_states(["12"], timeout_s)["12"].reason == "no; way"


def test_lines_of_another_shape_are_no_jobs():
    text = "squeue: welcome|to|us\n 12 |RUNNING|a|b|c \n\n"
    assert cluster.parse_squeue(text) == {"12": JobState("RUNNING", "a", "b|c", "squeue")}
    assert cluster.parse_sacct("12|RUNNING|node1\n13|OUT_OF_MEMORY|node1|0:125 \n") == {
        "13": JobState("OUT_OF_MEMORY", "", "node1", "sacct", "0:125")
    }


def test_each_end_in_slurms_words_is_an_end():
    over = {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "REVOKED",
        "TIMEOUT",
    }
    others = {"CONFIGURING", "COMPLETING", "PENDING", "RUNNING", "REQUEUED", "SUSPENDED", "STOPPED", "PREEMPTED"}
    assert {word for word in over | others if JobState(word, "", "", "squeue").is_over} == over


def test_what_slurm_is_asked_about_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_command(tmp_path, "sinfo", "low|a\ngpu*|b\n")
    fake_command(tmp_path, "scontrol", "MaxArraySize = 77\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert cluster.partitions() == ["low|a", "gpu*|b"]
    assert cluster.node_names() == {"low": "a", "gpu*": "b"}
    assert cluster.max_array_size() == 77
    assert (tmp_path / "calls").read_text().splitlines() == [
        "sinfo --noheader --format=%P", "sinfo --Node --noheader --format=%N|%n", "scontrol show config"
    ]  # fmt: skip


def test_a_site_that_does_not_answer_is_not_guessed_at_where_that_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(patience, "PAUSES_S", (99.0,))
    away = "echo 'Unable to contact slurm controller' >&2; exit 1"
    answer_by(monkeypatch, tmp_path, sinfo=away, scontrol=away, squeue=away)
    reason = "squeue: Unable to contact slurm controller (tried for 3 s)"
    assert cluster.job_states(["12"]) == {"12": JobState("UNKNOWN", reason, "", "none")}
    assert cluster.partitions() == []
    assert cluster.node_names() == {}
    with pytest.raises(Unavailable, match=r"^scontrol: Unable to contact slurm controller \(tried for 7 s\)$"):
        cluster.max_array_size(7.0)
    with pytest.raises(Unavailable, match=r"^squeue: Unable to contact slurm controller \(tried for 5 s\)$"):
        cluster.jobs_by_token(["petseg:aaaa"], 5.0)
    answer_by(monkeypatch, tmp_path, scontrol="echo 'MaxArraySize = 5'; echo 'Access denied' >&2; exit 1")
    assert cluster.max_array_size() == 1001


def test_nodes_and_facts_are_read_by_name():
    assert cluster.parse_nodes("node1|host-a\nnode1|host-a\n node2 | host-b \nno host\n") == {
        "node1": "host-a", "node2": "host-b"
    }  # fmt: skip
    assert cluster.parse_partitions(" low \n\nlow\n") == ["low"]
    line = "PartitionName=gpu AllowGroups=ALL Default=YES TRES=cpu=8,mem=1G Comment= MaxTime=1-00:00:00"
    assert cluster.parse_facts(line) == {
        "PartitionName": "gpu", "AllowGroups": "ALL", "Default": "YES", "TRES": "cpu=8,mem=1G", "Comment": "",
        "MaxTime": "1-00:00:00",
    }  # fmt: skip


def test_jobs_of_this_user_are_listed_task_by_task_whatever_their_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake_command(tmp_path, "squeue", "12_3|x-aaaa|(null)\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert cluster.jobs_by_token(["petseg:aaaa"]) == {("petseg:aaaa", 3): "12_3"}
    asked = "squeue --me --noheader --array --states=all --format=%i|%j|%k"
    assert (tmp_path / "calls").read_text().splitlines() == [asked]
