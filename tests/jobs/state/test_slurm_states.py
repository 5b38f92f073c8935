"""What Slurm is asked, once for many who look, and what holds when it is silent or gone."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from jobs.runs.trial import Submission, Sweep
from jobs.state import slurm_states
from jobs.state.slurm_states import ANSWER_NAME, LOCK_NAME, TIMEOUT_S, Answer, ask, forget
from jobs.state.trial_status import quick_trial_statuses, trial_statuses
from slurm.cluster import JobState
from slurm.rehearsal import daemons
from slurm.rehearsal.cluster import Cluster, rehearse
from slurm.rehearsal.settings import Site
from tests.jobs.written_trials import finish, sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "lab", 4)


def fake_squeue(folder: Path) -> Callable[[], int]:
    """Says that job 12_0 runs; returns how often it was called."""
    (folder / "squeue").write_text(f"#!/bin/sh\necho x >> {folder}/calls\necho '12_0|RUNNING|None|node1'\n")
    (folder / "squeue").chmod(0o755)
    return lambda: (folder / "calls").read_text().count("x") if (folder / "calls").exists() else 0


def test_many_who_look_ask_slurm_once(tmp_path: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_squeue(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    sweep.add_submissions([Submission(sweep.trials[0].id, "12_0", "slurm", "")])
    for _ in range(3):
        rows, answer = quick_trial_statuses(sweep)
        assert rows[0].status == "running"
        assert (answer.source, answer.why) == ("squeue", "")
    assert calls() == 1
    answer = ask(sweep.folder, ["12_0"], max_age_s=0)  # too old
    assert calls() == 2
    assert ask(sweep.folder, ["13"]).states["13"].state == "MISSING"  # was not asked for before
    assert calls() == 3
    future = {**json.loads((sweep.folder / ANSWER_NAME).read_text()), "time": time.time() + 3600}
    (sweep.folder / ANSWER_NAME).write_text(json.dumps(future))  # by another machine's clock
    ask(sweep.folder, ["13"])
    assert calls() == 4
    (sweep.folder / ANSWER_NAME).write_text("{")
    assert ask(sweep.folder, ["12_0"]).states == answer.states
    finish(sweep.trials[0])
    before = calls()
    assert quick_trial_statuses(sweep)[1].source == ""  # nothing is to be known of finished trials
    assert calls() == before


def test_a_silent_slurm_is_not_waited_for(tmp_path: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    answer = ask(sweep.folder, ["12_0"], timeout_s=0.2)
    assert (answer.source, answer.states["12_0"].state) == ("none", "UNKNOWN")
    assert "did not answer" in answer.why


RUNNING = JobState("RUNNING", "", "node1", "squeue")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], float]]:
    """What Slurm is asked: all jobs run."""
    questions: list[tuple[list[str], float]] = []

    def states(ids: Sequence[str], timeout_s: float) -> dict[str, JobState]:
        questions.append((list(ids), timeout_s))
        return dict.fromkeys(ids, RUNNING)

    monkeypatch.setattr(slurm_states, "job_states", states)
    return questions


def test_an_answer_says_who_gave_it_and_how_old_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_states.time, "time", lambda: 1000.0)
    over, silent = JobState("FAILED", "", "", "sacct"), JobState("UNKNOWN", "timed out", "", "none")
    both = Answer({"1": over, "2": RUNNING, "3": RUNNING}, 993.0)
    assert (both.source, both.why, both.age_s) == ("squeue, sacct", "", 7.0)
    none = Answer({"1": RUNNING, "2": silent}, 1003.0)  # by a clock that is ahead
    assert (none.why, none.age_s) == ("timed out", 0.0)
    assert (Answer().source, Answer().why, Answer().age_s) == ("", "", 0.0)


def test_slurm_is_asked_for_each_job_once_and_only_if_there_are_any(
    tmp_path: Path, asked: list[tuple[list[str], float]]
) -> None:
    assert ask(tmp_path, []) == Answer()
    assert ask(tmp_path, iter(["2", "1", "2"])).states == {"2": RUNNING, "1": RUNNING}
    assert asked == [(["2", "1"], TIMEOUT_S)]
    assert ask(tmp_path, ["1"]).states == {"1": RUNNING}  # by the answer that lies there
    assert len(asked) == 1


def test_an_answer_about_some_jobs_is_not_kept_where_it_would_hide_the_others(
    tmp_path: Path, asked: list[tuple[list[str], float]]
) -> None:
    assert ask(tmp_path, ["1"], timeout_s=1.5, keep=False).states == {"1": RUNNING}
    assert list(tmp_path.iterdir()) == []
    assert asked == [(["1"], 1.5)]
    ask(tmp_path, ["1", "2"])
    ask(tmp_path, ["1"], keep=False)  # an answer that is there serves all the same
    assert len(asked) == 2


def test_an_answer_that_was_forgotten_is_asked_for_again(tmp_path: Path, asked: list[tuple[list[str], float]]) -> None:
    ask(tmp_path, ["1"])
    forget(tmp_path)
    ask(tmp_path, ["1"])
    assert len(asked) == 2
    assert json.loads((tmp_path / ANSWER_NAME).read_text())["states"]["1"]["state"] == "RUNNING"


def test_who_waits_for_another_reads_its_answer(
    tmp_path: Path, asked: list[tuple[list[str], float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([None, Answer({"1": RUNNING}, 5.0)])
    read: list[object] = []
    monkeypatch.setattr(slurm_states, "_read", lambda *given: read.append(given) or next(answers))
    assert ask(tmp_path, ["1"], 3.0) == Answer({"1": RUNNING}, 5.0)
    assert read == [(tmp_path, ["1"], 3.0)] * 2
    assert asked == []


def test_who_waits_too_long_or_may_not_write_asks_by_itself(
    tmp_path: Path, asked: list[tuple[list[str], float]]
) -> None:
    with FileLock(tmp_path / LOCK_NAME):
        assert ask(tmp_path, ["1"], timeout_s=0.2).states == {"1": RUNNING}  # waits for a quarter of it
    assert not (tmp_path / ANSWER_NAME).exists()
    assert ask(tmp_path / "none", ["1"]).states == {"1": RUNNING}
    assert asked == [(["1"], 0.2), (["1"], TIMEOUT_S)]


def test_the_wait_for_another_is_a_quarter_of_that_for_slurm(
    tmp_path: Path, asked: list[tuple[list[str], float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[tuple[Path, float]] = []

    class Lock(FileLock):  # type: ignore[misc, valid-type]
        def __init__(self, path: Path, timeout: float) -> None:
            waits.append((path, timeout))
            super().__init__(path, timeout=timeout)

    monkeypatch.setattr(slurm_states, "FileLock", Lock)
    ask(tmp_path, ["1"], timeout_s=2.0)
    assert waits == [(tmp_path / LOCK_NAME, 0.5)]


@pytest.mark.parametrize(("age_s", "serves"), [(4.9, True), (5.1, False), (-4.9, True), (-5.1, False)])
def test_an_answer_serves_for_five_seconds(
    tmp_path: Path, asked: list[tuple[list[str], float]], monkeypatch: pytest.MonkeyPatch, age_s: float, serves: bool
) -> None:
    now = 1000.0
    monkeypatch.setattr(slurm_states.time, "time", lambda: now)
    ask(tmp_path, ["1"])
    now += age_s
    assert ask(tmp_path, ["1"]).time == (1000.0 if serves else now)
    assert len(asked) == 1 + (not serves)


@pytest.mark.slow
@pytest.mark.slurm
def test_a_real_slurm_and_then_none(slurm_daemons: None, sweep: Sweep, wait_for: Callable) -> None:
    """Without accounting, and with slurmctld gone."""
    with rehearse(Site(nodes=1, cpus=4, gpus=0)) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        submit_sleepers(sweep, cluster)
        wait_for(lambda: [row.status for row in trial_statuses(sweep)] == ["running", "queued", "planned", "planned"])
        rows, answer = quick_trial_statuses(sweep)
        assert (rows[1].note, answer.source) == ("JobArrayTaskLimit", "squeue")
        (sweep.folder / ANSWER_NAME).unlink()
        daemons.end(cluster.root, "slurmctld")
        rows, answer = quick_trial_statuses(sweep)
        assert answer.source == "none"
        assert [row.status for row in rows] == ["unknown", "unknown", "planned", "planned"]


def submit_sleepers(sweep: Sweep, cluster: Cluster) -> None:
    command = ["sbatch", "--parsable", "--array=0-1%1", f"--output={sweep.folder}/%a", "--wrap", "sleep 300"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, env=cluster.env)
    for number in range(2):
        sweep.add_submissions([Submission(sweep.trials[number].id, f"{done.stdout.strip()}_{number}", "slurm", "")])
