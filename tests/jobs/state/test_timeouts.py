"""What a trial whose time was up would need."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from jobs.runs.trial import Submission, Trial
from jobs.runs.trial_state import TrialState
from jobs.state.triage import Evidence, diagnose
from petseg.run_folder.layout import write_metrics
from tests.jobs.job_logs import EPOCH, START
from tests.jobs.state.test_triage import diagnose_trial, job


def test_a_timeout_says_how_long_the_whole_trial_would_take() -> None:
    evidence = Evidence(TrialState("running"), job=job("TIMEOUT"), epochs_done=30, epochs=100, used_s=4 * 3600.0)
    assert "30 of 100 epochs took 4 h 00 min, the whole trial needs about 13 h 20 min" in diagnose(evidence).advice
    evidence = replace(evidence, used_s=None, epoch_s=60.0)
    assert "training alone needs about 1 h 40 min" in diagnose(evidence).advice
    assert "before it finished an epoch" in diagnose(replace(evidence, epochs_done=0)).advice
    of_budget = replace(evidence, epochs=0)  # whose epochs are not known
    assert "time was up after 30 epochs: raise" in diagnose(of_budget).advice


def test_a_timeouts_advice_counts_from_the_start_only_where_one_start_trained_it_all(tmp_path: Path) -> None:
    """A second start began where the first one had saved: its time is not that of the epochs it has."""
    trial = Trial("0123456789", {}, tmp_path / "lab" / "trials" / "0123456789")
    log = tmp_path / "lab" / "logs" / "12_0_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text(START + EPOCH)
    submission = Submission(trial.id, "12_0", "slurm", str(log))

    def advice(**state: object) -> str:
        trial.write_state(TrialState(host="node1", job_id="12_0", **state))
        path = trial.folder / "state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"time": log.stat().st_mtime - 3600}))
        return diagnose_trial(trial, submission, job("TIMEOUT")).advice

    trial.write_state(TrialState("running"))
    (trial.folder / "config.json").write_text(
        json.dumps({"config": {"train": {"epochs": 10, "batch_size": 8, "accumulation_steps": 1}}})
    )
    write_metrics([{"epoch": 2, "perf/seconds": 1200.0}], trial.folder)
    assert "2 of 10 epochs took 60 min, the whole trial needs about 5 h 00 min" in advice(status="running")
    assert "training alone needs about 3 h 20 min" in advice(status="running", restarts=1)
