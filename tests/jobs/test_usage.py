"""What a sweep asked for, used and wasted: by sacct, by the trials' own words, and on a real Slurm with accounting."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cost.accounting import Start, parse_starts
from jobs.cost.usage import Kept, kept_by_attempt, measure, wasted_s
from jobs.runs.sweep_file import load_sweep, save_sweep
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.sweep import main as sweep_main
from jobs.usage import main
from petseg.run_folder.attempts import Attempt
from petseg.run_folder.layout import append_metrics
from shards.command import run_command
from slurm.rehearsal import accounting as rehearsal_accounting
from slurm.rehearsal.cluster import rehearse
from slurm.rehearsal.settings import Site

SACCT = """\
12_0|NODE_FAIL|600|1000|60|4|4|billing=4,cpu=4,gres/gpu:fake=2,gres/gpu=2,mem=4G,node=1|billing=4,cpu=4,gres/gpu=2|720000
12_0|COMPLETED|1200|2000|60|4|4|billing=4,cpu=4,gres/gpu=2,mem=4G,node=1|billing=4,cpu=4,gres/gpu=2|1080000
12_1|CANCELLED by 1000|0|Unknown|60|0|4||billing=4,cpu=4,gres/gpu=2|0
12_[2-9%2]|PENDING|0|Unknown|60|0|4||billing=4,cpu=4,gres/gpu=2|0
13|FAILED|300|5000|UNLIMITED|1|1|billing=1,cpu=1|billing=1,cpu=1|18446744073709551614
"""
RESULT = {
    "trial_id": "0000000000", "metrics": {"val/dice": 0.9}, "best_epoch": 1, "epochs": 1, "parameters": 1,
    "world_size": 2, "host": "node1", "device": "NVIDIA H100", "train_s": 450.0, "images_per_s": 1.0, "data_wait": 0.0,
    "headroom": 1.0,
}  # fmt: skip


def test_parse_starts() -> None:
    first, again, cancelled, failed = parse_starts(SACCT)
    assert first == Start("12_0", "NODE_FAIL", 600.0, 1000.0, 3600.0, 4, 2, 720_000.0)
    assert (cancelled.energy_j, failed.energy_j) == (None, None)
    assert again.state == "COMPLETED"
    assert (cancelled.state, cancelled.began, cancelled.asked_s, cancelled.gpus) == ("CANCELLED", float("inf"), 0, 2)
    assert (failed.limit_s, failed.gpus, failed.ended_early) == (0.0, None, True)


def attempt(number: int, first_step: int, time: float) -> Attempt:
    return Attempt(number, "node1", "12", "", first_step, time)


def test_a_start_that_ended_early_wasted_what_was_not_kept() -> None:
    starts = parse_starts(SACCT)[:2]
    kept = [Kept(attempt(1, 0, 1010.0), 450.0), Kept(attempt(2, 30, 1999.0), 1100.0)]  # clocks differ by a second
    assert wasted_s(starts, kept, failed=False) == [150.0, 0.0]
    assert wasted_s(starts, kept, failed=True) == [600.0, 0.0]
    assert wasted_s(starts, [], failed=False) == [600.0, 0.0]


def test_epochs_belong_to_the_attempts_that_trained_them(tmp_path: Path) -> None:
    """Ten steps an epoch; stopped within the second, which had been saved at step 15."""
    attempts = [attempt(1, 0, 0.0), attempt(2, 15, 100.0)]
    (tmp_path / "lives.json").write_text(json.dumps([vars(one) for one in attempts]))
    for epoch in (1, 2, 3):
        append_metrics({"epoch": epoch, "step": 10 * epoch, "perf/seconds": 20.0}, tmp_path)
    assert [one.seconds for one in kept_by_attempt(Trial("0123456789", {}, tmp_path))] == [30.0, 30.0]


def fake_sacct(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in {"sacct": f"cat <<'END'\n{text}END\n", "squeue": "exit 0\n"}.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def small_sweep(folder: Path) -> Sweep:
    ids = {"0" * 10: "a", "1" * 10: "b"}
    trials = tuple(Trial(i, {"model.arch": arch}, folder / "trials" / i) for i, arch in ids.items())
    sweep = Sweep(folder, folder.name, {"model.arch": ["a", "b"]}, "0" * 64, "data/shards", trials)
    save_sweep(sweep)
    for trial, job_id in zip(trials, ("12_0", "13"), strict=True):
        trial.folder.mkdir(parents=True)
        sweep.add_submissions([Submission(trial.id, job_id, "slurm", "")])
        append_metrics({"epoch": 1, "step": 10, "perf/seconds": 450.0}, trial.folder)
    trials[1].write_state(TrialState("failed", error="RuntimeError: no", job_id="13"))
    return sweep


def test_usage_by_sacct_with_accounting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = small_sweep(tmp_path / "runs" / "lab")
    (sweep.trials[0].folder / "lives.json").write_text(
        json.dumps([vars(attempt(1, 0, 1010.0)), vars(attempt(2, 10, 2005.0))])
    )
    (sweep.trials[0].folder / "result.json").write_text(json.dumps(RESULT))
    fake_sacct(tmp_path, SACCT, monkeypatch)
    assert run_command(main, [str(sweep.folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["source"], document["lower_bound"], document["unit"]) == ("sacct", False, "GPU hours")
    first, second = document["lines"]
    assert (first["label"], first["starts"], first["state"]) == ("a", 2, "NODE_FAIL, COMPLETED")
    assert (first["asked_h"], first["used_h"]) == (4.0, 1.0)  # two GPUs: 2 x 60 min, 10 + 20 min
    assert first["wasted_h"] == pytest.approx(2 * 150 / 3600)
    assert (second["label"], second["used_h"], second["energy_kwh"]) == ("b", 0.0, None)  # it held no GPU
    assert (document["used_h"], first["energy_kwh"], document["energy_kwh"]) == (1.0, 0.5, 0.5)

    assert run_command(main, [str(sweep.folder)]) == 0
    out = capsys.readouterr().out
    assert "lab: GPU hours, by sacct" in out
    assert "0.0833 (8 %)" in out
    assert "kWh" in out
    assert "energy: of whole nodes" in out


def test_usage_without_accounting_is_a_lower_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = small_sweep(tmp_path / "runs" / "lab")
    launch = {"resources": {"gpus_per_node": 4, "timeout_min": 60}}
    (sweep.folder / "launch.json").write_text(json.dumps(launch))
    fake_sacct(tmp_path, "", monkeypatch)
    usage = measure(sweep)
    assert (usage.source, usage.unit) == ("records", "GPU hours")
    assert [line.used_h for line in usage.lines] == [0.5, 0.5]
    assert [line.wasted_h for line in usage.lines] == [0.0, 0.5]  # the second one failed
    assert [line.asked_h for line in usage.lines] == [4.0, 4.0]
    assert "lower bound" in usage.notes[0]
    assert run_command(main, [str(sweep.folder)]) == 0
    assert "a lower bound: sacct knows nothing" in capsys.readouterr().out


def test_a_trial_that_was_never_given_a_job_has_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = small_sweep(tmp_path / "runs" / "lab")
    launch = {"resources": {"gpus_per_node": 4, "timeout_min": 60}}
    (sweep.folder / "launch.json").write_text(json.dumps(launch))
    (sweep.folder / "submissions.jsonl").unlink()
    first, second = sweep.trials
    sweep.add_submissions([Submission(first.id, "12_0", "slurm", "")])
    sweep.add_submissions([Submission(second.id, "", "slurm", "")])  # noted before sbatch was called
    fake_sacct(tmp_path, "", monkeypatch)
    assert [(line.trials, line.job_id) for line in measure(sweep).lines] == [((first.id,), "12_0")]


def test_a_submission_that_was_cut_off_leaves_the_job_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher was killed between its note and sbatch, at a site without accounting."""
    sweep = small_sweep(tmp_path / "runs" / "lab")
    (sweep.folder / "launch.json").write_text(json.dumps({"resources": {"gpus_per_node": 4, "timeout_min": 60}}))
    (sweep.folder / "submissions.jsonl").unlink()
    first = sweep.trials[0]
    sweep.add_submissions([Submission(first.id, "12_0", "slurm", ""), Submission(first.id, "", "slurm", "")])
    fake_sacct(tmp_path, "", monkeypatch)
    (line,) = measure(sweep).lines
    assert (line.job_id, line.asked_h) == ("12_0", 4.0)


