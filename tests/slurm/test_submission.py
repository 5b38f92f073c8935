"""How an array is handed to sbatch, and the lines of its script before and after a job's work."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission, JobPaths

from shards.command import Unavailable
from slurm import patience
from slurm.request import Request
from slurm.resources import Resources
from slurm.submission import (
    MAX_RESTARTS,
    Refused,
    hand_over,
    last_lines,
    new_token,
    restore,
    revoke,
    revoked_file,
    setup_lines,
    short,
    submit_array,
    work_file,
)

PREEMPTED, NOT_PREEMPTED = "2026-11-28T11:14:38", "N/A"
BY_TERM, BY_USR2 = "bash -c 'kill -TERM $$'", "bash -c 'kill -USR2 $$'"


def end_with(
    command: str, folder: Path, squeue_says: str, refusals: int = 0, restarts: int = 0
) -> tuple[int, list[str]]:
    """(exit code of the script, what scontrol was told), for task 3 of array 12; a requeue ends the script."""
    stand_ins = {
        "squeue": f"echo squeue $@ >> {folder}/asked; echo '{squeue_says}'",
        "scontrol": f"echo $@ >> {folder}/told; [ $(wc -l < {folder}/told) -gt {refusals} ]",
        "sleep": "[ $1 = 600 ] && kill -KILL $PPID; exit 0",
    }
    for name, script in stand_ins.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    script = "\n".join([command, *last_lines()])
    environ = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12"}
    environ |= {"SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, timeout=60, check=False)
    told = folder / "told"
    return done.returncode, told.read_text().splitlines() if told.exists() else []


def test_a_job_that_preemption_ended_before_it_listened_goes_back_into_the_queue(tmp_path: Path) -> None:
    assert end_with(BY_TERM, tmp_path, PREEMPTED) == (-9, ["requeue 12_3"])
    assert "--states=RUNNING --jobs=12_3" in (tmp_path / "asked").read_text()


def test_a_job_whose_time_was_nearly_up_before_it_listened_goes_back_into_the_queue(tmp_path: Path) -> None:
    assert end_with(BY_USR2, tmp_path, NOT_PREEMPTED) == (-9, ["requeue 12_3"])


def test_a_job_that_never_listens_in_time_is_not_requeued_for_ever(tmp_path: Path) -> None:
    assert end_with(BY_USR2, tmp_path, NOT_PREEMPTED, restarts=MAX_RESTARTS - 1) == (-9, ["requeue 12_3"])
    (tmp_path / "told").unlink()
    assert end_with(BY_USR2, tmp_path, NOT_PREEMPTED, restarts=MAX_RESTARTS) == (140, [])


def test_its_requeue_is_tried_again(tmp_path: Path) -> None:
    assert end_with(BY_TERM, tmp_path, PREEMPTED, refusals=2) == (-9, ["requeue 12_3"] * 3)


def test_where_slurm_refuses_the_job_ends_by_its_own_code(tmp_path: Path) -> None:
    code, told = end_with(BY_TERM, tmp_path, PREEMPTED, refusals=9)
    assert (code, len(told)) == (143, 5)


@pytest.mark.parametrize(
    ("command", "squeue_says", "code"),
    [
        (BY_TERM, NOT_PREEMPTED, 143),  # somebody sent the signal
        (BY_TERM, "", 143),  # it is cancelled, or in the queue again
        (BY_USR2, "", 140),
        ("(exit 75)", PREEMPTED, 75),  # saved: the job itself has asked Slurm
        ("(exit 1)", PREEMPTED, 1),
        ("true", PREEMPTED, 0),
    ],
)
def test_other_ends_keep_their_exit_code(tmp_path: Path, command: str, squeue_says: str, code: int) -> None:
    assert end_with(command, tmp_path, squeue_says) == (code, [])


@pytest.mark.parametrize(("items", "ids"), [(["a"], ["12"]), (["a", "b"], ["12_0", "12_1"])])
def test_the_work_of_each_job_may_be_requeued_a_thousand_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: list[str], ids: list[str]
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 12\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    folder = tmp_path / "logs"
    request = Request(folder, Resources(timeout_min=7), "t", 1)
    jobs = submit_array(str.upper, items, request, "#!/bin/sh\n", "petseg:0123")
    assert [job.job_id for job in jobs] == ids
    work = [DelayedSubmission.load(JobPaths(folder, job_id).submitted_pickle) for job_id in ids]
    assert [(one._timeout_min, one._timeout_countdown) for one in work] == [(7, 1000)] * len(items)
    assert [one.result() for one in work] == [item.upper() for item in items]


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """sbatch("echo 12"): a stand-in that does so, and nothing else on PATH but the usual; returns a scratch folder."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(patience, "PAUSES_S", (0.0,))

    def write(script: str, name: str = "sbatch") -> Path:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        return folder

    return write


