"""What may go, part by part: checkpoints, folders of wandb, logs; and that nothing else does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jobs.clean import (
    main,
    old_logs,
    removable,
    remove,
    sent_runs,
    size_of,
    size_text,
    spare_checkpoints,
    unsent_runs,
)
from jobs.runs.trial import Submission
from jobs.state.observed import Observed
from jobs.state.trial_status import TrialStatus
from shards.command import NOT_KNOWN, OK, run_command
from tests.jobs.written_trials import finish, sweep_of

ANY_AGE = float("inf")


def checkpoint(folder: Path, name: str, best: int) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"x" * 10)
    (path / "state.json").write_text(json.dumps({"best": {"step": best}}))
    return path


def spare(folder: Path, best_too: bool = False) -> list[str]:
    return [item.path.name for item in spare_checkpoints(folder, best_too)]


def test_the_newest_checkpoint_says_which_is_the_best(tmp_path: Path) -> None:
    """The newest is that of the highest step, and of those the last one made: `.10` comes after `.2`."""
    checkpoint(tmp_path, "step-00000100", best=300)
    checkpoint(tmp_path, "step-00000200", best=300)
    checkpoint(tmp_path, "step-00000300.2", best=300)
    checkpoint(tmp_path, "step-00000300", best=300)
    checkpoint(tmp_path, "step-00000300.10", best=100)
    assert spare(tmp_path) == ["step-00000200", "step-00000300", "step-00000300.10", "step-00000300.2"]


def test_of_several_checkpoints_of_the_best_step_the_last_one_stays(tmp_path: Path) -> None:
    for name in ("step-00000100", "step-00000100.2", "step-00000100.10", "step-00000200"):
        checkpoint(tmp_path, name, best=100)
    assert spare(tmp_path) == ["step-00000100", "step-00000100.2", "step-00000200"]
    assert len(spare(tmp_path, best_too=True)) == 4


def test_leftovers_go_and_folders_of_others_stay(tmp_path: Path) -> None:
    checkpoint(tmp_path, "step-00000100", best=100)
    leftovers = (".step-00000100.tmp", ".step-00000100.1.tmp", "unusable-step-00000090")
    for name in (*leftovers, "notes", "step-100", "step-00000100.bak", "old-step-00000100"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000050").write_text("a file")
    assert spare(tmp_path) == sorted(leftovers)
    assert spare(tmp_path, best_too=True) == sorted([*leftovers, "step-00000100"])


def test_without_a_best_checkpoint_nothing_goes(tmp_path: Path) -> None:
    assert spare(tmp_path / "none") == []
    (tmp_path / "empty" / ".step-00000100.tmp").mkdir(parents=True)
    assert spare(tmp_path / "empty") == []
    checkpoint(tmp_path / "gone", "step-00000200", best=100)
    assert spare(tmp_path / "gone", best_too=True) == []
    linked = tmp_path / "linked"
    for name in ("step-00000100", "step-00000200"):
        checkpoint(tmp_path / "others", name, best=100)
    linked.symlink_to(tmp_path / "others")
    assert spare(linked) == []


def test_only_folders_of_runs_that_wandb_has_go(tmp_path: Path) -> None:
    for name in ("run-1", "offline-run-2", "offline-run-3", "latest-run", "settings", "my-run-4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wandb").write_bytes(b"xx")
    (tmp_path / "offline-run-3" / "a.wandb.synced").touch()
    (tmp_path / "offline-run-5").write_text("a file")
    assert [(item.path.name, item.what, item.num_bytes) for item in sent_runs(tmp_path)] == [
        ("offline-run-3", "wandb", 2),
        ("run-1", "wandb", 2),
    ]
    assert [path.name for path in unsent_runs(tmp_path)] == ["offline-run-2"]


def test_logs_of_a_job_go_once_no_trial_needs_it(tmp_path: Path) -> None:
    """Trial 0 had two jobs, trial 1 shares job 7 with it and runs in another, trial 2 has had one alone."""
    sweep = sweep_of(tmp_path / "runs" / "lab", 3)
    jobs = [(0, ""), (0, "5"), (0, "7_1"), (1, "7_1"), (1, "8_12"), (2, "9_0"), (0, "20_3"), (0, "20_4"), (0, "21")]
    sweep.add_submissions([Submission(sweep.trials[trial].id, job, "slurm", "") for trial, job in jobs])
    logs = sweep.folder / "logs"
    logs.mkdir()
    stays = ["21_0_log.out", "9_0_0_log.out", "9_submission.sh", "8_submission.sh", "7_1_0_log.out", "7_submission.sh"]
    stays += ["notes.txt", "5_0_log.txt", "x5_0_log.out", "2_submission.sh", "22_submission.sh"]
    goes = ["20_3_0_log.err", "20_4_submitted.pkl", "20_submission.sh", "5_0_log.out", "5_0_result.pkl"]
    for name in (*stays, *goes):
        (logs / name).write_bytes(b"xyz")
    (logs / "5_1_log.out").symlink_to(logs / "notes.txt")
    (logs / "5_2_log.out").mkdir()
    last = sweep.submissions()
    rows = [
        TrialStatus(trial, state, submission=last[trial.id])
        for trial, state in zip(sweep.trials, ("done", "running", "failed"), strict=True)
    ]
    rows.append(TrialStatus(sweep.trials[0], "missing"))  # never submitted
    found = list(old_logs(sweep, rows, ANY_AGE))
    assert [item.path.name for item in found] == goes
    assert {(item.what, item.num_bytes) for item in found} == {("earlier job", 3)}
    assert list(old_logs(sweep, rows, 0.0)) == []  # all are younger
    queued = [TrialStatus(sweep.trials[0], "queued", submission=last[sweep.trials[0].id]), *rows[1:3]]
    assert list(old_logs(sweep, queued, ANY_AGE)) == []  # jobs of a live trial stay, its earlier ones too


def test_only_finished_trials_give_something_up(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "runs" / "lab", 4)
    for trial in sweep.trials:
        finish(trial)
        for name in ("step-00000100", "step-00000200"):
            checkpoint(trial.folder / "checkpoints", name, best=200)
    states = ("done", "running", "pruned", "failed")  # a result of before does not make them finished
    rows = [TrialStatus(trial, state) for trial, state in zip(sweep.trials, states, strict=True)]
    found = [item.path for item in removable(sweep, rows, -60.0, False, False)]
    assert found == [sweep.trials[0].folder / "checkpoints" / "step-00000100"]


def test_a_checkpoint_that_is_half_removed_does_not_look_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, other = checkpoint(tmp_path, "step-00000100.1", best=100), tmp_path / "run-1"
    other.mkdir()
    removed: list[Path] = []
    monkeypatch.setattr(shutil, "rmtree", removed.append)
    remove(step)
    remove(other)
    assert removed == [tmp_path / ".step-00000100.1.tmp", other]
    assert not step.exists()
    remove(tmp_path / "gone.out")  # by somebody else, in the meantime


def test_a_slurm_that_does_not_answer_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Offline runs are counted of the finished trial alone."""
    sweep = sweep_of(tmp_path / "runs" / "lab", 2)
    for trial in sweep.trials:
        (trial.folder / "wandb" / "offline-run-1").mkdir(parents=True)
    rows = [TrialStatus(sweep.trials[0], "done"), TrialStatus(sweep.trials[1], "unknown", silence="it is busy")]
    monkeypatch.setattr("jobs.clean.observe", lambda sweep: Observed(sweep, tuple(rows)))
    assert run_command(main, [str(sweep.folder)]) == NOT_KNOWN
    out = capsys.readouterr().out
    assert "0 B freed, 0 files and folders\n1 offline wandb runs are kept" in out
    assert "left alone: unknown: 1 of 2 trials" in out
    rows[1] = TrialStatus(sweep.trials[1], "running")
    assert run_command(main, [str(sweep.folder)]) == OK
    assert "left alone" not in capsys.readouterr().out


def test_a_thousand_is_a_unit_further() -> None:
    assert [size_text(size) for size in (999, 1000, 999_999, 10**6, 10**9)] == [
        "999 B", "1.0 kB", "1000.0 kB", "1.0 MB", "1.0 GB",
    ]  # fmt: skip


def test_a_folders_size_is_that_of_its_files_and_of_no_others(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"x" * 5)
    (tmp_path / "a" / "b" / "two").write_bytes(b"x" * 7)
    (tmp_path / "big").write_bytes(b"x" * 1000)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "big")
    assert size_of(tmp_path / "a") == 12 + (tmp_path / "a" / "link").lstat().st_size