def test_trials_that_share_a_job_share_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trials side by side in one job of four GPUs, half an hour long."""
    sweep = small_sweep(tmp_path / "runs" / "lab")
    (sweep.folder / "launch.json").write_text(json.dumps({"resources": {"gpus_per_node": 4, "timeout_min": 60}}))
    fake_sacct(tmp_path, "", monkeypatch)
    sweep.add_submissions([Submission(trial.id, "8", "slurm", "") for trial in sweep.trials])
    before = measure(sweep)
    assert (before.total("asked_h"), before.total("used_h")) == (4.0, 1.0)
    for trial in sweep.trials:
        trial.write_state(replace(trial.state(), slot=1, at_once=2))
    assert measure(sweep).total("used_h") == 0.5


def test_local_processes_have_no_asked_hours(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path / "runs" / "lab")
    for trial in sweep.trials:
        sweep.add_submissions([Submission(trial.id, "0", "debug", "")])
    (sweep.folder / "submissions.jsonl").write_text(
        "".join(f"{line}\n" for line in (sweep.folder / "submissions.jsonl").read_text().splitlines()[2:])
    )
    usage = measure(sweep)
    assert [line.asked_h for line in usage.lines] == [None, None]
    assert (usage.unit, usage.total("asked_h"), usage.total("used_h")) == ("CPU core hours", 0.0, 0.25)
    assert usage.notes[1] == "what the jobs held is not known: estimated as one core each"


@pytest.mark.slurm
@pytest.mark.slow
def test_real_accounting(
    tiny_sweep: list[str], tmp_path: Path, wait_for: Callable, slurm_daemons: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        rehearsal_accounting.require_installed()
    except ValueError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    flags = ["--partition", "gpu", "--gpus", "0", "--cpus-per-task", "2", "--mem-gb", "2", "--timeout-min", "10"]
    with rehearse(Site(nodes=1, cpus=4, gpus=0, accounting=True)) as cluster:
        for name, value in {**cluster.env, "OMP_NUM_THREADS": "1"}.items():
            monkeypatch.setenv(name, value)
        assert run_command(sweep_main, [*tiny_sweep, "--axis", "model.arch=unet", *flags]) == 0
        sweep = load_sweep(tmp_path / "runs" / "lab")
        wait_for(lambda: sweep.trials[0].result())
        wait_for(lambda: [line.state for line in measure(sweep).lines] == ["COMPLETED"])
        usage = measure(sweep)
        (line,) = usage.lines
        assert (usage.source, usage.unit, line.starts, line.wasted_h) == ("sacct", "CPU core hours", 1, 0.0)
        assert line.asked_h == pytest.approx(2 * 10 / 60)
        assert line.used_h > 0
