"""Why a job ends, by squeue's words as a real Slurm 22.05 printed them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from slurm import ending, patience
from slurm.ending import (
    Ending,
    ask_ending,
    await_ending,
    node_shuts_down,
    parse_ending,
    parse_limit_s,
    requeue,
    requeue_elsewhere,
)

T = "2026-11-25T03:"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (f"RUNNING {T}15:20 {T}15:53 {T}15:23 10:00", Ending.PREEMPTED),  # within its GraceTime of 30 s
        (f"RUNNING {T}15:45 {T}25:45 N/A 10:00", Ending.RUNNING),  # scancel --signal=TERM
        (f"COMPLETING {T}17:17 {T}17:20 N/A 10:00", Ending.DECIDED),  # scancel
        (f"COMPLETING {T}17:17 {T}17:40 {T}17:20 10:00", Ending.DECIDED),  # scancel within the GraceTime
        (f"COMPLETING {T}16:49 {T}16:52 {T}16:52 10:00", Ending.PREEMPTED),  # PreemptMode=CANCEL, no GraceTime
        (f"COMPLETING N/A {T}25:11 {T}15:11 10:00", Ending.DECIDED),  # PreemptMode=REQUEUE: Slurm has requeued it
        (f"COMPLETING N/A N/A {T}15:11 10:00", Ending.DECIDED),
        (f"COMPLETING {T}10:00 {T}20:00 N/A 10:00", Ending.TIMED_OUT),
        (f"COMPLETING {T}10:00 {T}19:59 N/A 10:00", Ending.DECIDED),
        (f"COMPLETING {T}10:00 {T}20:00 N/A UNLIMITED", Ending.DECIDED),
        ("", Ending.UNKNOWN),
        ("slurm_load_jobs error: Unable to contact slurm controller", Ending.UNKNOWN),
    ],
)
def test_what_squeue_says(line: str, why: Ending) -> None:
    assert parse_ending(line) is why


@pytest.mark.parametrize(
    ("word", "seconds"), [("10:00", 600), ("4:00:00", 14_400), ("2-01:00:01", 176_401), ("UNLIMITED", None), ("", None)]
)
def test_time_limits(word: str, seconds: int | None) -> None:
    assert parse_limit_s(word) == seconds


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """say("squeue", "echo hello"): a stand-in for a command, as a shell script."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(name: str, script: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    return write


def test_slurm_is_asked_until_it_answers(say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "POLL_S", 0.0)
    say("squeue", f"echo >>{tmp_path}/asked; [ $(wc -l <{tmp_path}/asked) = 3 ] && echo COMPLETING {T}1 {T}2 N/A 10:00")
    assert ask_ending("12_3") is Ending.UNKNOWN
    assert await_ending("12_3", 60.0) is Ending.DECIDED
    say("squeue", "exit 1")
    assert await_ending("12_3", 0.0) is Ending.UNKNOWN
    say(
        "squeue", f"echo COMPLETING {T}17:17 {T}17:20 N/A 10:00; exit 1"
    )  # what a command that failed printed is no answer
    assert ask_ending("12_3") is Ending.UNKNOWN


def test_what_scontrol_refuses(say) -> None:
    say("scontrol", "exit 0")
    assert requeue("12_3") == ""
    say("scontrol", 'echo "Job is pending execution for job 12_3" >&2; exit 1')
    assert requeue("12_3") == ""
    say("scontrol", "kill -TERM $$")  # the requeue's own signal to all of the job's processes
    assert requeue("12_3") == ""
    say("scontrol", 'echo "Requested operation is presently disabled for job 12_3" >&2; exit 1')
    assert requeue("12_3") == "Requested operation is presently disabled for job 12_3"


def test_a_requeue_is_tried_until_slurm_answers(say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSES_S", (0.0,))
    for words in ("Unexpected message received for job 12_3", "Socket timed out on send/recv operation"):
        (tmp_path / "asked").unlink(missing_ok=True)
        say(
            "scontrol",
            f"echo >>{tmp_path}/asked; [ $(wc -l <{tmp_path}/asked) = 3 ] || {{ echo {words} >&2; exit 1; }}",
        )
        assert requeue("12_3") == ""
        assert len((tmp_path / "asked").read_text().splitlines()) == 3
    monkeypatch.setattr(ending, "REQUEUE_PATIENCE_S", 5.0)
    monkeypatch.setattr(patience, "PAUSES_S", (9.0,))
    say("scontrol", "echo Socket timed out on send/recv operation >&2; exit 1")
    assert requeue("12_3").startswith("scontrol: Socket timed out")


def test_a_machine_that_shuts_down(say) -> None:
    say("systemctl", "echo stopping; exit 1")
    assert node_shuts_down()
    say("systemctl", "echo running")
    assert not node_shuts_down()


def test_a_job_is_requeued_without_the_node_that_fails_it(say, tmp_path: Path) -> None:
    """Nodes that the job left out before stay out; TERM, which the requeue brings, does not keep it from being said."""
    before = signal.getsignal(signal.SIGTERM)
    say("squeue", "echo 'node[4-5]|1|gpu'")
    say("sinfo", "printf 'node%s\\n' 1 2 4 5")  # node1 is the only other one, and enough
    say(
        "scontrol",
        f'echo "$@" >>{tmp_path}/said\n'
        "case $1 in show) echo node4; echo node5;; requeue) kill -TERM $PPID;; update) kill -TERM $$;; esac",
    )
    try:
        assert requeue_elsewhere("12_3", "node2") == ""
    finally:
        signal.signal(signal.SIGTERM, before)
    said = (tmp_path / "said").read_text().splitlines()
    assert said[1:] == ["requeue 12_3", "update JobId=12_3 ExcNodeList=node4,node5,node2"]


def test_where_no_other_node_is_left_nothing_is_requeued(say, tmp_path: Path) -> None:
    say("squeue", "echo '(null)|2|gpu'")
    say("sinfo", "printf 'node%s\\n' 1 2")
    say("scontrol", f"touch {tmp_path}/called")
    assert requeue_elsewhere("12_3", "node2") == "partition gpu has no other node to try"
    assert not (tmp_path / "called").exists()
    say("squeue", "exit 1")
    assert "Slurm does not say which other nodes there are" in requeue_elsewhere("12_3", "node2")