def test_what_sbatch_is_given(sbatch: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = sbatch('echo "$@" >${0%/*}/words; cp "$2" ${0%/*}/script; env >${0%/*}/env; echo "12;cluster"')
    monkeypatch.setenv("MY_API_KEY", "secret")
    monkeypatch.setenv("LAB", "theirs")
    logs = tmp_path / "deep" / "logs"
    two = Resources(nodes=2, gpus_per_node=3)
    request = Request(logs, two, "t", 1, variables={"LAB": "ours", "CODE_KEY": "v1"})
    (job,) = submit_array(str.upper, ["a"], request, "#!/bin/sh\necho hello\n", "petseg:0123")
    assert (scratch / "words").read_text() == f"--parsable {logs}/.submission_file_0123.sh\n"
    assert (scratch / "script").read_text() == "#!/bin/sh\necho hello\n"
    environ = (scratch / "env").read_text().splitlines()
    assert {"LAB=ours", "CODE_KEY=v1"} <= set(environ)  # what the request names is meant to be seen
    assert not [line for line in environ if line.startswith("MY_API_KEY")]
    assert sorted(path.name for path in logs.iterdir()) == ["12_submission.sh", "12_submitted.pkl"]
    assert (logs / "12_submission.sh").read_text() == "#!/bin/sh\necho hello\n"
    assert job.job_id == "12"
    assert [path.name for path in (job.paths.result_pickle, job.paths.stdout)] == ["12_0_result.pkl", "12_0_log.out"]
    assert len(job._tasks) == 6  # a result of each process


def test_a_job_that_begins_before_its_launcher_goes_on_takes_its_own_work(
    sbatch: Callable[[str], Path], tmp_path: Path
) -> None:
    sbatch(f"mv {tmp_path}/logs/0123_0.pkl {tmp_path}/logs/12_0_submitted.pkl; echo 12")
    request = Request(tmp_path / "logs", Resources(), "t", 1)
    jobs = submit_array(str.upper, ["a", "b"], request, "#!/bin/sh\n", "petseg:0123")
    assert [DelayedSubmission.load(job.paths.submitted_pickle).args for job in jobs] == [("a",), ("b",)]


def test_the_work_of_refused_jobs_is_removed_and_that_of_jobs_that_may_come_stays(
    sbatch: Callable[[str], Path], tmp_path: Path
) -> None:
    request = Request(tmp_path / "logs", Resources(), "t", 1)
    sbatch("echo 'sbatch: error: Invalid account' >&2; exit 1")
    with pytest.raises(Refused, match=r"^sbatch: error: Invalid account\n$"):
        submit_array(str.upper, ["a", "b"], request, "#!/bin/sh\n", "petseg:0123")
    assert list((tmp_path / "logs").iterdir()) == []
    sbatch("echo 'sbatch: error: Socket timed out' >&2; exit 1")
    sbatch("echo 'squeue: error: Invalid user' >&2; exit 1", name="squeue")
    with pytest.raises(Unavailable) as caught:
        submit_array(str.upper, ["a", "b"], request, "#!/bin/sh\n", "petseg:0123")
    assert str(caught.value) == (
        "sbatch: Socket timed out; whether it took the jobs is not known "
        "(squeue does not say which jobs there are: Invalid user)"
    )
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["0123_0.pkl", "0123_1.pkl"]


def test_an_error_is_not_hidden_by_files_that_are_not_there(sbatch: Callable[[str], Path], tmp_path: Path) -> None:
    request = Request(tmp_path / "logs", Resources(), "t", 1)
    sbatch(f"rm {tmp_path}/logs/0123_0.pkl $2; echo no >&2; exit 1")
    with pytest.raises(Refused, match=r"^no\n$"):
        submit_array(str.upper, ["a"], request, "#!/bin/sh\n", "petseg:0123")
    with pytest.raises(TypeError, match="cannot pickle"):
        submit_array(str.upper, [threading.Lock()], request, "#!/bin/sh\n", "petseg:0123")


def test_jobs_that_slurm_took_at_the_last_try_are_found(
    sbatch: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no time is left for another try, a lost answer still counts."""
    monkeypatch.setattr(patience, "PAUSES_S", (99.0,))
    sbatch("echo 'sbatch: error: Socket timed out' >&2; exit 1")
    sbatch("echo '12_1|t-0123|(null)'", name="squeue")
    assert hand_over(tmp_path / "job.sh", os.environ, "petseg:0123") == "12"
    sbatch("echo '12_1|t-4567|(null)'", name="squeue")
    with pytest.raises(Unavailable, match=r"^sbatch: Socket timed out \(tried for 3 s\)$"):
        hand_over(tmp_path / "job.sh", os.environ, "petseg:0123")


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo 12; exit 3", "it ended with exit code 3, and no job id: 12\n"),
        ("echo job 12", "it ended with exit code 0, and no job id: job 12\n"),
    ],
)
def test_an_id_is_a_line_of_its_own_from_an_sbatch_that_succeeds(
    sbatch: Callable[[str], Path], tmp_path: Path, script: str, complaint: str
) -> None:
    sbatch(script)
    with pytest.raises(Refused) as caught:
        hand_over(tmp_path / "job.sh", os.environ, "petseg:0123")
    assert str(caught.value) == complaint
    sbatch("echo welcome; echo 12")
    assert hand_over(tmp_path / "job.sh", os.environ, "petseg:0123") == "12"


@pytest.mark.parametrize(
    ("environ", "own", "place"),
    [
        ({"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, 3, "12_3"),
        ({"SLURM_JOB_ID": "15"}, 0, "15"),
    ],
)
def test_a_job_puts_its_own_work_where_it_is_looked_for(
    tmp_path: Path, environ: dict[str, str], own: int, place: str
) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    for index in (0, 3):
        work_file(folder, "petseg:0123", index).write_text(f"work {index}")

    def begin() -> str:
        script = "\n".join([*setup_lines(folder, "petseg:0123"), "echo the job"])
        done = subprocess.run(
            ["bash", "-ec", script], env={"PATH": "/usr/bin:/bin", **environ}, capture_output=True, text=True,
            timeout=60, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout

    revoke(folder, "petseg:0123")
    told = "nothing to do: the launcher of this job was killed, and its work was given to other jobs\n"
    assert begin() == told
    assert sorted(path.name for path in folder.iterdir()) == ["0123.revoked", "0123_0.pkl", "0123_3.pkl"]
    restore(folder, "petseg:0123")
    restore(folder, "petseg:0123")  # nothing is left to restore
    assert begin() == "the job\n"
    assert (folder / f"{place}_submitted.pkl").read_text() == f"work {own}"
    assert begin() == "the job\n"  # again: its work is there already


def test_a_revoked_token_needs_no_folder_and_tokens_differ(tmp_path: Path) -> None:
    revoke(tmp_path / "not" / "there", "petseg:0123")
    assert revoked_file(tmp_path / "not" / "there", "petseg:0123").name == "0123.revoked"
    assert (tmp_path / "not" / "there" / "0123.revoked").exists()
    tokens = {new_token() for _ in range(3)}
    assert [len(short(token)) for token in tokens] == [16] * 3
    assert all(token == f"petseg:{short(token)}" for token in tokens)
