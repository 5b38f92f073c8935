"""States, and what the command shows, on folders written by hand and on a real Slurm."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import vitals
from jobs.slurm_answer import ANSWER_NAME, Answer, ask
from jobs.standing import CUT_OFF, quick_standings, rows_of, standings
from jobs.status import main, standing
from jobs.status_table import epoch_text, render_table, state_text, to_document
from jobs.trial import Submission, Sweep, Trial, save_sweep
from jobs.vitals import read_last_row
from petseg.run_folder import Result, save_result, write_metrics
from shards.command import run_command
from slurm import rehearsal_daemons
from slurm.cluster import JobState
from slurm.rehearsal import rehearse
from slurm.rehearsal_cluster import Cluster

REPOSITORY = Path(__file__).parents[2]


def sweep_of(folder: Path, count: int) -> Sweep:
    """A sweep of `count` seeds, and each trial's config.json."""
    trials = [Trial(f"{seed:x}{'0' * 9}", {"model.arch": "unet", "train.seed": seed}, Path()) for seed in range(count)]
    trials = [replace(trial, folder=folder / "trials" / trial.id) for trial in trials]
    sweep = Sweep(folder, folder.name, {"train.seed": list(range(count))}, "0" * 16, "x", tuple(trials))
    save_sweep(sweep)
    for trial in trials:
        trial.folder.mkdir(parents=True)
        config = {"config": {"train": {"epochs": 10, "batch_size": 32, "accumulation_steps": 1}}}
        (trial.folder / "config.json").write_text(json.dumps(config))
    return sweep


def finish(trial: Trial) -> None:
    metrics = {"val/dice": 0.9, "test/dice": 0.8}
    save_result(Result(trial.id, metrics, 7, 10, 31, 1, "node1", "cpu", 60.0, 83.0, 0.01, 84.0), trial.folder)


def beat(trial: Trial, epoch: int, step: int, when: float) -> None:
    content = {"time": when, "epoch": epoch, "epochs": 10, "step": step, "steps_per_epoch": 100, "images_per_s": 64.0}
    path = trial.folder / "heartbeat.json"
    path.write_text(json.dumps(content))
    os.utime(path, (when, when))


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "lab", 4)


@pytest.fixture
def trial(sweep: Sweep) -> Trial:
    return sweep.trials[3]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like one of submitit's."""
    command = [sys.executable, "-c", "import time; time.sleep(60)", "submitit"]
    with subprocess.Popen(command) as process:
        yield process
        process.kill()


def on_slurm(trial: Trial, state: str, reason: str = "", source: str = "squeue") -> tuple[Submission, dict]:
    return Submission(trial.id, "12_0", "slurm", "x.out"), {"12_0": JobState(state, reason, "node1", source)}


def test_a_label_says_where_it_lies_on_the_axes(trial: Trial) -> None:
    assert trial.label == "unet seed=3"


def test_states_on_slurm(trial: Trial) -> None:
    assert standing(trial, None, {}).status == "planned"
    row = standing(trial, *on_slurm(trial, "PENDING", "Priority"))
    assert (row.status, row.note) == ("queued", "Priority")
    assert standing(trial, *on_slurm(trial, "RUNNING")).status == "running"
    assert standing(trial, *on_slurm(trial, "UNKNOWN")).status == "queued"  # not knowing is not over
    assert standing(trial, *on_slurm(trial, "MISSING")).status == "interrupted"
    row = standing(trial, *on_slurm(trial, "FAILED"))
    assert (row.status, row.cause) == ("failed", "launch")
    trial.write_state(status="running", host="node1", job_id="12_0")
    assert standing(trial, *on_slurm(trial, "UNKNOWN")).status == "running"
    row = standing(trial, *on_slurm(trial, "NODE_FAIL"))
    assert (row.status, row.cause) == ("interrupted", "node_failure")
    assert "node1 failed" in row.note
    trial.write_state(status="failed", error="KeyError: x", host="node1", job_id="12_0")
    for state in ("FAILED", "UNKNOWN", "RUNNING"):  # its own last word holds
        row = standing(trial, *on_slurm(trial, state))
        assert (row.status, row.cause, row.note, row.host) == ("failed", "code", "KeyError: x", "node1")


