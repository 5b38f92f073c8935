"""Why a job ends, by squeue's words as a real Slurm 22.05 printed them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
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


def test_what_squeue_is_asked_about_an_end(say, tmp_path: Path) -> None:
    """The fields in the order in which they are read, each wide enough."""
    say("squeue", f'echo "$@" >{tmp_path}/asked; echo RUNNING {T}15:20 {T}15:53 N/A 10:00')
    assert ask_ending("12_3") is Ending.RUNNING
    fields = "State:40,StartTime:40,EndTime:40,PreemptTime:40,TimeLimit:40"
    assert (tmp_path / "asked").read_text() == f"--noheader --states=all --jobs=12_3 --Format={fields}\n"


@pytest.mark.parametrize("state", ["RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "CONFIGURING"])
def test_a_job_that_is_still_there_is_told_by_its_preemption_alone(state: str) -> None:
    assert parse_ending(f"{state} {T}10:00 {T}20:00 N/A 10:00") is Ending.RUNNING  # however late it is
    assert parse_ending(f"{state} {T}10:00 {T}20:00 {T}10:01 10:00") is Ending.PREEMPTED


@pytest.mark.parametrize(
    ("end", "why"),
    [("15:22", Ending.DECIDED), ("15:23", Ending.PREEMPTED), ("15:25", Ending.PREEMPTED), ("15:26", Ending.DECIDED)],
)
def test_an_end_within_a_second_of_the_preemption_is_its_own(end: str, why: Ending) -> None:
    assert parse_ending(f"COMPLETING {T}15:20 {T}{end} {T}15:24 10:00") is why


def test_a_preempted_job_whose_time_was_up_as_well_timed_out() -> None:
    assert parse_ending(f"COMPLETING {T}10:00 {T}20:05 {T}19:50 10:00") is Ending.TIMED_OUT


def test_a_job_without_an_end_has_not_timed_out() -> None:
    assert parse_ending(f"COMPLETING {T}10:00 N/A N/A 10:00") is Ending.DECIDED
    assert parse_ending(f"COMPLETING N/A {T}20:00 N/A 10:00") is Ending.DECIDED


def test_a_silent_slurm_says_nothing(say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "ASK_TIMEOUT_S", 0.1)
    say("squeue", "exec sleep 600")
    assert ask_ending("12") is Ending.UNKNOWN


def test_slurm_is_not_asked_on_once_it_has_answered(say, tmp_path: Path) -> None:
    say("squeue", f"echo >>{tmp_path}/asked; echo RUNNING {T}15:20 {T}15:53 N/A 10:00")
    assert await_ending("12", 60.0) is Ending.RUNNING
    assert (tmp_path / "asked").read_text() == "\n"


def test_without_slurms_commands_nothing_is_known_and_nothing_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_ending("12") is Ending.UNKNOWN
    assert not node_shuts_down()
    assert requeue("12") == "[Errno 2] No such file or directory: 'scontrol'"
    assert requeue_elsewhere("12", "node1") == (
        "Slurm does not say which other nodes there are: [Errno 2] No such file or directory: 'squeue'"
    )


def test_a_refused_requeue_says_at_least_its_exit_code(say) -> None:
    say("scontrol", "exit 3")
    assert requeue("12_3") == "scontrol ended with exit code 3"


@pytest.fixture
def kept_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("kept_handler")
def test_what_is_asked_before_a_job_is_requeued_elsewhere(say, tmp_path: Path) -> None:
    """A node that is left out already is named once."""
    for name, answer in (("squeue", "node[1-2]|1|gpu"), ("sinfo", "node1\nnode2\nnode3"), ("scontrol", "node1\nnode2")):
        say(name, f"echo {name} \"$@\" >>{tmp_path}/asked; printf '%s\\n' '{answer}'")
    assert requeue_elsewhere("12_3", "node2") == ""
    assert (tmp_path / "asked").read_text().splitlines() == [
        "squeue --noheader --jobs=12_3 --format=%x|%D|%P",
        "scontrol show hostnames node[1-2]",
        "sinfo --noheader --Node --partition=gpu --format=%N",
        "scontrol requeue 12_3",
        "scontrol update JobId=12_3 ExcNodeList=node1,node2",
    ]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


@pytest.mark.usefixtures("kept_handler")
def test_a_job_that_is_not_requeued_keeps_its_nodes(say, tmp_path: Path) -> None:
    say("squeue", "echo '(null)|1|gpu'")
    say("sinfo", "printf 'node%s\\n' 1 2")
    say("scontrol", f'echo "$@" >>{tmp_path}/asked; echo "Requeue is disabled" >&2; exit 1')
    assert requeue_elsewhere("12_3", "node2") == "Requeue is disabled"
    assert (tmp_path / "asked").read_text() == "requeue 12_3\n"


@pytest.mark.usefixtures("kept_handler")
def test_a_requeued_job_whose_node_cannot_be_left_out_is_requeued_all_the_same(
    say, caplog: pytest.LogCaptureFixture
) -> None:
    say("squeue", "echo '(null)|1|gpu'")
    say("sinfo", "printf 'node%s\\n' 1 2")
    say("scontrol", '[ $1 = requeue ] || { echo "Access denied" >&2; exit 1; }')
    assert requeue_elsewhere("12_3", "node2") == ""
    assert caplog.messages == ["node2 is not left out by job 12_3: Access denied\n"]


def test_only_the_nodes_of_the_partition_that_are_not_left_out_count(say) -> None:
    say("squeue", "echo 'node[3-4]|2|gpu'")
    say("sinfo", "printf 'node%s\\n' 1 1 2 3 4")
    say("scontrol", "printf 'node%s\\n' 3 4")
    assert requeue_elsewhere("12_3", "node2") == "partition gpu has no other node to try"
    say("squeue", "echo 'slurm_load_jobs error: no' >&2; exit 1")
    assert requeue_elsewhere("12_3", "node2") == (
        "Slurm does not say which other nodes there are: slurm_load_jobs error: no"
    )
