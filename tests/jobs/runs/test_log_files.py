"""What is read in the logs of a job: tracebacks, its last attempt, a trial's own part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.runs.log_files import fatal_traceback, last_attempt, our_file, own_part, rank_logs, read_tail, tracebacks
from jobs.runs.trial import Submission, Trial
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
