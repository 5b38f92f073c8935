"""Sites that limit the jobs that a user may have in the queue."""

from __future__ import annotations

import getpass
import logging
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm import cluster
from slurm import room as room_module
from slurm.executor import submit
from slurm.request import Request
from slurm.resources import Resources
from slurm.room import Room, find_room, largest_fitting, limit_in

SMALL = Resources(partition="gpu", gpus_per_node=0, cpus_per_task=1, mem_gb=1, timeout_min=5)
POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@given(count=st.integers(0, 5_000), room=st.integers(0, 6_000))
def test_as_many_as_there_is_room_for_by_few_questions(count: int, room: int) -> None:
    asked: list[int] = []

    def fits(jobs: int) -> bool:
        asked.append(jobs)
        return jobs <= room

    assert largest_fitting(count, fits) == min(count, room)
    assert bool(asked) == (count > 0)
    assert all(0 < jobs <= count for jobs in asked)
    assert len(asked) <= (1 if count <= room else 1 + math.ceil(math.log2(count)))


def test_limits_on_submitted_jobs_are_told_from_other_refusals() -> None:
    head = "sbatch: error: "
    for name in ("AssocMaxSubmitJobLimit", "QOSMaxSubmitJobPerUserLimit", "QOSGrpSubmitJobsLimit"):
        assert limit_in(f"{head}{name}\n{head}Batch job submission failed: {POLICY}\n") == name
    for other in (f"{head}QOSMaxWallDurationPerJobLimit\n{head}Batch job submission failed: {POLICY}\n", POLICY, ""):
        assert limit_in(other) == ""


def test_where_sbatch_does_not_answer_all_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_room(7, lambda count: "#!/bin/sh\n") == Room(7)


@pytest.mark.parametrize(("code", "jobs"), [(0, 7), (1, 0)])
def test_a_warning_of_a_site_is_no_refusal(monkeypatch: pytest.MonkeyPatch, code: int, jobs: int) -> None:
    """A site's plugin may print what it likes about a job that it takes."""
    said = "sbatch: note: your limit is AssocMaxSubmitJobLimit\n"
    done = subprocess.CompletedProcess(["sbatch"], code, "", said)
    monkeypatch.setattr(room_module, "ask_sbatch", lambda script: done)
    found = find_room(7, lambda count: "#!/bin/sh\n")
    assert found == Room(jobs, "AssocMaxSubmitJobLimit" if code else "")


def submit_five(tmp_path: Path, as_many_as_fit: bool = True, **changes: Callable[[range], str]) -> list[str]:
    """The ids of the jobs, in arrays of two at most."""
    request = Request(tmp_path, SMALL, "five", 5, as_many_as_fit=as_many_as_fit, **changes)
    jobs = submit(abs, range(5), "slurm", request)
    return [job.job_id for job in jobs]


def queued() -> list[str]:
    command = ["squeue", "--me", "--noheader", "--array", "--states=PENDING", "--format=%i"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.split()


@pytest.mark.slurm
def test_a_real_slurm_takes_what_its_limits_allow(
    set_limit: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster, "max_array_size", lambda: 2)
    set_limit("qos", "normal", MaxSubmitJobsPerUser=3)  # overrides what the association says
    set_limit("user", getpass.getuser(), MaxSubmitJobs=1)
    with caplog.at_level(logging.WARNING):
        ids = submit_five(tmp_path)
    assert len(ids) == 3
    assert sorted(ids) == sorted(queued())
    assert "sbatch takes 3 of 5 jobs now (QOSMaxSubmitJobPerUserLimit)" in caplog.text
    assert submit_five(tmp_path) == []  # those that are queued count
    assert len(queued()) == 3
    with pytest.raises(ValueError, match="QOSMaxSubmitJobPerUserLimit") as caught:
        submit_five(tmp_path, as_many_as_fit=False)
    assert "\n" not in str(caught.value)
    set_limit("qos", "normal", MaxSubmitJobsPerUser=8)
    assert len(submit_five(tmp_path)) == 5


@pytest.mark.slurm
def test_a_queue_that_fills_up_between_question_and_submission(
    set_limit: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    set_limit("account", "root", GrpSubmitJobs=5)

    def somebody_else(indices: range) -> str:
        command = ["sbatch", "--partition=gpu", "--output=/dev/null", "--wrap=true"]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        return "mine"

    with caplog.at_level(logging.WARNING):
        assert submit_five(tmp_path, announce=somebody_else) == []
    assert "sbatch takes 0 of 5 jobs now (AssocGrpSubmitJobsLimit)" in caplog.text
    assert len(queued()) == 1


def test_sbatch_is_asked_by_a_script_that_is_not_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "echo 'sbatch: error: AssocGrpSubmitJobsLimit' >&2; exit 1"
    script = f'#!/bin/sh\necho "$@" "$A_SECRET" >>{tmp_path}/asked; grep -q small || {{ {said}; }}\n'
    (tmp_path / "sbatch").write_text(script)
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("A_SECRET", "hidden")
    assert find_room(5, lambda count: "small" if count <= 3 else "large") == Room(3, "AssocGrpSubmitJobsLimit")
    assert set((tmp_path / "asked").read_text().splitlines()) == {"--test-only "}


def test_a_cluster_with_no_room_for_any_more_jobs() -> None:
    assert limit_in("sbatch: error: Batch job submission failed: Resource temporarily unavailable\n") == (
        "MaxJobCount of the cluster"
    )


def test_the_limit_is_named_only_where_it_excludes_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one that was named, even if the last question met none."""
    limits = {5: "QOSMaxSubmitJobPerUserLimit", 2: "", 3: "", 4: "AssocMaxSubmitJobLimit"}
    monkeypatch.setattr(
        room_module, "ask_sbatch", lambda script: subprocess.CompletedProcess([], 1, "", limits[int(script)])
    )
    assert find_room(5, str) == Room(3, "AssocMaxSubmitJobLimit")
    assert find_room(3, str) == Room(3, "")
    assert find_room(0, str) == Room(0, "")
