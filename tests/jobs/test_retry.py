"""Trials that ended badly are submitted again, with what fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.launch.retry import more_accumulation
from jobs.retry import main
from jobs.runs.sweep_file import load_sweep, save_sweep
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.state.trial_status import trial_statuses
from petseg.run_folder.attempts import read_attempts
from petseg.run_folder.layout import Result, save_result
from shards.cause import Cause
from shards.command import FAILED, OK, WRONG_USE, run_command
from slurm.rehearsal.cluster import Cluster
from tests.jobs.faulty_checkout import REPOSITORY, copy_with_fault, finish, start, wait_until

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
NAN = "shards.command.Failure: a loss of NaN"
ENDS = [OOM, OOM, "KeyError: 'dice'", NAN, "", ""]
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
        trial.write_state(
            TrialState(
                "failed" if error else "running", error=error, job_id=job_id, cause=Cause.NAN if error == NAN else None
            )
        )
    result = Result(trials[-1].id, {"val/dice": 0.9}, 1, 1, 31, 1, "node1", "cpu", 60.0, 83.0, 0.01, 84.0)
    save_result(result, trials[-1].folder)
    return sweep


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reaches the launcher."""
    calls: list[Any] = []

    def resubmit(
        folder: Path, trial_ids: list[str], overrides: dict[str, dict[str, Any]], exclude: list[str], allow_pipe: bool
    ) -> int:
        assert not allow_pipe
        calls.append((folder, trial_ids, overrides, exclude))
        return 0

    monkeypatch.setattr("jobs.launch.submit.resubmit", resubmit)
    return calls


def ids(sweep: Sweep, *numbers: int) -> list[str]:
    return [sweep.trials[number].id for number in numbers]


def test_failed_trials_are_submitted_again_with_the_change_that_their_cause_needs(
    sweep: Sweep, submitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, [str(sweep.folder), "--failed"]) == 0
    changes = {"train.accumulation_steps": 2}, {"train.accumulation_steps": 9}  # 8 does not divide 36
    overrides = dict(zip(ids(sweep, 0, 1), changes, strict=True))
    assert submitted == [(sweep.folder, ids(sweep, 0, 1, 4), overrides, [])]
    out = capsys.readouterr().out
    assert "3 to submit, 2 not" in out
    assert out.count("refused") == 2
    assert "submitted again with train.accumulation_steps=9" in out


def test_even_so_submits_deterministic_failures(sweep: Sweep, submitted: list[Any]) -> None:
    assert run_command(main, [str(sweep.folder), "--failed", "--even-so"]) == 0
    assert submitted[0][1] == ids(sweep, 0, 1, 2, 3, 4)


def test_by_cause_and_by_name(sweep: Sweep, submitted: list[Any]) -> None:
    assert run_command(main, [str(sweep.folder), "--cause", "gpu_memory"]) == 0
    assert run_command(main, [str(sweep.folder), "seed=4", sweep.trials[0].id[:3]]) == 0
    assert run_command(main, [str(sweep.folder), "seed=1", "seed=4", "--cause", "killed"]) == 0
    assert [call[1] for call in submitted] == [ids(sweep, 0, 1), ids(sweep, 0, 4), ids(sweep, 4)]


def test_exclude_leaves_nodes_out(sweep: Sweep, submitted: list[Any]) -> None:
    assert run_command(main, [str(sweep.folder), "seed=4", "--exclude", "node[3-4]"]) == 0
    assert submitted[0][3] == ["node[3-4]"]


def test_a_dry_run_does_nothing(sweep: Sweep, submitted: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, [str(sweep.folder), "--failed", "--dry-run"]) == 0
    assert "3 to submit" in capsys.readouterr().out
    assert submitted == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "say which trials: --failed, --held, --cause CAUSE, or their ids"),
        (["seed=5"], "none of these 1 trials has failed or was interrupted (done)"),
        (["seed=0", "--cause", "code"], "none of them ended by code, but by gpu_memory"),
        (["--cause", "nan"], "nothing to submit: fix what is reported above, then add --even-so"),
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


TOO_SMALL = """\
    if parts.rank == 1 and step == 1 and len(micro_batches) == 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of")
"""


@pytest.mark.slurm
@pytest.mark.slow
def test_a_rank_without_memory_ends_its_job_and_the_trial_fits_when_retried(
    tiny_sweep: list[str], tmp_path: Path, on_cluster: Cluster
) -> None:
    """The second of two ranks has no room for a whole pass; the other one, on another node, does not wait for it."""
    checkout = copy_with_fault(
        tmp_path / "checkout", "petseg/training/step.py", "    set_learning_rate(parts.optim", TOO_SMALL
    )
    flags = ["--partition", "gpu", "--nodes", "2", "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "2"]
    flags += ["--timeout-min", "10", "--axis", "model.arch=unet", "--set", "train.log_every=1"]
    code, _, log = finish(start(checkout, "sweep", *tiny_sweep, *flags))
    assert code == OK, log
    folder = tmp_path / "runs" / "lab"
    (trial,) = load_sweep(folder).trials
    wait_until(lambda: [row.status for row in trial_statuses(load_sweep(folder))] == ["failed"])
    (row,) = trial_statuses(load_sweep(folder))
    assert row.cause == "gpu_memory", (row, trial.state())
    first = load_sweep(folder).submissions()[trial.id]

    code, out, log = finish(start(checkout, "retry", str(folder), "--cause", "gpu_memory"))
    assert code == OK, log
    assert "1 to submit, 0 not" in out
    assert "submitted again with train.accumulation_steps=2" in out
    wait_until(lambda: [row.status for row in trial_statuses(load_sweep(folder))] == ["done"])
    again = load_sweep(folder).submissions()[trial.id]
    assert again.job_id != first.job_id
    result = trial.result()
    assert result is not None
    assert result.world_size == 2
    assert json.loads((trial.folder / "overrides.json").read_text()) == {"train.accumulation_steps": 2}
    assert [(attempt.number, attempt.job_id) for attempt in read_attempts(trial.folder)] == [
        (1, first.job_id),
        (2, again.job_id),
    ]
    assert [row["data/coverage"] for row in trial.metrics()] == [1.0]

    code, _, log = finish(start(checkout, "retry", str(folder), "--failed"))
    assert code == WRONG_USE
    assert "none of these 1 trials has failed or was interrupted (done)" in log


@pytest.mark.slow
def test_a_retry_of_a_deterministic_failure_needs_even_so(tiny_sweep: list[str], tmp_path: Path) -> None:
    """A loss that is not finite: refused, then submitted even so, and failed as before."""
    flags = [*tiny_sweep, "--cluster", "local", "--axis", "model.arch=unet", "--set", "optim.lr=1e30"]
    assert finish(start(REPOSITORY, "sweep", *flags))[0] == FAILED
    folder = tmp_path / "runs" / "lab"
    code, out, log = finish(start(REPOSITORY, "retry", str(folder), "--failed"))
    assert (code, "refused" in out) == (WRONG_USE, True), log
    assert len(submissions_of(folder)) == 1
    code, _, log = finish(start(REPOSITORY, "retry", str(folder), "--failed", "--even-so"))
    assert code == FAILED, log
    assert "NaN or infinite" in log
    assert len(submissions_of(folder)) == 2


def submissions_of(folder: Path) -> list[str]:
    return (folder / "submissions.jsonl").read_text().splitlines()
