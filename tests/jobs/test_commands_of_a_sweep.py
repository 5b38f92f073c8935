"""What the commands of a sweep hand on, and their exit codes, with what they call put in place."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from jobs import best, report, status, sync
from jobs.cancel import main as cancel_main
from jobs.reporting.statistics.records import read_records
from jobs.reporting.wandb_report.send import Sent
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Submission, Sweep
from jobs.state.observed import Observed
from jobs.state.table import FORMAT_VERSION
from jobs.state.trial_status import TrialStatus
from jobs.wandb_sync.replay import Outcome
from jobs.wandb_sync.trials import SyncPlan
from petseg.inference.scores import Measurement
from shards.command import FAILED, NOT_KNOWN, OK, WRONG_USE, run_command
from tests.jobs.test_sync_summary import replay_of
from tests.jobs.written_trials import finish, sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Three seeds, two of which are finished."""
    sweep = sweep_of(tmp_path / "runs" / "lab", 3)
    for trial in sweep.trials[:2]:
        finish(trial)
    return sweep


# report


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    given: list[Any] = []

    def send(sweep: Sweep, records: Sequence[Any], content: Any) -> Sent:
        given.append((sweep.folder, len(records), content.title))
        return Sent("https://host/[report]", ("a new report is made",))

    monkeypatch.setattr("jobs.reporting.wandb_report.send.send_report", send)
    return given