def test_a_requeued_trial_is_queued_and_not_interrupted(trial: Trial) -> None:
    trial.write_state(status="interrupted", error="saved", host="node1", job_id="12_0", restarts=2)
    row = standing(trial, *on_slurm(trial, "PENDING", "BeginTime"))
    assert (row.status, row.note, state_text(row)) == ("queued", "BeginTime", "queued: BeginTime, 2 restarts")
    assert standing(trial, *on_slurm(trial, "UNKNOWN")).status == "queued"
    row = standing(trial, *on_slurm(trial, "CANCELLED"))
    assert (row.status, row.cause) == ("interrupted", "cancelled")
    assert standing(trial, *on_slurm(trial, "PREEMPTED")).status == "queued"
    assert standing(trial, *on_slurm(trial, "PREEMPTED", source="sacct")).cause == "preempted"


def test_a_submission_that_was_cut_off_is_planned(trial: Trial) -> None:
    row = standing(trial, Submission(trial.id, "", "slurm", ""), {})
    assert (row.status, row.note) == ("planned", CUT_OFF)


def test_trials_of_one_job_wait_for_their_turn(sweep: Sweep) -> None:
    first, second = sweep.trials[:2]
    submission, jobs = on_slurm(first, "RUNNING")
    first.write_state(status="failed", error="KeyError: x", host="node1", job_id="12_0")
    assert standing(first, submission, jobs, shared=True).status == "failed"
    row = standing(second, replace(submission, trial=second.id), jobs, shared=True)
    assert (row.status, row.note) == ("queued", "waits for its turn in its job")
    row = standing(second, replace(submission, trial=second.id), on_slurm(second, "FAILED")[1], shared=True)
    assert row.status == "interrupted"
    assert "before its turn" in row.note


def in_one_job(sweep: Sweep, job_id: str = "12_0") -> None:
    sweep.add_submissions([Submission(trial.id, job_id, "slurm", "x.out") for trial in sweep.trials])


def statuses(sweep: Sweep, job: JobState) -> list[str]:
    return [row.status for row in rows_of(sweep, sweep.submissions(), {"12_0": job})]


def test_each_trial_of_a_job_has_a_state_of_its_own(sweep: Sweep) -> None:
    """Four trials, one after the other in one job, which is requeued when the third has begun."""
    in_one_job(sweep)
    first, second, third, _ = sweep.trials
    waiting, running = JobState("PENDING", "Priority", "", "squeue"), JobState("RUNNING", "", "node1", "squeue")
    assert statuses(sweep, waiting) == ["queued"] * 4
    assert statuses(sweep, running) == ["queued"] * 4  # its processes start
    first.write_state(status="running", host="node1", job_id="12_0")
    assert statuses(sweep, running) == ["running", "queued", "queued", "queued"]
    finish(first)
    second.write_state(status="failed", error="KeyError: x", host="node1", job_id="12_0")
    third.write_state(status="running", host="node1", job_id="12_0")
    assert statuses(sweep, running) == ["done", "failed", "running", "queued"]
    assert statuses(sweep, waiting) == ["done", "failed", "queued", "queued"]
    third.write_state(status="interrupted", error="saved", host="node1", job_id="12_0")
    second.write_state(status="running", host="node1", job_id="12_0", restarts=1)  # has no result: tried once more
    assert statuses(sweep, running) == ["done", "running", "queued", "queued"]
    rows = rows_of(sweep, sweep.submissions(), {"12_0": running})
    assert [row.note for row in rows[2:]] == ["waits for its turn in its job"] * 2
    assert statuses(sweep, JobState("CANCELLED", "", "", "sacct")) == ["done"] + ["interrupted"] * 3


def test_of_a_jobs_trials_that_say_they_run_the_latest_does(sweep: Sweep) -> None:
    """After a power cut the third had no time to say that it stopped, and its job begins with the second again."""
    in_one_job(sweep)
    finish(sweep.trials[0])
    running = JobState("RUNNING", "", "node1", "squeue")
    for place in (2, 1):
        sweep.trials[place].write_state(status="running", host="node1", job_id="12_0")
        beat(sweep.trials[place], 4, 60, time.time())
        time.sleep(0.01)
    rows = rows_of(sweep, sweep.submissions(), {"12_0": running})
    assert [row.status for row in rows] == ["done", "running", "queued", "queued"]
    assert (rows[2].note, rows[2].beat, rows[2].left_s) == ("waits for its turn in its job", None, None)
    assert rows[1].beat is not None


