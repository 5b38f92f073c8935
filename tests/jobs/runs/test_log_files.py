"""What is read in the logs of a job: tracebacks, its last attempt, a trial's own part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.runs.log_files import (
    MAX_MESSAGE_LINES,
    RAISED,
    START_OF_WORKER,
    TRIAL_FAILED,
    fatal_traceback,
    last_attempt,
    our_file,
    own_part,
    rank_logs,
    read_tail,
    tracebacks,
)
from jobs.runs.trial import Submission, Trial
from jobs.runs.trial_state import TrialState
from tests.jobs.job_logs import CUDA_OOM, EPOCH, START, raised


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/petseg/petseg/train.py", "petseg/train.py"),
        ("/home/me/petseg/petseg/data/tars.py", "petseg/data/tars.py"),
        ("/home/jobs/work/jobs/node/task.py", "jobs/node/task.py"),
        ("/opt/venv/lib/python3.11/site-packages/petseg/run.py", "petseg/run.py"),
        ("/opt/venv/lib/python3.11/site-packages/submitit/slurm/slurm.py", ""),
        ("/home/petseg/conda/lib/python3.12/json/decoder.py", ""),
        ("<frozen runpy>", ""),
        ("/home/me/script.py", ""),
        ("/usr/bin/jobs", ""),
    ],
)
def test_files_of_ours(path: str, name: str) -> None:
    assert our_file(path) == name


CHAINED = """\
09:00:00 rank 0 WARNING petseg.tracking.tracker: wandb is off for this run
Traceback (most recent call last):
  File "/x/petseg/data/tars.py", line 12, in read
    raise OSError(5, "no")
OSError: [Errno 5] Input/output error

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/x/petseg/train.py", line 3, in step
    f()
    ^^^
RuntimeError: two
  lines
