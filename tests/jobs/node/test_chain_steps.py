"""What a chain's job does with its steps, and what it leaves behind when they fail or are stopped."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.node import chain_steps
from jobs.node.chain_steps import AGAIN_S, Step, paused, run_step, run_steps
from shards.command import INTERRUPTED, NOT_KNOWN, OK


class Job:
    """A job of Slurm, whose steps end with these codes in turn."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.codes, self.done = folder, list[int](), list[Any]()
        self.asked = False
        self.time_passes = True
        for name, value in (("SUBMITIT_EXECUTOR", "slurm"), ("SUBMITIT_FOLDER", str(folder)), ("SLURM_JOB_ID", "7")):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(chain_steps, "run_step", self.run_step)
        monkeypatch.setattr(chain_steps, "paused", self.paused)
        monkeypatch.setattr(chain_steps, "exit_job", self.exit_job)
        monkeypatch.setattr(chain_steps.interrupt, "install", lambda: self.done.append("install"))
        monkeypatch.setattr(chain_steps.interrupt, "requested", lambda: self.asked)
        monkeypatch.setattr(chain_steps.interrupt, "requeue_requested", lambda: "as asked")

    def run_step(self, step: Step, folder: str) -> int:
        self.done.append((step.module, folder))
        return self.codes.pop(0)

    def paused(self, seconds: float) -> bool:
        self.done.append(seconds)
        self.asked = not self.time_passes
        return self.time_passes

    def exit_job(self, environment: Any, requeue: object) -> None:
        self.done.append((environment.job_id, requeue))
        raise SystemExit(INTERRUPTED)

    @property
    def end(self) -> dict[str, Any] | None:
        path = self.folder / "7_end.json"
        return json.loads(path.read_text()) if path.exists() else None


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


FIRST, SECOND, LAST = Step("a.first", ()), Step("a.second", (), must=False), Step("a.last", ())


def test_steps_are_run_in_turn_and_the_end_is_noted(job: Job) -> None:
    """A step that need not succeed does not end the job."""
    job.codes = [OK, 3, OK]
    (job.folder / "7_end.json").write_text("of the start before")
    run_steps(("/work", [FIRST, SECOND, LAST]))
    assert job.done == ["install", ("a.first", "/work"), ("a.second", "/work"), ("a.last", "/work")]
    assert job.end == {"module": "a.last", "code": 0}


def test_no_end_is_noted_before_the_last_step(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is killed meanwhile would count as done. Its log has the time of each line."""
    seen: list[Any] = []
    formats: list[dict[str, Any]] = []
    monkeypatch.setattr(chain_steps, "run_step", lambda step, folder: seen.append(job.end) or OK)
    monkeypatch.setattr(chain_steps.logging, "basicConfig", lambda **options: formats.append(options))
    run_steps(("/work", [FIRST, SECOND, LAST]))
    assert seen == [None] * 3
    assert formats == [{"level": logging.INFO, "format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}]


def test_a_step_that_fails_ends_the_job_and_is_noted(job: Job) -> None:
    job.codes = [OK, 3]
    with pytest.raises(RuntimeError, match=r"^python -m a\.last ended with exit code 3: see above$"):
        run_steps(("/work", [FIRST, LAST, FIRST]))
    assert len(job.done) == 3
    assert job.end == {"module": "a.last", "code": 3}


@pytest.mark.parametrize("code", [INTERRUPTED, NOT_KNOWN])
def test_a_step_that_asks_to_be_run_again_is_run_again_after_a_while(
    job: Job, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    job.codes = [code, code, OK]
    with caplog.at_level(logging.INFO):
        run_steps(("/work", [FIRST]))
    assert job.done == ["install", ("a.first", "/work"), *[AGAIN_S, ("a.first", "/work")] * 2]
    assert (
        caplog.messages
        == [f"exit code {code}: Slurm accepts no more jobs now, or does not answer; again in {AGAIN_S} s"] * 2
    )
    assert job.end == {"module": "a.first", "code": 0}


def test_a_step_that_need_not_succeed_is_run_once(job: Job) -> None:
    job.codes = [INTERRUPTED, OK]
    run_steps(("/work", [SECOND, FIRST]))
    assert job.done == ["install", ("a.second", "/work"), ("a.first", "/work")]


def test_a_job_that_is_stopped_while_it_waits_leaves_no_end(job: Job) -> None:
    job.codes, job.time_passes = [NOT_KNOWN], False
    with pytest.raises(SystemExit):
        run_steps(("/work", [FIRST, LAST]))
    assert job.done == ["install", ("a.first", "/work"), AGAIN_S, ("7", "as asked")]
    assert job.end is None


def test_a_signal_ends_the_step_and_the_job(job: Job) -> None:
    job.codes, job.asked = [INTERRUPTED], True
    with pytest.raises(SystemExit):
        run_steps(("/work", [FIRST, LAST]))
    assert job.done == ["install", ("a.first", "/work"), ("7", "as asked")]
    assert job.end is None


def test_a_step_that_had_succeeded_when_the_signal_came_is_no_failure(job: Job) -> None:
    job.codes, job.asked = [OK, OK], True
    run_steps(("/work", [FIRST, LAST]))
    assert job.end == {"module": "a.last", "code": 0}


def test_outside_of_a_job_no_step_is_run_again_and_nothing_noted(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUBMITIT_EXECUTOR")
    job.codes = [INTERRUPTED]
    with pytest.raises(RuntimeError):
        run_steps(("/work", [FIRST]))
    assert job.done == [("a.first", "/work")]
    assert job.end is None
    job.codes = [OK]
    run_steps(("/work", [FIRST]))
    assert job.end is None


def test_a_step_is_a_command_of_its_own_in_the_folder(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[Any] = []

    def run(command: list[str], cwd: str, check: bool) -> Any:
        ran.append((command, cwd, check))
        return SimpleNamespace(returncode=4)

    monkeypatch.setattr(chain_steps.subprocess, "run", run)
    with caplog.at_level(logging.INFO):
        codes = [run_step(Step("a.b", ("x y",), accepts=accepts), "/work") for accepts in ((), (4,), (3,))]
    assert codes == [4, 0, 4]
    assert ran == [([sys.executable, "-m", "a.b", "x y"], "/work", False)] * 3
    assert caplog.messages == ["python -m a.b 'x y'"] * 3


def test_a_pause_ends_with_the_time_or_with_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked, naps = 100.0, False, list[float]()

    def sleep(seconds: float) -> None:
        nonlocal now, asked
        naps.append(seconds)
        now += seconds
        asked = stops and len(naps) == 2

    monkeypatch.setattr(chain_steps, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    monkeypatch.setattr(chain_steps.interrupt, "requested", lambda: asked)
    stops = False
    assert paused(2.5)
    assert naps == [1.0, 1.0, 0.5]
    naps.clear()
    stops = True
    assert not paused(60)
    assert naps == [1.0, 1.0]
