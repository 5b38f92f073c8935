"""What sbatch gets for many items, and what is told where it takes only some of them."""

from __future__ import annotations

import dataclasses
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shards.command import Unavailable
from slurm import arrays
from slurm.arrays import _explain, _raise_throttle, _submit_what_fits, render_sbatch, render_scripts, submit_arrays
from slurm.chunks import plan_chunks
from slurm.request import Request
from slurm.resources import Resources
from slurm.room import Room
from slurm.submission import Refused, last_lines, setup_lines

SMALL = Resources(partition="gpu", gpus_per_node=0, cpus_per_task=1, mem_gb=1, timeout_min=5)


def options(script: str, *names: str) -> list[str]:
    """The values of these options of sbatch, in the script's order."""
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]
    return [line.partition("=")[2] for line in lines if line.partition("=")[0] in names]


@pytest.fixture
def small_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that allows three tasks an array."""
    monkeypatch.setattr(arrays.cluster, "max_array_size", lambda patience_s=None: 3)


@pytest.mark.usefixtures("small_arrays")
def test_scripts_of_arrays_share_the_limit_and_wait_for_those_of_their_lane(tmp_path: Path) -> None:
    scripts = render_scripts(10, Request(tmp_path, SMALL, "runs", 2))
    assert [options(script, "array") for script in scripts] == [["0-2%1"], ["0-2%1"], ["0-1%1"], ["0-1%1"]]
    after = [options(script, "dependency") for script in scripts]
    assert after == [[], [], ["afterany:ARRAY1"], ["afterany:ARRAY2"]]


@pytest.mark.usefixtures("small_arrays")
def test_scripts_without_a_limit_wait_for_nothing(tmp_path: Path) -> None:
    scripts = render_scripts(7, Request(tmp_path, SMALL, "runs", 7))
    assert [options(script, "array", "dependency") for script in scripts] == [["0-2%3"], ["0-2%3"], []]


class Slurm:
    """Takes arrays, or as many jobs of each as there is room for."""

    def __init__(self, rooms: Sequence[int] = ()) -> None:
        self.rooms, self.arrays, self.called = list(rooms), list[Request](), list[list[str]]()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(arrays, "_submit_what_fits", self.submit)
        monkeypatch.setattr(arrays.shutil, "which", lambda name: name)
        monkeypatch.setattr(arrays.patience, "call", lambda command, patience_s: self.called.append(command))

    def submit(self, function: Any, items: Sequence[Any], indices: range, array: Request) -> tuple[Room, list[Any]]:
        assert function is abs
        self.arrays.append(array)
        fitting = min(len(indices), self.rooms.pop(0) if self.rooms else len(indices))
        jobs = [SimpleNamespace(job_id=f"{len(self.arrays)}_{number}") for number in range(fitting)]
        return Room(fitting, "" if fitting == len(indices) else "MaxJobCount"), jobs


@pytest.mark.usefixtures("small_arrays")
def test_arrays_are_submitted_as_their_scripts_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm, told = Slurm(), []
    slurm.install(monkeypatch)
    request = Request(tmp_path, SMALL, "runs", 2)
    jobs = submit_arrays(abs, range(10), request, lambda index, job, state: told.append((index, job.job_id, state)))
    assert [array.max_parallel for array in slurm.arrays] == [1, 1, 1, 1]
    assert [array.resources.dependency for array in slurm.arrays] == [None, None, "afterany:1", "afterany:2"]
    assert told == [(index, job.job_id, "submitted") for index, job in enumerate(jobs)]
    assert len(jobs) == 10
    assert slurm.called == []


@pytest.mark.usefixtures("small_arrays")
@pytest.mark.parametrize(
    ("rooms", "taken", "throttle"),
    [
        ([2], 2, ["JobId=1", "ArrayTaskThrottle=2"]),  # alone, and with the whole limit
        ([3, 0], 3, ["JobId=1", "ArrayTaskThrottle=2"]),
        ([3, 3, 1], 7, None),  # both lanes are there
        ([0], 0, None),
    ],
)
def test_what_slurm_takes_runs_by_the_whole_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rooms: list[int], taken: int, throttle: list[str] | None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    slurm = Slurm(rooms)
    slurm.install(monkeypatch)
    jobs = submit_arrays(abs, range(10), Request(tmp_path, SMALL, "runs", 2), lambda index, job, state: None)
    assert len(jobs) == taken
    assert caplog.messages == [f"sbatch takes {taken} of 10 jobs now (MaxJobCount)"]
    assert slurm.called == ([["scontrol", "update", *throttle]] if throttle else [])


def test_the_last_array_gets_the_shares_of_those_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own, and not those of the arrays before it."""
    called: list[list[str]] = []
    monkeypatch.setattr(arrays.patience, "call", lambda command, patience_s: called.append(command))
    planned = plan_chunks(12, 3, 4)
    assert [chunk.throttle for chunk in planned] == [1, 1, 1, 1]
    _raise_throttle([SimpleNamespace(job_id="11_2"), SimpleNamespace(job_id="12_2")], planned[:2], 4)
    _raise_throttle([SimpleNamespace(job_id="12_2")], planned, 4)
    assert called == [["scontrol", "update", "JobId=12", "ArrayTaskThrottle=3"]]


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (subprocess.CalledProcessError(1, [], "", "scontrol: error: Access denied\n"), "Access denied"),
        (FileNotFoundError(2, "No such file", "scontrol"), "[Errno 2] No such file: 'scontrol'"),
    ],
)
def test_a_limit_that_cannot_be_raised_is_told_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, complaint: str
) -> None:
    def refuse(command: list[str], patience_s: float) -> str:
        raise error

    monkeypatch.setattr(arrays.patience, "call", refuse)
    job: Any = SimpleNamespace(job_id="12_0")
    with caplog.at_level(logging.WARNING):
        _raise_throttle([job], plan_chunks(10, 3, 2)[:1], 2)
    assert caplog.messages == [f"fewer jobs than --max-parallel may run at a time: scontrol: {complaint}"]


