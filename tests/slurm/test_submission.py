"""The lines of a job's script that come after its work."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission, JobPaths

from slurm.request import Request
from slurm.resources import Resources
from slurm.submission import MAX_RESTARTS, last_lines, submit_array

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
