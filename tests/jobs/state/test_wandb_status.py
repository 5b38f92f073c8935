"""What status and the end of a sweep say of wandb, by what the trials have noted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from jobs import status
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Sweep
from jobs.state.trial_status import TrialStatus
from jobs.state.wandb_status import CUT_OFF, MAX_REASON, wandb_status
from jobs.sweep import main as sweep_main
from jobs.sync import main as sync_main
from petseg.tracking.note import TRACKING_NAME, State, TrackingNote, save_note
from shards.command import OK, run_command
from tests.jobs.written_trials import finish, sweep_of
from tests.wandb_server import KEY, Fault, WandbServer

PROJECT = "https://wandb.lab:8443/us/pets"


def noted(
    sweep: Sweep, *states: State, reason: str = "UsageError: No API key", begun: bool = True
) -> list[TrialStatus]:
    """The trials with these notes, all done."""
    for trial, state in zip(sweep.trials, states, strict=True):
        where = {"url": f"{PROJECT}/runs/x", "project_url": PROJECT} if begun and state != "offline" else {}
        save_note(TrackingNote(state, reason if state == "lost" else "", **where), trial.folder)
    return [TrialStatus(trial, "done") for trial in sweep.trials]


def lines(sweep: Sweep, rows: list[TrialStatus]) -> list[str]:
    return list(wandb_status(sweep.folder, rows).lines())


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    sweep = sweep_of(tmp_path / "my runs" / "lab", 3)
    for trial in sweep.trials:
        finish(trial)
    return sweep


def test_a_sweep_without_wandb_says_nothing(sweep: Sweep) -> None:
    assert lines(sweep, [TrialStatus(trial, "done") for trial in sweep.trials]) == []


def test_a_healthy_sweep_names_its_project(sweep: Sweep) -> None:
    rows = noted(sweep, "sent", "sending", "starting")
    rows[1:] = [TrialStatus(row.trial, "running") for row in rows[1:]]
    assert lines(sweep, rows) == [f"wandb: {PROJECT}"]


def test_a_sweep_that_sent_nothing_says_so_once_with_the_command(sweep: Sweep) -> None:
    rows = noted(sweep, "lost", "lost", "lost", begun=False)
    assert lines(sweep, rows) == [
        f"wandb has nothing of this sweep (UsageError: No API key): `python jobs/sync.py '{sweep.folder}'` sends it"
    ]


def test_what_is_missing_in_part_is_said_beside_the_project(sweep: Sweep) -> None:
    project, missing = lines(sweep, noted(sweep, "sent", "sending", "lost"))
    assert project == f"wandb: {PROJECT}"
    assert missing.startswith(f"wandb lacks 2 of 3 trials, or a part of it ({CUT_OFF}; UsageError: No API key): ")


def test_one_trial_that_never_began_is_not_the_whole_sweep(sweep: Sweep) -> None:
    rows = noted(sweep, "sent", "sent", "lost")
    save_note(TrackingNote("lost", "no key"), sweep.trials[2].folder)
    assert lines(sweep, rows)[1].startswith("wandb lacks 1 of 3 trials, or a part of it (no key): ")


def test_a_trial_that_has_begun_may_still_send(sweep: Sweep) -> None:
    assert lines(sweep, noted(sweep, "lost", "lost", "lost"))[1].startswith("wandb lacks 3 of 3 trials")


def test_what_is_kept_offline_is_told_with_the_command(sweep: Sweep) -> None:
    (line,) = lines(sweep, noted(sweep, "offline", "offline", "offline"))
    assert line.startswith("3 trials are kept offline: `python jobs/sync.py ")


def test_a_sweep_of_one_trial_says_so(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "one", 1)
    assert lines(sweep, noted(sweep, "lost"))[1].startswith("wandb lacks the trial, or a part of it (UsageError: ")
    assert lines(sweep, noted(sweep, "offline")) == [
        f"1 trial is kept offline: `python jobs/sync.py {sweep.folder}` sends it"
    ]


def test_three_reasons_are_told_each_once_and_cut(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "lab", 6)
    rows = [TrialStatus(trial, "done") for trial in sweep.trials]
    said = ["a\nb", "x" * (MAX_REASON + 1), "a\nb", "c", "d", "e"]
    for trial, reason in zip(sweep.trials, said, strict=True):
        save_note(TrackingNote("lost", reason), trial.folder)
    status = wandb_status(sweep.folder, rows)
    assert status.reasons == ["a b", "x" * MAX_REASON, "c", "d", "e"]
    shown = f"wandb has nothing of this sweep (a b; {'x' * MAX_REASON}; c; and 2 other reasons): "
    assert next(status.lines()).startswith(shown)
    some = wandb_status(sweep.folder, rows[:4])
    assert next(some.lines()).startswith(f"wandb has nothing of this sweep (a b; {'x' * MAX_REASON}; c): ")
    assert some.to_dict() == {
        "project_urls": [], "sent": 0, "not_sent": [row.trial.id for row in rows[:4]], "offline": 0,
        "reasons": ["a b", "x" * MAX_REASON, "c"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("state", "status", "healthy"),
    [
        ("starting", "running", True),
        ("sending", "queued", True),
        ("sending", "interrupted", False),
        ("starting", "done", False),
        ("sent", "failed", True),
        ("lost", "running", False),
    ],
)
def test_a_send_is_healthy_while_somebody_is_at_it(sweep: Sweep, state: State, status: str, healthy: bool) -> None:
    trial = sweep.trials[0]
    save_note(TrackingNote(state, "", f"{PROJECT}/runs/x", PROJECT), trial.folder)
    found = wandb_status(sweep.folder, [TrialStatus(trial, status)])
    note = TrackingNote("lost", CUT_OFF, f"{PROJECT}/runs/x", PROJECT)
    assert (len(found.healthy), found.lost) == ((1, {}) if healthy else (0, {trial.id: note}))


def test_status_shows_it_and_a_strangers_note_does_no_harm(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    noted(sweep, "sent", "lost", "offline", reason="no \x1b]0;title\x07 key")
    path = sweep.trials[0].folder / TRACKING_NAME
    path.write_text(json.dumps({"state": "sent", "project_url": "javascript:alert(1)"}))
    assert run_command(status.main, [str(sweep.folder)]) == OK
    out = capsys.readouterr().out
    assert out.count("wandb lacks 1 of 3 trials, or a part of it (no \\x1b]0;title\\x07 key)") == 1
    assert "\x1b" not in out
    assert "javascript" not in out
    assert run_command(status.main, [str(sweep.folder), "--json"]) == OK
    found = json.loads(capsys.readouterr().out)["wandb"]
    assert found["project_urls"] == [PROJECT]
    assert (found["sent"], found["not_sent"], found["offline"]) == (1, [sweep.trials[1].id], 1)


def flags_of(tiny_sweep: list[str]) -> list[str]:
    flags = [*tiny_sweep, "--cluster", "local", "--max-parallel", "2", "--set", "tracking.wandb=online"]
    flags += ["--axis", "model.arch=unet", "--axis", "train.seed=0,1", "--set", "tracking.overlays=8"]
    return [*flags, "--set", "train.epochs=4", "--set", "tracking.wandb_wait_s=60"]


@pytest.mark.slow
def test_a_sweep_online_sends_few_files_and_says_where(
    tiny_sweep: list[str], tmp_path: Path, server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(sweep_main, flags_of(tiny_sweep)) == OK
    line = f"wandb: {server.url}/lab-team/petseg\n"
    assert capsys.readouterr().out.count(line) == 1
    sweep = load_sweep(tmp_path / "runs" / "lab")
    assert len(server.runs) == 2
    for run in server.runs.values():
        media = [name for name in run.files if name.startswith("media/")]
        assert 3 <= len(media) <= 3 * (2 + math.log2(4)), media
        assert len(run.files) - len(media) <= 4, sorted(run.files)
        assert run.upserts[0]["program"] == "jobs/sweep.py"
        assert run.config["code_hash"] in {path.name for path in (sweep.folder / "code").iterdir()}
        note = json.loads((sweep.folder / "code" / run.config["code_hash"] / "snapshot.json").read_text())
        assert (run.config["git_commit"], run.config["git_changed"]) == (note["commit"], note["changed"])
        assert run.upserts[0].get("commit", "") == note["commit"]
    assert not server.artifacts
    assert sorted(run.upserts[0]["displayName"] for run in server.runs.values()) == [
        "unet none seed 0", "unet none seed 1",
    ]  # fmt: skip
    assert run_command(status.main, [str(sweep.folder)]) == OK
    assert line in capsys.readouterr().out
    assert run_command(sync_main, [str(sweep.folder)]) == OK
    assert capsys.readouterr().out == f"2 trials: 0 sent, 2 already there; 0 new rows\n{line}"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["no key", "401", "500", "gone"])
def test_a_sweep_that_wandb_did_not_take_says_so_once_and_is_sent_later(
    tiny_sweep: list[str], tmp_path: Path, server: WandbServer, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, fault: Fault,
) -> None:  # fmt: skip
    with monkeypatch.context() as trouble:
        if fault == "no key":
            trouble.delenv("WANDB_API_KEY")
        elif fault == "gone":
            trouble.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        else:
            server.fault = fault
        flags = [*flags_of(tiny_sweep), "--set", "tracking.wandb_wait_s=1", "--trials-per-job", "2"]
        assert run_command(sweep_main, flags) == OK
        sweep = load_sweep(tmp_path / "runs" / "lab")
        out, err = capsys.readouterr()
        assert out.count("wandb has nothing of this sweep (") == 1, out
        assert f"`python jobs/sync.py {sweep.folder}` sends it" in out
        assert run_command(status.main, [str(sweep.folder)]) == OK
        said = capsys.readouterr().out
        assert said.count("wandb has nothing of this sweep (") == 1
        assert KEY not in out + err + said
        assert ("No API key" in said) == (fault == "no key")
        assert "; " not in said[said.index("nothing of this sweep") :]  # one reason for all trials
    server.fault = ""
    assert run_command(sync_main, [str(sweep.folder)]) == OK
    assert "2 trials: 2 sent, 0 already there" in capsys.readouterr().out
    assert run_command(status.main, [str(sweep.folder)]) == OK
    said = capsys.readouterr().out
    assert "nothing of this sweep" not in said
    assert f"wandb: {server.url}/lab-team/petseg" in said
