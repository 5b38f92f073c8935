"""Where squeue fails, what is not known is said as unknown, with exit code 4, and nothing is done on a guess."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from jobs import cancel, chain, clean, logs, report, retry, status, usage
from jobs import sweep as launcher
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Submission, Sweep
from jobs.runs.trial_state import TrialState
from jobs.state.slurm_states import ANSWER_NAME
from jobs.state.trial_status import trial_statuses
from shards.command import NOT_KNOWN, OK, run_command
from slurm import patience
from slurm.rehearsal.answers import Answer
from slurm.rehearsal.cluster import rehearse
from slurm.rehearsal.settings import Site
from tests.jobs.written_trials import finish, sweep_of

WORDS = "Unable to contact slurm controller (connect failure)"
SAID = f"because Slurm does not answer (squeue: {WORDS} (tried for 10 s)"

Main = Callable[[Sequence[str] | None], int]


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands all fail but scancel and scontrol, which note what they are told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("squeue", "sacct", "sinfo", "sbatch", "srun"):
        command(folder, name, f"echo '{name}: error: {WORDS}' >&2; exit 1")
    for name in ("scancel", "scontrol"):
        command(folder, name, f'echo {name} "$@" >> {folder}/told')
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    once(monkeypatch)
    return folder


def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command is tried again: its pause is longer than the time that is left."""
    monkeypatch.setattr(patience, "PATIENCE_S", 10.0)
    monkeypatch.setattr(patience, "PAUSES_S", (60.0,))


def command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Four trials: one is done, two have a job each, and one has none."""
    sweep = sweep_of(tmp_path / "runs" / "lab", 4)
    finish(sweep.trials[0])
    sweep.add_submissions([Submission(trial.id, f"12_{i}", "slurm", "") for i, trial in enumerate(sweep.trials[:3])])
    sweep.trials[2].write_state(TrialState("running", host="node1", job_id="12_2"))
    return sweep


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (status.main, []),
        (retry.main, ["--failed"]),
        (cancel.main, ["--yes"]),
        (logs.main, ["unet seed=1"]),
        (clean.main, []),
        (usage.main, []),
        (report.main, ["--format", "md"]),
    ],
)
def test_each_command_says_that_it_does_not_know(
    main: Main, words: list[str], sweep: Sweep, silent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, [str(sweep.folder), *words]) == NOT_KNOWN
    output = capsys.readouterr()
    said = output.out + output.err
    assert "unknown" in said
    assert WORDS in said
    assert "queued" not in output.out.replace("queued or running", "")
    for wrong in ("nothing to cancel", "still run are saving", "has failed or was interrupted"):
        assert wrong not in said


def test_states_are_unknown_and_signs_of_life_are_shown(
    sweep: Sweep, silent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(status.main, [str(sweep.folder), "--json"]) == NOT_KNOWN
    document = json.loads(capsys.readouterr().out)
    assert [trial["state"] for trial in document["trials"]] == ["done", "unknown", "unknown", "planned"]
    assert document["counts"]["unknown"] == 2
    assert document["slurm"] | {"age_s": 0} == {"source": "none", "why": WORDS, "age_s": 0}
    notes = [trial["note"] for trial in document["trials"]]
    assert notes[1] == "Slurm does not answer"
    assert notes[2].startswith("Slurm does not answer; last sign of life ")


def test_what_is_known_to_have_failed_is_retried_and_the_rest_left_alone(
    sweep: Sweep, silent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.trials[1].write_state(TrialState("failed", error="torch.OutOfMemoryError: CUDA out of memory", job_id="12_1"))
    assert run_command(retry.main, [str(sweep.folder), "--failed", "--dry-run"]) == NOT_KNOWN
    output = capsys.readouterr().out
    assert "1 to submit" in output
    assert f"left alone: unknown: 1 of 4 trials, {SAID}" in output
    assert (
        run_command(retry.main, [str(sweep.folder), sweep.trials[1].id, "--dry-run"]) == OK
    )  # of this one all is known


def test_cancel_tells_slurm_and_does_not_claim_an_end(
    sweep: Sweep, silent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(cancel.main, [str(sweep.folder), "--yes"]) == NOT_KNOWN
    assert (silent / "told").read_text() == "scancel 12_1 12_2\n"
    assert f"scancel was called, and what came of it is unknown: 2 of 2 trials, {SAID}" in capsys.readouterr().out


def test_a_sweep_submits_nothing_over_jobs_it_cannot_ask_about(
    tiny_sweep: list[str], tmp_path: Path, silent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(launcher.main, [*tiny_sweep, "--axis", "model.arch=unet"]) != OK  # the folder is there now
    (tmp_path / "runs" / "lab" / "submissions.jsonl").unlink(missing_ok=True)
    sweep = load_sweep(tmp_path / "runs" / "lab")
    sweep.add_submissions([Submission(trial.id, f"12_{i}", "slurm", "") for i, trial in enumerate(sweep.trials)])
    capsys.readouterr()
    for main, words in ((launcher.main, []), (chain.main, ["train", "report"])):
        assert run_command(main, [*words, *tiny_sweep, "--axis", "model.arch=unet"]) == NOT_KNOWN
        output = capsys.readouterr().out
        assert "1 trials, 0 done, 0 queued or running, 1 unknown, 0 to submit" in output
        assert f"unknown: 1 of 1 trials, {SAID}" in output
    assert not (tmp_path / "runs" / "lab" / "chain").exists()  # no report is submitted either


def test_accounting_that_is_off_is_no_silence(sweep: Sweep, silent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(silent, "squeue", "exit 0")
    assert run_command(usage.main, [str(sweep.folder)]) == NOT_KNOWN
    assert f"unknown: what accounting has (sacct: {WORDS})" in capsys.readouterr().out
    command(silent, "sacct", "echo 'sacct: error: Slurm accounting storage is disabled' >&2; exit 1")
    assert run_command(usage.main, [str(sweep.folder)]) == OK
    assert "unknown" not in capsys.readouterr().out


@pytest.mark.slurm
def test_a_real_slurm_whose_squeue_fails(
    slurm_daemons: None, sweep: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job waits; squeue fails and comes back: unknown meanwhile, and never taken for over."""
    with rehearse(Site(nodes=1, cpus=4, gpus=0, conf={"gpu.State": "DOWN"})) as cluster:
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        submit = ["sbatch", "--parsable", "--wrap", "true"]
        job_id = subprocess.run(submit, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
        sweep.add_submissions([Submission(sweep.trials[1].id, job_id, "slurm", "")])
        once(monkeypatch)
        cluster.disturb(Answer("squeue", fails="always"))
        assert run_command(status.main, [str(sweep.folder)]) == NOT_KNOWN
        assert run_command(retry.main, [str(sweep.folder), sweep.trials[1].id]) == NOT_KNOWN
        assert trial_statuses(sweep)[1].status == "unknown"
        cluster.disturb()
        (sweep.folder / ANSWER_NAME).unlink()
        assert run_command(status.main, [str(sweep.folder)]) == OK
        assert trial_statuses(sweep)[1].status == "queued"
