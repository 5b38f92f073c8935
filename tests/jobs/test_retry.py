from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import jobs.sweep
from jobs.retry import main, more_accumulation
from jobs.trial import Submission, Sweep, Trial, save_sweep
from petseg.run_folder import Result, save_result
from shards.command import run_command

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
ENDS = [OOM, OOM, "KeyError: 'dice'", "shards.command.Failure: the loss is not finite in steps 0-9", "", ""]
STEPS = [1, 4, 1, 1, 1, 1]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Two trials without GPU memory, one with a bug, one with NaN, one that was killed, and one that is done."""
    folder = tmp_path / "runs" / "lab"
    trials = tuple(
        Trial(f"{seed}{'a' * 9}", {"model.arch": "unet", "train.seed": seed}, folder / "trials" / f"{seed}{'a' * 9}")
        for seed in range(len(ENDS))
    )
    sweep = Sweep(folder, "lab", {"train.seed": list(range(len(ENDS)))}, "0" * 16, "x", trials)
    save_sweep(sweep)
    for trial, error, steps in zip(trials, ENDS, STEPS, strict=True):
        trial.folder.mkdir(parents=True)
        config = {"config": {"train": {"epochs": 10, "batch_size": 36, "accumulation_steps": steps}}}
        (trial.folder / "config.json").write_text(json.dumps(config))
        job_id = f"99999999{trial.id[0]}"
        sweep.add_submissions([Submission(trial.id, job_id, "local", "")])
        trial.write_state(status="failed" if error else "running", error=error, job_id=job_id)
    result = Result(trials[-1].id, {"val/dice": 0.9}, 1, 1, 31, 1, "node1", "cpu", 60.0, 83.0, 0.01, 84.0)
    save_result(result, trials[-1].folder)
    return sweep


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reaches the launcher."""
    calls: list[Any] = []

    def resubmit(folder: Path, trial_ids: list[str], overrides: dict[str, dict[str, Any]]) -> int:
        calls.append((folder, trial_ids, overrides))
        return 0

    monkeypatch.setattr(jobs.sweep, "resubmit", resubmit, raising=False)
    return calls


def ids(sweep: Sweep, *numbers: int) -> list[str]:
    return [sweep.trials[number].id for number in numbers]


def test_what_failed_is_submitted_with_a_change_where_it_needs_one(
    sweep: Sweep, submitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, [str(sweep.folder), "--failed"]) == 0
    changes = {"train.accumulation_steps": 2}, {"train.accumulation_steps": 9}  # 8 does not divide 36
    overrides = dict(zip(ids(sweep, 0, 1), changes, strict=True))
    assert submitted == [(sweep.folder, ids(sweep, 0, 1, 4), overrides)]
    out = capsys.readouterr().out
    assert "3 to submit, 2 not" in out
    assert out.count("refused") == 2
    assert "submitted again with train.accumulation_steps=9" in out


def test_what_would_only_fail_again_is_submitted_even_so(sweep: Sweep, submitted: list[Any]) -> None:
    assert run_command(main, [str(sweep.folder), "--failed", "--even-so"]) == 0
    assert submitted[0][1] == ids(sweep, 0, 1, 2, 3, 4)


def test_by_cause_and_by_name(sweep: Sweep, submitted: list[Any]) -> None:
    assert run_command(main, [str(sweep.folder), "--cause", "gpu_memory"]) == 0
    assert run_command(main, [str(sweep.folder), "seed=4", sweep.trials[0].id[:3]]) == 0
    assert run_command(main, [str(sweep.folder), "seed=1", "seed=4", "--cause", "killed"]) == 0
    assert [call[1] for call in submitted] == [ids(sweep, 0, 1), ids(sweep, 0, 4), ids(sweep, 4)]


def test_a_dry_run_does_nothing(sweep: Sweep, submitted: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, [str(sweep.folder), "--failed", "--dry-run"]) == 0
    assert "3 to submit" in capsys.readouterr().out
    assert submitted == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "say which trials: --failed, --cause CAUSE, or their ids"),
        (["seed=5"], "none of these 1 trials has failed or was interrupted (done)"),
        (["seed=0", "--cause", "code"], "none of them ended by code, but by gpu_memory"),
        (["--cause", "nan"], "nothing to submit: mend what is said above, then add --even-so"),
        (["seed=9"], "no trial 'seed=9'"),
    ],
)
def test_wrong_use_says_what_to_do(
    sweep: Sweep, submitted: list[Any], capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run_command(main, [str(sweep.folder), *flags]) == 2
    assert message in capsys.readouterr().err
    assert submitted == []


@pytest.mark.parametrize(
    ("batch_size", "steps", "more"), [(32, 1, 2), (36, 4, 9), (7, 1, 7), (7, 7, None), (1, 1, None)]
)
def test_more_accumulation_divides_the_batch(tmp_path: Path, batch_size: int, steps: int, more: int | None) -> None:
    config = {"config": {"train": {"batch_size": batch_size, "accumulation_steps": steps}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert more_accumulation(tmp_path) == more


def test_a_pass_of_one_sample_cannot_be_halved(
    sweep: Sweep, submitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"config": {"train": {"batch_size": 4, "accumulation_steps": 4}}}
    (sweep.trials[0].folder / "config.json").write_text(json.dumps(config))
    assert run_command(main, [str(sweep.folder), "seed=0", "--even-so"]) == 2
    assert "a pass has one sample already" in capsys.readouterr().out
    assert submitted == []
