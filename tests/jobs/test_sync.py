"""jobs/sync.py with wandb's own client against a recording server on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Sweep, Trial
from jobs.state.observed import Observed, observe
from jobs.sync import main
from jobs.wandb_sync import replay
from jobs.wandb_sync.trials import NOTE_NAME, SyncPlan, Target
from petseg.config import RunConfig, TrackingConfig
from petseg.config.values import trial_id
from petseg.evaluation.measure import PredictedPicture
from petseg.run_folder.attempts import begin_attempt
from petseg.run_folder.layout import Result, append_metrics, claim_folder, save_result
from petseg.tracking.naming import RunName
from petseg.tracking.note import read_note as read_tracking_note
from petseg.tracking.overlays import save_overlays
from petseg.tracking.tracker import Tracker
from shards.command import FAILED, INTERRUPTED, OK, WRONG_USE, run_command
from tests.targets import PET
from tests.wandb_server import KEY, Fault, WandbServer

HASH = "0" * 64


def build_sweep(folder: Path, trials: int, epochs: int = 3) -> Sweep:
    """Trials that are done, as a run without wandb leaves them."""
    found = []
    for seed in range(trials):
        config = replace(RunConfig(), train=replace(RunConfig().train, seed=seed))
        trial = Trial(trial_id(config, HASH), {"train.seed": seed}, folder / "trials" / trial_id(config, HASH))
        claim_folder(config, HASH, trial.folder)
        begin_attempt(trial.folder, 0)
        for epoch in range(1, epochs + 1):
            add_row(trial.folder, epoch)
        result = Result(trial.id, {"val/dice": 0.3}, 3, epochs, 31, 1, "node1", "cpu", 60.0, 83.0, 0.01, 84.0)
        save_result(result, trial.folder)
        found.append(trial)
    sweep = Sweep(folder, folder.name, {"train.seed": list(range(trials))}, HASH, "x", tuple(found))
    save_sweep(sweep)
    return sweep


def add_row(folder: Path, epoch: int) -> None:
    append_metrics({"epoch": epoch, "step": 10 * epoch, "val/dice": 0.1 * epoch, "perf/seconds": 1.0}, folder)


def sync(sweep: Sweep, *flags: str) -> int:
    return run_command(main, [str(sweep.folder), "--parallel", "2", "--runs-per-s", "50", *flags])


def snapshot(server: WandbServer) -> dict[str, object]:
    """What somebody who looks at wandb sees, without the client's own notes."""
    return {
        name: (run.rows, {k: v for k, v in run.summary.items() if k[0] != "_"}, run.exit_codes[-1])
        for name, run in server.runs.items()
    }