def test_a_refusal_says_what_was_submitted_before() -> None:
    refusal = "sbatch: error: Batch job submission failed: Job violates limits"
    assert "were submitted before" not in _explain(refusal, 0, 10, SMALL)
    assert _explain(refusal, 6, 10, SMALL).endswith("; 6 of 10 jobs were submitted before, and run")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Slurm is asked and given: ("room", the largest question) and (items, token) of each array."""
    told: list[Any] = []

    def submit(function: Any, items: Sequence[Any], array: Request, script: str, token: str) -> list[Any]:
        told.append((list(items), token))
        assert options(script, "comment") == [token]
        return [SimpleNamespace(job_id=f"9_{number}") for number in range(len(items))]

    def find_room(count: int, script: Callable[[int], str]) -> Room:
        told.append(("room", options(script(count), "array")))
        return Room(2, "MaxJobCount")

    monkeypatch.setattr(arrays, "submit_array", submit)
    monkeypatch.setattr(arrays, "find_room", find_room)
    return told


def test_as_many_as_fit_are_the_first_of_an_array(told: list[Any], tmp_path: Path) -> None:
    announced: list[range] = []

    def announce(indices: range) -> str:
        announced.append(indices)
        return "petseg:mine"

    request = Request(tmp_path, SMALL, "runs", 3, announce=announce, as_many_as_fit=True)
    room, jobs = _submit_what_fits(abs, list("abcdefgh"), range(4, 8), request)
    assert (room, [job.job_id for job in jobs]) == (Room(2, "MaxJobCount"), ["9_0", "9_1"])
    assert told == [("room", ["0-3%3"]), (["e", "f"], "petseg:mine")]
    assert announced == [range(4, 6)]


def test_where_there_is_no_room_nothing_is_submitted(
    told: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "find_room", lambda count, script: Room(0, "MaxJobCount"))
    request = Request(tmp_path, SMALL, "runs", 3, as_many_as_fit=True)
    assert _submit_what_fits(abs, list("ab"), range(2), request) == (Room(0, "MaxJobCount"), [])
    assert told == []


def test_all_or_none_is_not_asked_about_room(told: list[Any], tmp_path: Path) -> None:
    room, jobs = _submit_what_fits(abs, list("abcdefgh"), range(4, 8), Request(tmp_path, SMALL, "runs", 3))
    assert (room, len(jobs)) == (Room(4), 4)
    ((items, token),) = told
    assert items == ["e", "f", "g", "h"]
    assert re.fullmatch(r"petseg:[0-9a-f]{16}", token)


@pytest.mark.parametrize(
    ("as_many_as_fit", "complaint", "is_refused"),
    [(True, "AssocMaxSubmitJobLimit", False), (True, "Invalid account", True), (False, "AssocMaxSubmitJobLimit", True)],
)
def test_an_array_that_is_refused_is_withdrawn(
    told: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_many_as_fit: bool, complaint: str,
    is_refused: bool,
) -> None:  # fmt: skip
    """A limit that was reached since sbatch was asked is a lack of room, where less than all will do."""

    def refuse(*args: object) -> None:
        raise Refused(f"sbatch: error: {complaint}")

    monkeypatch.setattr(arrays, "submit_array", refuse)
    withdrawn: list[str] = []
    request = Request(
        tmp_path, SMALL, "runs", 3, announce=lambda indices: "petseg:mine", withdraw=withdrawn.append,
        as_many_as_fit=as_many_as_fit,
    )  # fmt: skip
    if is_refused:
        with pytest.raises(Refused, match=complaint):
            _submit_what_fits(abs, list("abcd"), range(4), request)
    else:
        assert _submit_what_fits(abs, list("abcd"), range(4), request) == (Room(0, complaint), [])
    assert withdrawn == ["petseg:mine"]


@pytest.mark.usefixtures("small_arrays")
def test_a_slurm_that_falls_silent_keeps_what_it_took_where_less_than_all_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slurm = Slurm()
    slurm.install(monkeypatch)

    def fall_silent(function: Any, items: Sequence[Any], indices: range, array: Request) -> tuple[Room, list[Any]]:
        if slurm.arrays:
            raise Unavailable("sbatch: no answer")
        return slurm.submit(function, items, indices, array)

    monkeypatch.setattr(arrays, "_submit_what_fits", fall_silent)
    request = Request(tmp_path, SMALL, "runs", 5)
    jobs = submit_arrays(abs, range(5), dataclasses.replace(request, as_many_as_fit=True), lambda *job: None)
    assert [job.job_id for job in jobs] == ["1_0", "1_1", "1_2"]
    assert caplog.messages == ["3 of 5 jobs are submitted: sbatch: no answer"]
    slurm.arrays.clear()
    with pytest.raises(Unavailable, match=r"^sbatch: no answer$"):
        submit_arrays(abs, range(5), request, lambda *job: None)


@pytest.mark.usefixtures("small_arrays")
def test_a_later_array_that_is_refused_is_told_with_the_jobs_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm()
    slurm.install(monkeypatch)

    def refuse(function: Any, items: Sequence[Any], indices: range, array: Request) -> tuple[Room, list[Any]]:
        if slurm.arrays:
            raise Refused("sbatch: error: Invalid qos specification\n")
        return slurm.submit(function, items, indices, array)

    monkeypatch.setattr(arrays, "_submit_what_fits", refuse)
    with pytest.raises(ValueError, match=r"^sbatch refused") as caught:
        submit_arrays(abs, range(5), Request(tmp_path / "logs", SMALL, "runs", 5), lambda *job: None)
    advice = "give another --qos: `sacctmgr show associations user=$USER` lists yours"
    refusal = f"sbatch refused the job: Invalid qos specification; {advice}"
    assert str(caught.value) == f"{refusal}; 3 of 5 jobs were submitted before, and run"
    assert (tmp_path / "logs").is_dir()


@pytest.mark.parametrize("missing", ["sbatch", "srun"])
def test_both_commands_that_jobs_need_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(arrays.shutil, "which", lambda name: None if name == missing else f"/usr/bin/{name}")
    with pytest.raises(ValueError, match=rf"^no {missing} on PATH: go to a login node"):
        submit_arrays(abs, [1], Request(tmp_path, SMALL, "runs", 1), lambda *job: None)


def test_a_script_has_its_token_beside_the_users_comment_and_whole_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commented = dataclasses.replace(SMALL, comment="project=x")
    script = render_sbatch(2, Request(Path("it's"), commented, "runs", 2), "petseg:0123")
    assert options(script, "comment", "job-name") == ["'project=x petseg:0123'", "runs-0123"]
    folder = f"{tmp_path}/it's"
    assert f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(folder)}\n" in script
    lines = script.splitlines()
    assert lines[-len(last_lines()) :] == last_lines()
    assert [line for line in setup_lines(Path(folder), "petseg:0123") if line not in lines] == []
    monkeypatch.setenv("HOME", "/home/me")
    assert options(render_sbatch(1, Request(Path("~/logs"), SMALL, "runs", 2)), "output") == [
        "/home/me/logs/%j_0_log.out"
    ]


@pytest.mark.usefixtures("small_arrays")
def test_shown_scripts_have_placeholders(tmp_path: Path) -> None:
    scripts = render_scripts(4, Request(tmp_path, SMALL, "runs", 4))
    assert [options(script, "comment", "job-name") for script in scripts] == [["petseg:TOKEN", "runs-TOKEN"]] * 2