def test_as_many_trials_of_a_job_run_as_train_at_once(sweep: Sweep) -> None:
    """After a power cut the first had no time to say that it stopped, and the other two were taken before it."""
    in_one_job(sweep)
    for slot, place in ((2, 0), (1, 1), (2, 2)):
        state = {"host": "node1", "job_id": "12_0", "slot": slot, "at_once": 2}
        sweep.trials[place].write_state(status="running", **state)
        time.sleep(0.01)
    assert statuses(sweep, JobState("RUNNING", "", "node1", "squeue")) == ["queued", "running", "running", "queued"]


def test_states_on_this_machine(trial: Trial, process: subprocess.Popen[bytes]) -> None:
    mine = Submission(trial.id, str(process.pid), "local", "x.out")
    gone, foreign = replace(mine, job_id="999999999"), replace(mine, job_id=str(os.getpid()))
    trial.write_state(status="running", host=socket.gethostname(), job_id=mine.job_id)
    assert standing(trial, mine, {}).status == "running"
    for other in (gone, foreign):  # a pid that another program was given
        trial.write_state(status="running", host=socket.gethostname(), job_id=other.job_id)
        row = standing(trial, other, {})
        assert (row.status, row.cause) == ("interrupted", "killed")
    # its controller was killed, its rank 0 was not
    trial.write_state(status="running", host=socket.gethostname(), job_id=gone.job_id, pid=process.pid)
    assert standing(trial, gone, {}).status == "running"
    trial.write_state(status="running", host="another", job_id=gone.job_id)
    assert standing(trial, gone, {}).status == "running"
    trial.write_state(status="running", host=socket.gethostname(), job_id="DEBUG_1", pid=os.getpid())
    assert standing(trial, Submission(trial.id, "DEBUG_1", "debug", ""), {}).status == "running"


def test_a_running_trial_shows_its_step_and_the_time_left(trial: Trial) -> None:
    now = time.time()
    trial.write_state(status="running", host="node1", job_id="12_0")
    beat(trial, 4, 60, now + 1)
    write_metrics([{"epoch": e, "val/dice": e / 10, "perf/seconds": 60.0} for e in (1, 2, 3)], trial.folder)
    row = standing(trial, *on_slurm(trial, "RUNNING"))
    assert (row.status, row.epoch, row.epochs, row.dice) == ("running", 3, 10, 0.3)
    assert epoch_text(row) == "4/10 step 60/100"
    assert row.left_s == (1000 - 360) * 32 / 64
    assert state_text(row) == "running, 5 min left"
    beat(trial, 4, 60, now - 60)  # of an earlier life
    assert standing(trial, *on_slurm(trial, "RUNNING")).beat is None


def budgeted(trial: Trial, **train: float) -> None:
    path = trial.folder / "config.json"
    config = {"config": {"train": {"epochs": 100, "batch_size": 32, "accumulation_steps": 1, **train}}}
    path.write_text(json.dumps(config))
    vitals.planned.cache_clear()
    trial.write_state(status="running", host="node1", job_id="12_0")


def test_a_budget_of_steps_is_what_is_left(trial: Trial) -> None:
    budgeted(trial, budget_steps=950)
    assert epoch_text(standing(trial, *on_slurm(trial, "RUNNING"))) == ""  # how many steps an epoch has is not known
    beat(trial, 1, 60, time.time() + 1)
    row = standing(trial, *on_slurm(trial, "RUNNING"))
    assert (epoch_text(row), row.epochs, row.left_s) == ("1/10 step 60/100", 10, (950 - 60) * 32 / 64)
    write_metrics([{"epoch": 1, "val/dice": 0.3, "perf/seconds": 60.0}], trial.folder)
    assert epoch_text(standing(trial, *on_slurm(trial, "PENDING"))) == "1/10"


def test_a_budget_of_minutes_is_what_is_left(sweep: Sweep, trial: Trial) -> None:
    budgeted(trial, budget_min=5.0)
    beat(trial, 1, 60, time.time() + 1)  # which still says what train.epochs would come to
    row = standing(trial, *on_slurm(trial, "RUNNING"))
    assert (epoch_text(row), row.left_s) == ("1/? step 60/100", 300 - 60 * 32 / 64)
    assert to_document(sweep, [row], Answer())["trials"][0]["epochs"] == 0
    beat(trial, 2, 60, time.time() + 1)  # ten epochs, of which as much as the clock allows
    row = standing(trial, *on_slurm(trial, "RUNNING"))
    assert (epoch_text(row), row.left_s) == ("2/10 step 60/100", 300 - 160 * 32 / 64)
    beat(trial, 10, 98, time.time() + 1)
    assert standing(trial, *on_slurm(trial, "RUNNING")).left_s == 0


