"""What the processes that run local jobs are told, which of them run at a time, and which are ended; with stand-ins."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from submitit.core.utils import DelayedSubmission

from slurm import local
from slurm.local import run_local
from slurm.request import Request
from slurm.resources import Resources


def test_what_a_controller_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what an earlier process of its pid has left is not taken for its own."""
    started: list[tuple[list[str], dict[str, object]]] = []

    def start(command: list[str], **options: object) -> SimpleNamespace:
        started.append((command, options))
        return SimpleNamespace(pid=77, poll=lambda: None)

    monkeypatch.setattr(local.subprocess, "Popen", start)
    monkeypatch.setenv("LAB", "theirs")
    monkeypatch.setenv("SUBMITIT_LOCAL_WITH_SHELL", "1")
    asked = Resources(gpus_per_node=3, tasks_per_node=2, timeout_min=7, signal_delay_s=30)
    executor = local._build_executor(tmp_path / "jobs", asked)
    executor.update_parameters(variables={"LAB": "ours"}, visible_gpus=[4, 6, 7])
    for name in ("77_0_result.pkl", "77_submitted.pkl", "770_submitted.pkl"):
        (tmp_path / "jobs" / name).touch()
    job = executor.start(abs, -1)
    ((command, options),) = started
    assert command == [sys.executable, "-m", "submitit.local._local", str(tmp_path / "jobs")]
    assert options["start_new_session"] is True
    environ = options["env"]
    assert isinstance(environ, dict)
    own = {name: value for name, value in environ.items() if name.startswith("SUBMITIT_")}
    assert own.pop("SUBMITIT_LOCAL_COMMAND").endswith(f"submitit.core._submit {tmp_path / 'jobs'}")
    assert own == {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_LOCAL_NODEID": "0",
        "SUBMITIT_LOCAL_NTASKS": "2",
        "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "30",
        "SUBMITIT_LOCAL_TIMEOUT_S": "420",
        "SUBMITIT_LOCAL_WITH_SHELL": "",
        "SUBMITIT_STDERR_TO_STDOUT": "1",
    }
    assert (environ["LAB"], environ["CUDA_VISIBLE_DEVICES"], environ["PATH"]) == ("ours", "4,6,7", os.environ["PATH"])
    left = sorted(path.name for path in (tmp_path / "jobs").iterdir())
    assert left == ["770_submitted.pkl", "77_submitted.pkl", "controllers.log"]
    work = DelayedSubmission.load(job.paths.submitted_pickle)
    assert (work.args, work._timeout_min, work._timeout_countdown) == ((-1,), 7, 1000)
    assert (job.job_id, job._tasks) == ("77", (0, 1))


class Controllers:
    """Jobs that end when they are asked for the third time; what is cancelled is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parameters: list[dict[str, object]] = []
        self.cancelled: list[tuple[list[int], float]] = []
        self.started = 0
        monkeypatch.setattr(local, "_build_executor", lambda folder, resources: self)
        monkeypatch.setattr(local, "POLL_S", 0.0)
        monkeypatch.setattr(
            local, "cancel", lambda jobs, grace_s: self.cancelled.append(([job.number for job in jobs], grace_s))
        )

    def update_parameters(self, **parameters: object) -> None:
        self.parameters.append(parameters)

    def start(self, function: object, item: int) -> SimpleNamespace:
        asked: list[int] = []
        self.started += 1
        return SimpleNamespace(number=item, done=lambda: asked.append(1) or len(asked) >= 3)


def test_gpus_go_from_a_job_that_ended_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,9")
    controllers, told = Controllers(monkeypatch), []
    request = Request(tmp_path, Resources(gpus_per_node=1), "t", 2, variables={"CODE": "v1"})
    jobs = run_local(abs, [0, 1, 2], request, lambda index, job, state: told.append((index, state)))
    assert [job.number for job in jobs] == [0, 1, 2]
    assert controllers.parameters == [{"variables": {"CODE": "v1"}}, *({"visible_gpus": [gpu]} for gpu in (5, 7, 7))]
    assert told[:4] == [(0, "started"), (1, "started"), (0, "ended"), (1, "ended")]
    assert told[4:] == [(2, "started"), (2, "ended")]
    assert controllers.cancelled == []


@pytest.mark.parametrize(
    ("error", "messages"),
    [
        (KeyboardInterrupt, ["stopping: what runs saves, for 2.5 s at most; Ctrl-C again ends it at once"]),
        (RuntimeError, []),
    ],
)
def test_an_error_ends_what_runs_and_starts_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: type[BaseException],
    messages: list[str],
) -> None:  # fmt: skip
    controllers = Controllers(monkeypatch)

    def fail(index: int, job: object, state: str) -> None:
        if (index, state) == (2, "started"):
            raise error

    with pytest.raises(error):
        run_local(abs, range(5), Request(tmp_path, Resources(gpus_per_node=0), "t", 2), fail, save_grace_s=2.5)
    assert controllers.started == 3
    ((cancelled, grace_s),) = controllers.cancelled
    assert (cancelled[-1], grace_s) == (2, 2.5)
    assert 0 not in cancelled  # it has ended
    assert caplog.messages == messages