@pytest.mark.slow
def test_a_replay_run_twice_sends_the_same_runs_with_the_same_rows(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = build_sweep(tmp_path / "runs" / "lab", 3)
    with_pictures = sweep.trials[0].folder
    blank = np.zeros((32, 32), np.uint8)
    save_overlays(3, [PredictedPicture("cat_1", np.zeros((32, 32, 3), np.uint8), blank, blank, PET)], with_pictures)
    name = f"lab-{sweep.trials[0].id}"
    offline, evaluation = (
        with_pictures / "wandb" / f"offline-run-20260301_000000-{id_}" / f"run-{id_}.wandb"
        for id_ in (name, f"{name}-eval-01234567")
    )
    for path in (offline, evaluation):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    assert sync(sweep, "--project", "pets") == OK
    out = capsys.readouterr().out
    assert "3 trials: 3 sent, 0 already there; 10 new rows\nwandb: " in out
    assert f"wandb: {server.url}/lab-team/pets\n" in out
    assert sorted(server.runs) == sorted(f"lab-{trial.id}" for trial in sweep.trials)
    for run in server.runs.values():
        assert run.epochs == [1, 2, 3]
        assert run.exit_codes == [0]
        assert (run.upserts[0]["groupName"], run.upserts[0]["project"]) == ("lab", "pets")
        assert (run.config["sweep"], run.config["data_hash"], run.config["restarts"]) == ("lab", HASH, 0)
        assert (run.summary["val/dice"], run.summary["parameters"]) == (0.3, 31)
        assert run.summary["best_dice"] == pytest.approx(0.3)
    assert [run.upserts[0]["displayName"] for _, run in sorted(server.runs.items())] == [
        f"unet none seed {trial.axes['train.seed']}" for trial in sorted(sweep.trials, key=lambda trial: trial.id)
    ]
    here = {"requirements.txt", "wandb-metadata.json"}  # what is installed where it is replayed, which ran nothing
    assert all(here.isdisjoint(run.files) for run in server.runs.values())
    assert {run.upserts[0]["program"] for run in server.runs.values()} == {"jobs/sweep.py"}
    assert all(read_tracking_note(trial.folder).state == "sent" for trial in sweep.trials)
    pictured = server.runs[f"lab-{sweep.trials[0].id}"]
    assert len(pictured.rows[3]["val/overlays"]["filenames"]) == 1
    assert offline.with_name(f"{offline.name}.synced").exists()
    assert not evaluation.with_name(f"{evaluation.name}.synced").exists()
    assert server.most_at_once <= 2
    first, asked = snapshot(server), server.requests
    assert sync(sweep, "--project", "pets") == OK  # by the notes
    assert capsys.readouterr().out == (
        f"3 trials: 0 sent, 3 already there; 0 new rows\nwandb: {server.url}/lab-team/pets\n"
    )
    assert server.requests == asked
    for trial in sweep.trials:
        (trial.folder / NOTE_NAME).unlink()
    assert sync(sweep, "--project", "pets") == OK  # by what wandb has
    assert "3 trials: 0 sent, 3 already there; 0 new rows\n" in capsys.readouterr().out
    assert snapshot(server) == first
    assert KEY not in "".join(path.read_text() for path in sweep.folder.rglob("*.json"))


@pytest.mark.slow
def test_a_trial_that_trained_further_is_sent_from_there(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first two epochs it sent itself, then wandb was gone, and it was interrupted; at last it is done."""
    sweep = build_sweep(tmp_path / "runs" / "lab", 1)
    trial = sweep.trials[0]
    (trial.folder / "result.json").rename(trial.folder / "later")
    metrics = (trial.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (trial.folder / "metrics.jsonl").write_text("".join(metrics[:2]))
    name = RunName(f"lab-{trial.id}", "lab")
    Tracker(trial.folder, TrackingConfig("online", wandb_wait_s=60.0), name, {}, 2).finish({}, "failed")
    (run,) = server.runs.values()
    assert run.epochs == [1, 2]
    (trial.folder / "metrics.jsonl").write_text("".join(metrics))
    (trial.folder / "later").rename(trial.folder / "result.json")
    assert sync(sweep) == OK
    assert "1 trial: 1 sent, 0 already there; 1 new rows" in capsys.readouterr().out
    assert run.epochs == [1, 2, 3]
    assert run.exit_codes == [1, 0]
    assert len(server.runs) == 1


@pytest.mark.slow
def test_a_run_without_a_sweep(server: WandbServer, tmp_path: Path) -> None:
    """It has not said how it ended: it can go on."""
    folder = tmp_path / "single"
    claim_folder(RunConfig(), HASH, folder)
    add_row(folder, 1)
    assert run_command(main, [str(folder)]) == OK
    ((name, run),) = server.runs.items()
    assert name == trial_id(RunConfig(), HASH)
    assert (run.epochs, run.exit_codes, run.preempting > 0) == ([1], [75], True)


def test_running_trials_are_left_alone(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.wandb_sync import trials as sync_trials

    sweep = build_sweep(tmp_path / "runs" / "lab", 2)
    rows = observe(sweep).rows
    still = Observed(sweep, tuple(replace(row, status="running") for row in rows))
    monkeypatch.setattr(sync_trials, "observe", lambda _: still)
    assert sync(sweep) == OK
    assert not server.runs
    out = capsys.readouterr().out
    assert out.count("is running: sync again when it has ended") == 2
    assert "0 trials: 0 sent, 0 already there" in out


def test_no_key_no_network_no_sweep(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = build_sweep(tmp_path / "runs" / "lab", 1)
    assert run_command(main, ["none", "--runs-dir", str(tmp_path / "runs")]) == WRONG_USE
    assert "or name one of lab" in capsys.readouterr().err
    assert sync(sweep, "--timeout-s", "0") == WRONG_USE
    assert "--timeout-s 0: must be more than 0" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_BASE_URL", "http://me:hidden@127.0.0.1:9")
    assert sync(sweep) == WRONG_USE
    err = capsys.readouterr().err
    assert "does not answer" in err
    assert "hidden" not in err
    monkeypatch.delenv("WANDB_API_KEY")
    assert sync(sweep) == WRONG_USE
    assert "no key for 127.0.0.1" in capsys.readouterr().err
    assert not server.runs


def test_a_key_in_netrc_is_for_a_host_and_its_port(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = build_sweep(tmp_path / "runs" / "lab", 1)
    monkeypatch.delenv("WANDB_API_KEY")
    port = server.server_address[1]
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1\n  login user\n  password {KEY}\n")
    assert sync(sweep) == WRONG_USE
    err = capsys.readouterr().err
    assert f"no key for 127.0.0.1:{port}" in err
    assert f"lacks the port, {port}" in err
    assert f"type `wandb login --host {server.url}`" in err
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1:{port}\n  login user\n  password {KEY}\n")
    assert sync(sweep) == OK
    (run,) = server.runs.values()
    assert run.epochs == [1, 2, 3]
    out, err = capsys.readouterr()
    assert KEY not in out + err


def try_fault(
    server: WandbServer, sweep: Sweep, fault: Fault, where: str, capsys: pytest.CaptureFixture[str], timeout_s: float
) -> int:
    """Sync once with a fault, and once more without; the exit code of the first time."""
    server.fault, server.fault_at = fault, where
    code = sync(sweep, "--timeout-s", str(timeout_s))
    err = capsys.readouterr().err
    assert "not sent:" in err
    assert KEY not in err
    assert not list(sweep.folder.rglob(NOTE_NAME))
    server.fault = ""
    assert sync(sweep) == OK
    assert [run.epochs for run in server.runs.values()] == [[1, 2, 3]] * len(sweep.trials)
    return code


QUICK_FAULTS: list[tuple[Fault, str]] = [("wrong json", "file_stream")]
ALL_FAULTS: list[tuple[Fault, str]] = [
    (fault, where)
    for fault in ("429", "500", "hang", "reset", "wrong json")
    for where in ("UpsertBucket", "RunResumeStatus", "file_stream")
]


@pytest.mark.parametrize(
    ("fault", "where"),
    [*QUICK_FAULTS, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL_FAULTS if case not in QUICK_FAULTS)],
)
def test_failed_runs_are_left_for_the_next_call(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: Fault, where: str
) -> None:
    sweep = build_sweep(tmp_path / "runs" / "lab", 1)
    assert try_fault(server, sweep, fault, where, capsys, timeout_s=3) == INTERRUPTED


@pytest.mark.slow
def test_a_dead_server_is_not_asked_for_every_trial(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = build_sweep(tmp_path / "runs" / "lab", 12)
    server.fault = "wrong json"
    server.fault_at = "UpsertBucket"
    assert sync(sweep) == INTERRUPTED
    assert "12 trials: 0 sent, 0 already there, 12 not sent" in capsys.readouterr().out
    assert server.requests < 12 * 3


def test_refusals_differ_from_transient_errors(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = build_sweep(tmp_path / "runs" / "lab", 1)
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    assert sync(sweep) == WRONG_USE
    err = capsys.readouterr().err
    assert "no key for 127.0.0.1" in err
    assert "API key" in err  # what is wrong with it, in the client's words
    assert "too short" not in err
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    server.fault, server.fault_at, server.message = "403", "UpsertBucket", "permission denied"
    assert sync(sweep) == FAILED
    assert "not sent:" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_sync_is_continued(
    server: WandbServer, tmp_path: Path, wait_for: Callable[[Callable[[], object]], None]
) -> None:
    sweep = build_sweep(tmp_path / "runs" / "lab", 16)
    command = [sys.executable, "-m", "jobs.sync", str(sweep.folder), "--parallel", "2"]
    for number in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
        seen = len(server.runs)
        wait_for(lambda seen=seen: len(server.runs) > seen + 2)  # the clients of a killed one may still begin two
        process.send_signal(number)
        assert process.wait(60) in (-signal.SIGKILL, 130)
    assert sync(sweep) == OK
    assert sorted(server.runs) == sorted(f"lab-{trial.id}" for trial in sweep.trials)
    assert all(run.epochs == [1, 2, 3] for run in server.runs.values())
    assert {json.dumps(run.exit_codes[-1]) for run in server.runs.values()} == {"0"}


@pytest.mark.parametrize(("artifacts", "which"), [("config", None), ("none", "none"), ("all", "all")])
def test_each_flag_reaches_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifacts: str, which: str | None
) -> None:
    (tmp_path / "config.json").touch()
    asked: list[object] = []

    def plan(folder: Path, target: Target, again: bool) -> SyncPlan:
        asked.extend([folder, target, again])
        return SyncPlan((), (), (), ())

    monkeypatch.setattr("jobs.wandb_sync.login.require_wandb", lambda: "https://host")
    monkeypatch.setattr("jobs.wandb_sync.trials.plan_replays", plan)
    monkeypatch.setattr("jobs.wandb_sync.replay.replay_all", lambda replays, limits, mark: asked.append(limits) or [])
    flags = ["--parallel", "3", "--runs-per-s", "0.5", "--timeout-s", "7", "--project", "p", "--entity", "e", "--again"]
    assert main([str(tmp_path), "--artifacts", artifacts, *flags]) == OK
    assert asked == [tmp_path, Target("https://host", "p", "e", which), True, replay.Limits(3, 0.5, 7.0)]
