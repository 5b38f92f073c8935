from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from jobs.clean import main, parse_age, size_text
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from petseg.run_folder.layout import Result, save_result
from shards.command import run_command

MONTH_S = 30 * 86400


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A trial that is done, one that was done just now, one that runs elsewhere, and one that was interrupted."""
    folder = tmp_path / "runs" / "lab"
    names = [f"{seed}{'c' * 9}" for seed in range(4)]
    trials = tuple(
        Trial(n, {"model.arch": "unet", "train.seed": s}, folder / "trials" / n) for s, n in enumerate(names)
    )
    sweep = Sweep(folder, "lab", {"train.seed": [0, 1, 2, 3]}, "0" * 16, "x", trials)
    save_sweep(sweep)
    (folder / "logs").mkdir()
    for number, trial in enumerate(trials):
        fill(trial)
        for job in (f"11_{number}", f"12_{number}"):
            for name in (f"{job}_0_log.out", f"{job}_1_log.out", f"{job}_0_result.pkl", f"{job}_submitted.pkl"):
                write(folder / "logs" / name, 10)
            sweep.add_submissions([Submission(trial.id, job, "local", str(folder / "logs" / f"{job}_0_log.out"))])
    for job in ("11", "12"):
        write(folder / "logs" / f"{job}_submission.sh", 10)
    for trial in trials[:2]:
        result = Result(trial.id, {"val/dice": 0.9}, 1, 3, 31, 1, "node1", "cpu", 60.0, 83.0, 0.01, 84.0)
        save_result(result, trial.folder)
    age(trials[0].folder / "result.json")
    trials[2].write_state(TrialState("running", host="elsewhere", job_id="12_2"))
    trials[3].write_state(TrialState("failed", error="KeyError: x", host="elsewhere", job_id="12_3"))
    return sweep


def fill(trial: Trial) -> None:
    """Best at step 100, two newer ones, the leftovers of a kill, and what wandb keeps."""
    for step, again in ((100, ""), (200, ""), (300, ""), (300, ".1")):
        folder = trial.folder / "checkpoints" / f"step-{step:08d}{again}"
        write(folder / "model.safetensors", 1000)
        (folder / "state.json").write_text(json.dumps({"best": {"step": 100}}))
    write(trial.folder / "checkpoints" / ".step-00000400.tmp" / "model.safetensors", 500)
    write(trial.folder / "wandb" / "run-20260301-ab" / "run-ab.wandb", 100)
    write(trial.folder / "wandb" / "offline-run-20260301-cd" / "run-cd.wandb", 100)
    write(trial.folder / "wandb" / "offline-run-20260302-ef" / "run-ef.wandb", 100)
    write(trial.folder / "wandb" / "offline-run-20260302-ef" / "run-ef.wandb.synced", 0)
    for name in ("config.json", "metrics.jsonl", "per_image.npz"):
        write(trial.folder / name, 20)


def write(path: Path, num_bytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * num_bytes)
    age(path)


def age(path: Path) -> None:
    then = time.time() - MONTH_S
    os.utime(path, (then, then))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_trial_keeps_its_best_weights_and_its_numbers(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    untouched = {trial.id: names(trial.folder) for trial in sweep.trials[1:]}
    assert run_command(main, [str(sweep.folder)]) == 0
    assert names(sweep.trials[0].folder) == {
        "checkpoints/step-00000100/model.safetensors",
        "checkpoints/step-00000100/state.json",
        "wandb/offline-run-20260301-cd/run-cd.wandb",
        *("config.json", "metrics.jsonl", "per_image.npz", "result.json"),
    }
    assert {trial.id: names(trial.folder) for trial in sweep.trials[1:]} == untouched
    out = capsys.readouterr().out
    assert "(checkpoint)" in out
    assert "freed, " in out
    assert "offline wandb runs are kept: `python jobs/sync.py" in out


def test_logs_of_earlier_jobs_go_but_for_those_of_what_runs(sweep: Sweep) -> None:
    logs = sweep.folder / "logs"
    before = names(logs)
    assert run_command(main, [str(sweep.folder)]) == 0
    gone = before - names(logs)
    assert {name[:4] for name in gone} == {"11_0", "11_1", "11_3"}
    assert "11_submission.sh" in names(logs)  # of the array in which a trial runs
    assert len(gone) == 12


def test_the_script_of_an_array_goes_with_its_last_job(sweep: Sweep) -> None:
    result = Result(sweep.trials[2].id, {"val/dice": 0.9}, 1, 3, 31, 1, "node1", "cpu", 60.0, 83.0, 0.01, 84.0)
    save_result(result, sweep.trials[2].folder)
    assert run_command(main, [str(sweep.folder)]) == 0
    assert names(sweep.folder / "logs") & {"11_submission.sh", "12_submission.sh"} == {"12_submission.sh"}


def test_checkpoints_only_and_dry_run(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(sweep.folder)
    assert run_command(main, [str(sweep.folder), "--dry-run"]) == 0
    assert "would be freed" in capsys.readouterr().out
    assert names(sweep.folder) == before
    assert run_command(main, [str(sweep.folder), "--checkpoints-only"]) == 0
    removed = before - names(sweep.folder)
    assert removed
    assert {name for name in removed if "/checkpoints/" not in name} == set()
    assert "3.6 kB freed, 4 files and folders" in capsys.readouterr().out


def test_nothing_goes_where_the_best_checkpoint_cannot_be_told(sweep: Sweep) -> None:
    folder = sweep.trials[0].folder / "checkpoints"
    (folder / "step-00000100" / "model.safetensors").unlink()
    before = names(folder)
    assert run_command(main, [str(sweep.folder), "--checkpoints-only"]) == 0
    assert names(folder) == before
    (folder / "step-00000300.1" / "state.json").write_text("{")
    assert run_command(main, [str(sweep.folder), "--checkpoints-only"]) == 0
    assert names(folder) == before


def test_no_link_is_followed(sweep: Sweep, tmp_path: Path) -> None:
    folder = sweep.trials[0].folder / "checkpoints"
    outside = tmp_path / "outside"
    write(outside / "step-00000050" / "model.safetensors", 10)
    (folder / "step-00000050").symlink_to(outside / "step-00000050")
    (sweep.trials[0].folder / "wandb" / "run-20200101-zz").symlink_to(outside)
    assert run_command(main, [str(sweep.folder)]) == 0
    assert names(outside) == {"step-00000050/model.safetensors"}


def test_only_what_is_old_enough(sweep: Sweep) -> None:
    before = names(sweep.folder)
    assert run_command(main, [str(sweep.folder), "--older-than", "60d"]) == 0
    assert names(sweep.folder) == before
    assert run_command(main, [str(sweep.folder), "--older-than", "14"]) == 2


def test_ages_and_sizes() -> None:
    assert [parse_age(text) for text in ("30m", "12h", "1.5d")] == [1800, 43200, 129600]
    assert [size_text(size) for size in (0, 999, 1500, 2_500_000, 10**13)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "10000.0 GB",
    ]


def test_what_stays_is_counted_with_the_command_that_frees_it(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    """The young trial has 3.6 kB of spare checkpoints; the best weights of both finished ones hold 2.0 kB."""
    young, best = sweep.trials[1], "checkpoints/step-00000100/model.safetensors"
    assert run_command(main, [str(sweep.folder), "--dry-run", "--checkpoints-only"]) == 0
    out = capsys.readouterr().out
    flags = "--older-than 0m --checkpoints-only"
    assert "3.6 kB would be freed" in out
    assert (
        f"3.6 kB in 4 files and folders are younger than 14d, and stay: `python jobs/clean.py {sweep.folder} {flags}`"
        in out
    )
    assert "2.0 kB in 2 files and folders are the best weights of finished trials, and stay: " in out
    assert f"`python jobs/clean.py {sweep.folder} {flags} --best-too` frees them" in out

    assert run_command(main, [str(sweep.folder), *flags.split()]) == 0
    assert "younger than" not in capsys.readouterr().out
    assert {name for name in names(young.folder) if name.startswith("checkpoints")} == {
        best,
        "checkpoints/step-00000100/state.json",
    }
    assert run_command(main, [str(sweep.folder), *flags.split(), "--best-too"]) == 0
    out = capsys.readouterr().out
    assert "2.0 kB freed" in out
    assert "and stay:" not in out
    assert not any("checkpoints" in name for trial in sweep.trials[:2] for name in names(trial.folder))
    assert best in names(sweep.trials[2].folder)  # which runs


def test_a_sweep_with_spaces_in_its_name_is_quoted(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep.folder.rename(sweep.folder.with_name("my lab"))
    assert run_command(main, [str(folder), "--dry-run"]) == 0
    assert f"`python jobs/clean.py '{folder}' --older-than 0m` frees them" in capsys.readouterr().out