slurmstepd: error: *** STEP 12.0 ON node1 CANCELLED AT 2026-03-01T09:40:00 ***
"""


def test_chained_tracebacks_are_one() -> None:
    (found,) = tracebacks(CHAINED)
    assert found.errors == ("OSError: [Errno 5] Input/output error", "RuntimeError: two\n  lines")
    assert (found.kind, found.frame) == ("RuntimeError", "petseg/train.py:3 in step")
    assert tracebacks("no traceback\nat all") == []
    assert tracebacks("Traceback (most recent call last):\n  File") == []


def test_the_traceback_after_submitits_last_line_ended_the_job() -> None:
    noise = 'Exception ignored in: <f>\nTraceback (most recent call last):\n  File "x.py", line 1, in y\nOSError: z\n'
    found = fatal_traceback(noise + START + raised("KeyError: 'dice'") + noise)
    assert found is not None
    assert found.error == "KeyError: 'dice'"


def test_an_earlier_attempt_of_a_requeued_job_is_left_out() -> None:
    text = START + raised(CUDA_OOM) + START + EPOCH
    assert "out of memory" not in last_attempt(text)
    assert last_attempt("no start") == "no start"


def test_the_failures_of_several_other_trials_are_all_left_out() -> None:
    failures = "".join(
        f"09:30:05 rank 0 ERROR jobs.node.task: trial {name} failed; the next one follows\n"
        f'Traceback (most recent call last):\n  File "/x/petseg/train.py", line 3, in step\n{CUDA_OOM}\n'
        for name in ("aaaa", "bbbb")
    )
    assert own_part(START + failures + EPOCH, "cccc") == START + EPOCH


def test_jobs_of_several_trials_keep_their_failures_apart() -> None:
    first = (
        "09:30:05 rank 0 ERROR jobs.node.task: trial aaaa failed; the next one follows\n"
        "Traceback (most recent call last):\n"
        '  File "/x/petseg/train.py", line 3, in step\n'
        f"{CUDA_OOM}\n"
    )
    log = START + EPOCH + first + EPOCH
    assert fatal_traceback(own_part(log, "aaaa")).error == CUDA_OOM  # type: ignore[union-attr]
    assert fatal_traceback(own_part(log, "bbbb")) is None
    assert EPOCH in own_part(log, "bbbb")


def test_a_log_that_ends_in_a_traceback_keeps_what_comes_before_it_once() -> None:
    said = "09:30:05 rank 0 ERROR jobs.node.task: trial aaaa failed; the next one follows"
    trace = f'\nTraceback (most recent call last):\n  File "/x/petseg/train.py", line 3, in step\n{CUDA_OOM}\n'
    log = START + EPOCH + said + trace
    assert own_part(log, "aaaa") == trace
    assert own_part(log, "bbbb") == START + EPOCH


def test_the_logs_of_all_ranks_of_the_last_job(tmp_path: Path) -> None:
    trial = Trial("0123456789", {}, tmp_path / "lab" / "trials" / "0123456789")
    logs = tmp_path / "lab" / "logs"
    logs.mkdir(parents=True)
    for rank in (0, 1, 2, 10):
        (logs / f"12_0_{rank}_log.out").write_text(f"{rank}")
    moved = Submission(trial.id, "12_0", "slurm", "/elsewhere/lab/logs/12_0_0_log.out")
    assert [path.name for path in rank_logs(trial, moved)] == [f"12_0_{rank}_log.out" for rank in range(3)]
    assert rank_logs(trial, replace(moved, log="")) == []
    assert read_tail(logs / "none") == ""
    (logs / "long").write_bytes(b"first\n" + b"x" * 100 + b"\xff\nlast\n")
    assert read_tail(logs / "long", 20) == "last\n"


def trace(error: str, file: str = "/x/petseg/train.py", line: int = 3) -> str:
    return f'Traceback (most recent call last):\n  File "{file}", line {line}, in step\n    f()\n{error}\n'


@pytest.mark.parametrize(("num_bytes", "text"), [(8, "ab\ncdef\n"), (7, "cdef\n"), (6, "cdef\n"), (5, ""), (1, "")])
def test_the_tail_of_a_file_has_whole_lines(tmp_path: Path, num_bytes: int, text: str) -> None:
    (tmp_path / "log").write_text("ab\ncdef\n")
    assert read_tail(tmp_path / "log", num_bytes) == text


def test_a_tail_is_text_for_a_terminal_and_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"10%\r20%\rdone\n\x1b[2Jx\ty\xff\n")
    assert read_tail(tmp_path / "log") == "10%\n20%\ndone\n\\x1b[2Jx\ty\ufffd\n"
    (tmp_path / "link").symlink_to(tmp_path / "log")
    assert read_tail(tmp_path / "link") == ""
    (tmp_path / "long").write_bytes(b"a" * 70_000 + b"\n" + b"b" * 10 + b"\n")
    assert read_tail(tmp_path / "long") == "b" * 10 + "\n"


def test_the_log_of_a_worker_is_that_of_its_slot_in_the_last_job(tmp_path: Path) -> None:
    trial = Trial("0123456789", {}, tmp_path / "lab" / "trials" / "0123456789")
    submission = Submission(trial.id, "0_0", "slurm", "/elsewhere/0_0_0_log.out")
    logs = tmp_path / "lab" / "logs"
    logs.mkdir(parents=True)
    assert rank_logs(trial, submission) == []
    for name in ("0_0_0_log.out", "0_0_1_log.out", "0_0_2_log.out", "by_hand.out"):
        (logs / name).touch()
    trial.write_state(TrialState("running", job_id="0_0", slot=2, at_once=3))
    assert rank_logs(trial, submission) == [logs / "0_0_2_log.out"]
    trial.write_state(TrialState("running", job_id="0_0", slot=3, at_once=3))
    assert rank_logs(trial, submission) == []  # it has begun nothing
    trial.write_state(TrialState("running", job_id="7_0", slot=2, at_once=3))
    assert len(rank_logs(trial, submission)) == 3  # of another job
    assert rank_logs(trial, replace(submission, log="/x/by_hand.out")) == [logs / "by_hand.out"]
    assert rank_logs(trial, replace(submission, log="/x/gone.out")) == []


@pytest.mark.parametrize("start", [START, f"09:30:00 rank 1 INFO x: {START_OF_WORKER % ('JobEnvironment(x)', 1, 2)}\n"])
def test_an_attempt_begins_with_the_line_that_says_so(start: str) -> None:
    assert last_attempt(start + "a\n") == start + "a\n"
    assert last_attempt("0\n" + start + "a\n" + start + "b\n") == start + "b\n"


def test_an_exception_that_ended_a_process_is_told_from_those_that_it_survived() -> None:
    survived = trace("OSError: wandb")
    found = fatal_traceback(survived + trace("KeyError: 'a'"))
    assert found is not None
    assert (found.error, found.kind) == ("KeyError: 'a'", "KeyError")
    ended = fatal_traceback(survived + f"submitit ERROR x - {RAISED}\n" + trace("a.b.Bad: no") + trace("At: exit"))
    assert ended is not None
    assert (ended.error, ended.kind) == ("a.b.Bad: no", "Bad")
    alone = fatal_traceback(survived + f"submitit ERROR x - {RAISED}\n")  # its own is not in the log
    assert alone is not None
    assert alone.error == "OSError: wandb"
    assert fatal_traceback("all is well") is None


def test_the_lines_of_a_rank_are_those_of_a_traceback() -> None:
    lines = "".join(f"[rank1]: {line}\n" for line in trace("ValueError: bad").splitlines())
    (found,) = tracebacks(f"before\n{lines}after\n")
    assert found.text == trace("ValueError: bad\nafter").rstrip("\n")
    assert found.frame == "petseg/train.py:3 in step"


def test_a_chain_names_all_errors_and_the_last_frame_of_ours() -> None:
    said = "\nThe above exception was the direct cause of the following exception:\n\n"
    chain = trace("KeyError: 1") + said + trace("ValueError: 2", "/lib/python3.11/json.py") + "\n"
    other = trace("OSError: 3", line=9)
    found, apart = tracebacks(chain + other)
    assert found.errors == ("KeyError: 1", "ValueError: 2")
    assert found.frame == "petseg/train.py:3 in step"
    assert found.text == trace("KeyError: 1") + "\n...\n\n" + trace("ValueError: 2", "/lib/python3.11/json.py")[:-1]
    assert (apart.errors, apart.frame) == (("OSError: 3",), "petseg/train.py:9 in step")


@pytest.mark.parametrize(
    "following",
    [
        "09:40:00 rank 0 INFO x: y", "submitit WARNING (x) - y", "slurmstepd-n1: error: y", "srun: error: y",
        "[W519 x.cpp:1] y", "[E x] y", "W0519 12:00:00 y", "Exception ignored in: <f>", "", "[rank2] y",
        "Traceback (most recent call last):",
    ],
)  # fmt: skip
def test_a_message_ends_where_another_entry_begins(following: str) -> None:
    (found, *_) = tracebacks(trace("ValueError: one\n  two") + following + "\nthree\n")
    assert found.error == "ValueError: one\n  two"


def test_a_message_without_end_is_cut() -> None:
    (found,) = tracebacks(trace("\n".join(["ValueError: 0", *map(str, range(1, 40))])))
    assert found.error.splitlines() == ["ValueError: 0", *map(str, range(1, MAX_MESSAGE_LINES))]


def test_the_part_of_a_trial_ends_with_its_traceback() -> None:
    said = "09:30:05 rank 0 ERROR jobs.node.task: " + TRIAL_FAILED
    log = EPOCH + said % "aaaa" + "\n" + trace("KeyError: 1") + EPOCH + said % "bbbb" + "\n" + trace("KeyError: 2")
    assert own_part(log, "aaaa") == "\n" + trace("KeyError: 1")
    assert own_part(log, "bbbb") == "\n" + trace("KeyError: 2")
    assert own_part(log, "cccc") == EPOCH + EPOCH
    assert own_part(EPOCH, "cccc") == EPOCH