@pytest.mark.parametrize(
    ("silent_s", "epoch_s", "status"),
    [(500, 1.0, "running"), (700, 1.0, "stalled"), (700, 200.0, "running"), (1100, 200.0, "stalled")],
)
def test_a_trial_without_a_sign_of_life_is_stalled(trial: Trial, silent_s: float, epoch_s: float, status: str) -> None:
    then = time.time() - silent_s
    trial.write_state(status="running", host="node1", job_id="12_0")
    state = trial.state() | {"time": then - 50}
    (trial.folder / "state.json").write_text(json.dumps(state))
    beat(trial, 4, 60, then)
    write_metrics([{"epoch": 3, "perf/seconds": epoch_s}], trial.folder)
    os.utime(trial.folder / "metrics.jsonl", (then, then))
    row = standing(trial, *on_slurm(trial, "RUNNING"))
    assert row.status == status
    assert ("no sign of life for" in row.note) == (status == "stalled")
    assert standing(trial, *on_slurm(trial, "PENDING")).status == "queued"


def test_the_last_row_is_found_before_one_that_was_cut_short(tmp_path: Path) -> None:
    assert read_last_row(tmp_path) == {}
    write_metrics([{"epoch": e, "x": "y" * 700} for e in range(50)], tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 50, "x')
    assert read_last_row(tmp_path)["epoch"] == 49


def test_a_result_of_another_version_does_not_hide_the_other_trials(sweep: Sweep) -> None:
    (sweep.trials[0].folder / "result.json").write_text("{}")
    sweep.add_submissions([Submission(sweep.trials[0].id, "999999999", "local", "")])
    finish(sweep.trials[1])
    rows = standings(sweep)
    assert [row.status for row in rows] == ["failed", "done", "planned", "planned"]
    assert "another version" in rows[0].note


def test_no_sweep_is_one_line_that_names_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sweep.json").write_text("{}")
    assert run_command(main, ["lab", "--runs-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no sweep in" in error
    assert error.endswith("or name one of other\n")


def failed_twice(sweep: Sweep) -> None:
    """Two trials that failed alike, one that is done, one that is planned."""
    logs = sweep.folder / "logs"
    logs.mkdir()
    for number, trial in enumerate(sweep.trials[:2]):
        log = logs / f"12_{number}_0_log.out"
        frames = '  File "/home/me/petseg/petseg/train.py", line 141, in train_step\n'
        log.write_text(f"Traceback (most recent call last):\n{frames}KeyError: 'dice'\n")
        sweep.add_submissions([Submission(trial.id, f"99999999{number}", "local", str(log))])
        trial.write_state(status="failed", error="KeyError: 'dice'", host="node1", job_id=f"99999999{number}")
    finish(sweep.trials[2])


def test_each_distinct_failure_is_shown_once(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    failed_twice(sweep)
    assert run_command(main, [str(sweep.folder)]) == 3
    out = capsys.readouterr().out
    assert "lab: 2 failed, 1 planned, 1 done" in out
    assert out.count("failed: code") == 2
    assert out.count("Traceback") == 1
    assert f"code: 2 trials: {sweep.trials[0].id}, {sweep.trials[1].id}" in out
    assert f"next: python jobs/retry.py {sweep.folder} --cause code --even-so" in out
    sweep.add_submissions([Submission(sweep.trials[3].id, "12_3", "slurm", "")])
    assert "Slurm does not answer (no squeue on PATH)" in _shown(sweep, capsys)


def _shown(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> str:
    """Without Slurm; a live trial makes the exit code 0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        assert run_command(main, [str(sweep.folder)]) == 0
    return capsys.readouterr().out


def test_json_is_one_document_of_stable_names(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    failed_twice(sweep)
    assert run_command(main, [str(sweep.folder), "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["format_version"] == 1
    assert document["slurm"] == {"source": "", "why": "", "age_s": 0.0}
    assert document["counts"]["failed"] == 2
    assert [trial["state"] for trial in document["trials"]] == ["failed", "failed", "done", "planned"]
    assert document["trials"][0]["cause"] == "code"
    assert document["trials"][2]["val_dice"] == 0.9
    assert document["failures"][0]["trials"] == [trial.id for trial in sweep.trials[:2]]
    listed = sys.modules[main.__module__].__doc__ or ""
    names = {*document, *document["slurm"], *document["trials"][0], *document["failures"][0]}
    assert all(name in listed for name in names), names  # the docstring is their manual
    assert run_command(main, [str(sweep.folder), "--json", "--watch"]) == 2
    assert run_command(main, [str(sweep.folder), "--watch", "--every", "0"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --json prints one document: leave --watch out",
        "error: --every 0: must be at least 1 second",
    ]


def test_watch_ends_when_nothing_lives(sweep: Sweep, process: subprocess.Popen[bytes]) -> None:
    first = sweep.trials[0]
    sweep.add_submissions([Submission(first.id, str(process.pid), "local", "")])
    first.write_state(status="running", host=socket.gethostname(), job_id=str(process.pid))
    command = [sys.executable, "jobs/status.py", str(sweep.folder), "--watch", "--every", "1"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert "lab: 1 running, 3 planned" in watching.stdout.readline()
        process.kill()
        process.wait()
        out, _ = watching.communicate(timeout=60)
    assert "lab: 1 interrupted, 3 planned" in out
    assert watching.returncode == 0


def test_watch_ends_by_ctrl_c_without_a_complaint(sweep: Sweep, process: subprocess.Popen[bytes]) -> None:
    sweep.add_submissions([Submission(sweep.trials[0].id, str(process.pid), "local", "")])
    command = [sys.executable, "jobs/status.py", str(sweep.folder), "--watch"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        out, error = watching.communicate(timeout=60)
    assert (watching.returncode, error) == (0, "")
    assert "running" in out


def test_many_trials_are_shown_as_plain_columns(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "runs" / "big", 205)
    table = str(render_table("big", [standing(trial, None, {}) for trial in sweep.trials], 200))
    assert table.count("\n") == 206
    assert "log" in table
    assert "log" not in str(render_table("big", [standing(trial, None, {}) for trial in sweep.trials], 80))
    assert "unet seed=204  planned" in table


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
        rows, answer = quick_standings(sweep)
        assert rows[0].status == "running"
        assert (answer.source, answer.why) == ("squeue", "")
    assert calls() == 1
    answer = ask(sweep.folder, ["12_0"], max_age_s=0)  # too old
    assert calls() == 2
    assert ask(sweep.folder, ["13"]).states["13"].state == "MISSING"  # was not asked for before
    assert calls() == 3
    (sweep.folder / ANSWER_NAME).write_text("{")
    assert ask(sweep.folder, ["12_0"]).states == answer.states
    finish(sweep.trials[0])
    before = calls()
    assert quick_standings(sweep)[1].source == ""  # nothing is to be known of finished trials
    assert calls() == before


def test_a_silent_slurm_is_not_waited_for(tmp_path: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    answer = ask(sweep.folder, ["12_0"], timeout_s=0.2)
    assert (answer.source, answer.states["12_0"].state) == ("none", "UNKNOWN")
    assert "did not answer" in answer.why


@pytest.mark.slurm
def test_a_real_slurm_and_then_none(slurm_daemons: None, sweep: Sweep, wait_for: Callable) -> None:
    """Without accounting, and with slurmctld gone."""
    with rehearse(nodes=1, cpus=4, gpus=0) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        submit_sleepers(sweep, cluster)
        wait_for(lambda: [row.status for row in standings(sweep)] == ["running", "queued", "planned", "planned"])
        rows, answer = quick_standings(sweep)
        assert (rows[1].note, answer.source) == ("JobArrayTaskLimit", "squeue")
        (sweep.folder / ANSWER_NAME).unlink()
        rehearsal_daemons.end(cluster.root, "slurmctld")
        rows, answer = quick_standings(sweep)
        assert answer.source == "none"
        assert [row.status for row in rows] == ["queued", "queued", "planned", "planned"]


def submit_sleepers(sweep: Sweep, cluster: Cluster) -> None:
    command = ["sbatch", "--parsable", "--array=0-1%1", f"--output={sweep.folder}/%a", "--wrap", "sleep 300"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, env=cluster.env)
    for number in range(2):
        sweep.add_submissions([Submission(sweep.trials[number].id, f"{done.stdout.strip()}_{number}", "slurm", "")])