def test_a_report_in_wandb_is_told_by_its_address(
    sweep: Sweep, sent: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(report.main, [str(sweep.folder), "--to", "wandb"]) == OK
    assert sent == [(sweep.folder, 3, "petseg sweep lab")]
    assert capsys.readouterr().out == "a new report is made\nhttps://host/[report]\n"
    assert not (sweep.folder / "report.html").exists()


@pytest.mark.parametrize("flags", [["--format", "json"], ["--to", "wandb"], ["--format", "md", "--out"]])
def test_a_doubt_about_trials_is_told_beside_the_result(
    sweep: Sweep,
    tmp_path: Path,
    sent: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
) -> None:
    rows = tuple(TrialStatus(trial, "unknown", silence="squeue: timed out") for trial in sweep.trials)
    monkeypatch.setattr(report, "observe", lambda of: Observed(of, rows))
    flags += [str(tmp_path / "new" / "board.md")] * flags.count("--out")
    assert run_command(report.main, [str(sweep.folder), *flags]) == NOT_KNOWN
    captured = capsys.readouterr()
    assert "3 of 3 trials" in captured.err
    assert "squeue: timed out" in captured.err
    assert captured.out
    assert (tmp_path / "new" / "board.md").exists() == ("--out" in flags)


@pytest.mark.parametrize(
    ("number", "by_choice", "kind"),
    [
        (errno.EACCES, False, ValueError), (errno.EROFS, False, ValueError), (errno.EACCES, True, PermissionError),
        (errno.ENOSPC, False, OSError),
    ],
)  # fmt: skip
def test_a_folder_of_another_user_is_told_from_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, by_choice: bool, kind: type[Exception]
) -> None:
    def write(path: Path, content: str | bytes) -> None:
        raise OSError(number, "why", str(path))

    monkeypatch.setattr(report, "write_whole", write)
    with pytest.raises(kind) as told:
        report.write(tmp_path / "report.html", "x", by_choice)
    assert type(told.value) is kind
    if kind is ValueError:
        advice = "--out report.html writes it into this folder"
        assert str(told.value) == f"{tmp_path / 'report.html'} cannot be written (why): {advice}"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--serve", "--to", "wandb"], "--serve shows the page and writes no file"),
        (["--port", "80"], "--port 80 is for --serve"),
        (["--to", "wandb", "--format", "md"], "--to wandb makes a Report of its own form"),
        (["--to", "wandb", "--out", "x"], "--to wandb makes a Report of its own form"),
    ],
)
def test_flags_of_a_report_that_exclude_each_other(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert run_command(report.main, [str(sweep.folder), *flags]) == WRONG_USE
    assert words in capsys.readouterr().err


def test_a_report_is_served_with_its_port_and_shards(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []

    def serve(of: Sweep, port: int, shards: str) -> None:
        served.append((of.folder, port, shards))
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.reporting.serve.serve_report", serve)
    flags = ["--serve", "--port", "8123", "--shards", "data/shards"]
    assert run_command(report.main, [str(sweep.folder), *flags]) == 130
    assert served == [(sweep.folder, 8123, "data/shards")]


def test_the_table_in_the_terminal_has_no_empty_columns(sweep: Sweep) -> None:
    """Nothing was measured picture by picture, and the seed is no axis."""
    table = report.leaderboard(sweep, read_records(sweep))
    assert {str(column.header): [str(cell) for cell in column.cells] for column in table.columns} == {
        "#": ["1"], "trials": ["all"], "val Dice": ["0.9000"], "seeds": ["2/3"], "test Dice": ["0.8000"],
    }  # fmt: skip
    assert [column.justify for column in table.columns] == ["right"] * 5
    assert str(table.title) == "lab: 2 done, 0 failed, 1 planned"


# best


def test_a_named_trial_is_measured_on_the_split_that_is_meant(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    monkeypatch.setattr("petseg.inference.winner.write_winner", lambda *given: written.append(given))
    out = tmp_path / "w.safetensors"
    flags = ["--trial", "seed=1", "--shards", "data/shards", "--split", "test", "--out", str(out)]
    assert run_command(best.main, [str(sweep.folder), *flags]) == OK
    assert written == [([sweep.trials[1].folder], out, "best", False, Measurement("data/shards", "test", "none"))]


# sync


def test_a_single_run_is_a_folder_of_its_own(sweep: Sweep) -> None:
    trial, runs_dir = sweep.trials[0].folder, sweep.folder.parent
    assert sync.find_folder(str(trial), runs_dir) == trial
    assert sync.find_folder("lab", runs_dir) == sync.find_folder(str(sweep.folder), Path("none")) == sweep.folder
    with pytest.raises(ValueError, match=r"^no sweep in "):
        sync.find_folder("none", runs_dir)


def test_one_sync_of_a_folder_at_a_time(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jobs.wandb_sync.login.require_wandb", lambda: "https://host")
    with FileLock(sweep.folder / sync.LOCK_NAME):
        assert run_command(sync.main, [str(sweep.folder)]) == WRONG_USE
    assert f"another jobs/sync.py is at work on {sweep.folder}: wait for it" in capsys.readouterr().err


def test_what_is_left_out_is_told_before_what_is_sent(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = SyncPlan((replay_of("a"),), ("b is running", "c is damaged"), (), ("https://host/p", ""))
    monkeypatch.setattr("jobs.wandb_sync.login.require_wandb", lambda: "https://host")
    monkeypatch.setattr("jobs.wandb_sync.trials.plan_replays", lambda *given: plan)
    monkeypatch.setattr(
        "jobs.wandb_sync.replay.replay_all", lambda *given: [Outcome("a", project_url="https://host/q")]
    )
    assert run_command(sync.main, [str(sweep.folder)]) == OK
    assert capsys.readouterr().out.splitlines() == [
        "b is running", "c is damaged", "1 trial: 1 sent, 0 already there; 0 new rows", "wandb: https://host/p",
        "wandb: https://host/q",
    ]  # fmt: skip


# cancel


def test_trials_that_share_a_job_with_others_are_told_before_it_is_ended(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tuple(
        TrialStatus(trial, "running", submission=Submission(trial.id, "7", "slurm", "")) for trial in sweep.trials
    )
    monkeypatch.setattr("jobs.cancel.observe", lambda of: Observed(of, rows))
    monkeypatch.setattr("jobs.cancel.adopt_cut_off", lambda of: None)
    monkeypatch.setattr("jobs.cancel.shared_job_warnings", lambda of, ending: [f"[b] {len(ending)} of job 7"])
    monkeypatch.setattr("jobs.cancel.confirmed", lambda count: False)
    assert run_command(cancel_main, [str(sweep.folder), sweep.trials[0].id]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["[b] 1 of job 7", "nothing was cancelled"]


# status


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--every", "0.5"], "--every 0.5: must be at least 1 second"),
        (["--watch", "--json"], "--json prints one document: leave --watch out"),
    ],
)
def test_a_watch_that_makes_no_sense(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert run_command(status.main, [str(sweep.folder), *flags]) == WRONG_USE
    assert words in capsys.readouterr().err


def link(state: str) -> Any:
    return SimpleNamespace(status=state)


@pytest.mark.parametrize(
    ("trials", "jobs", "code"),
    [
        ("done", ["done"], OK),
        ("failed", ["done"], FAILED),
        ("done", ["failed"], FAILED),
        ("unknown", ["failed"], NOT_KNOWN),
        ("running", ["running"], OK),
    ],
)
def test_the_worse_of_a_sweep_and_its_chain_is_the_exit_code(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, trials: str, jobs: list[str], code: int
) -> None:
    asked: list[Any] = []

    def chain_jobs(folder: Path, timeout_s: float) -> list[Any]:
        asked.append(folder)
        return [link(state) for state in jobs]

    rows = tuple(TrialStatus(trial, trials) for trial in sweep.trials)
    monkeypatch.setattr(status, "glance", lambda of: Observed(of, rows))
    monkeypatch.setattr(status, "chain_jobs", chain_jobs)
    monkeypatch.setattr(status, "render", lambda *given: "the table")
    monkeypatch.setattr(status, "chain_lines", lambda links: [f"{len(links)} of a chain"])
    assert run_command(status.main, [str(sweep.folder)]) == code
    assert asked == [sweep.folder]


def test_a_chain_without_a_sweep_is_told_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its pack still runs, so that no trial is submitted; a sweep of that name goes before it."""
    folder = tmp_path / "runs" / "lab"
    (folder / "chain").mkdir(parents=True)
    (folder / "chain" / "jobs.jsonl").touch()
    monkeypatch.setattr(status, "chain_jobs", lambda folder, timeout_s: [link("failed")])
    monkeypatch.setattr(status, "chain_lines", lambda links: ["pack: failed"])
    monkeypatch.setattr(status, "to_rows", lambda links: [{"step": "pack"}])
    for words in ([str(folder)], ["lab", "--runs-dir", str(folder.parent)]):
        assert run_command(status.main, words) == FAILED
        assert capsys.readouterr().out == "lab: no trials yet\npack: failed\n"
    assert run_command(status.main, [str(folder), "--json"]) == FAILED
    document = json.loads(capsys.readouterr().out)
    assert document.pop("time") > 0
    chain = [{"step": "pack"}]
    assert document == {
        "format_version": FORMAT_VERSION, "sweep": "lab", "folder": str(folder), "trials": [], "chain": chain,
    }  # fmt: skip
    save_sweep(Sweep(folder, "lab", {}, "0" * 16, "x", ()))
    assert status.chain_without_sweep(status.Command(str(folder))) is None
    assert status.chain_without_sweep(status.Command("none", tmp_path)) is None
