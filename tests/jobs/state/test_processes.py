"""Processes that run trials are told from others that were given their pids."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.state import processes
from jobs.state.processes import command_line, is_launcher, parent_of, runs_trials, works_for

Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a process that sleeps, with these words on its command line, in tmp_path; returns its pid."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(*words: str) -> int:
        process = subprocess.Popen(["sh", "-c", "sleep 30 & wait", *words], cwd=tmp_path)
        running.append(process)
        deadline = time.monotonic() + 30
        while words and words[-1] not in command_line(process.pid):  # it has not become sh yet
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return process.pid

    yield begin
    for process in running:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait()
        for child in children:
            os.kill(int(child), 9)


def test_a_job_works_for_the_folder_that_it_names_last(start: Start, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "logs")
    pid = start("submitit", "logs")  # from its own working folder
    assert command_line(pid)[-2:] == ["submitit", "logs"]
    assert runs_trials(pid)
    assert works_for(pid, tmp_path / "logs")
    assert works_for(pid, tmp_path / "link")
    assert not works_for(pid, tmp_path)
    other = start("torchrun", str(tmp_path / "logs"))
    assert not runs_trials(other)
    assert not works_for(other, tmp_path / "logs")


def test_a_process_of_another_user_is_not_ours(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, launcher = start("submitit", str(tmp_path)), start("python", "jobs/sweep.py")
    assert works_for(job, tmp_path)
    assert is_launcher(launcher)
    monkeypatch.setattr(processes.os, "getuid", lambda: os.geteuid() + 1)
    assert not works_for(job, tmp_path)
    assert not is_launcher(launcher)


@pytest.mark.parametrize(
    ("words", "launches"),
    [
        (["python", "/home/me/petseg/jobs/sweep.py", "--axis", "x"], True),
        (["python", "jobs/status.py"], False),
        (["python", "other/sweep.py"], False),
        (["python", "jobs/sweep.py.old"], False),
    ],
)
def test_a_launcher_is_known_by_its_script(start: Start, words: list[str], launches: bool) -> None:
    assert is_launcher(start(*words)) is launches


def test_the_parent_of_a_process_is_found_whatever_its_name_is(tmp_path: Path) -> None:
    """Its name stands in brackets before its parent, and may have some itself."""
    assert parent_of(os.getpid()) == os.getppid()
    odd = tmp_path / "a) 1 (b"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "30"]) as process:
        deadline = time.monotonic() + 30
        while not command_line(process.pid) or "30" not in command_line(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert parent_of(process.pid) == os.getpid()
        process.kill()


def test_a_process_that_is_gone_is_nobody(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    pid = process.pid
    assert (command_line(pid), parent_of(pid)) == ([], 0)
    assert [runs_trials(pid), works_for(pid, tmp_path), is_launcher(pid)] == [False] * 3
