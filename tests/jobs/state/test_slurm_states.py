"""What Slurm is asked, once for many who look, and what holds when it is silent or gone."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.runs.trial import Submission, Sweep
from jobs.state.slurm_states import ANSWER_NAME, ask
from jobs.state.trial_status import quick_trial_statuses, trial_statuses
from slurm.rehearsal import daemons
from slurm.rehearsal.cluster import Cluster, rehearse
from slurm.rehearsal.settings import Site
from tests.jobs.written_trials import finish, sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "lab", 4)


def fake_squeue(folder: Path) -> Callable[[], int]:
    """Says that job 12_0 runs; returns how often it was called."""
    (folder / "squeue").write_text(f"#!/bin/sh\necho x >> {folder}/calls\necho '12_0|RUNNING|None|node1'\n")
    (folder / "squeue").chmod(0o755)
    return lambda: (folder / "calls").read_text().count("x") if (folder / "calls").exists() else 0


def test_many_who_look_ask_slurm_once(tmp_path: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_squeue(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    sweep.add_submissions([Submission(sweep.trials[0].id, "12_0", "slurm", "")])
    for _ in range(3):
        rows, answer = quick_trial_statuses(sweep)
        assert rows[0].status == "running"
        assert (answer.source, answer.why) == ("squeue", "")
    assert calls() == 1
    answer = ask(sweep.folder, ["12_0"], max_age_s=0)  # too old
    assert calls() == 2
    assert ask(sweep.folder, ["13"]).states["13"].state == "MISSING"  # was not asked for before
    assert calls() == 3
    future = {**json.loads((sweep.folder / ANSWER_NAME).read_text()), "time": time.time() + 3600}
    (sweep.folder / ANSWER_NAME).write_text(json.dumps(future))  # by another machine's clock
    ask(sweep.folder, ["13"])
    assert calls() == 4
    (sweep.folder / ANSWER_NAME).write_text("{")
    assert ask(sweep.folder, ["12_0"]).states == answer.states
    finish(sweep.trials[0])
    before = calls()
    assert quick_trial_statuses(sweep)[1].source == ""  # nothing is to be known of finished trials
    assert calls() == before


def test_a_silent_slurm_is_not_waited_for(tmp_path: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    answer = ask(sweep.folder, ["12_0"], timeout_s=0.2)
    assert (answer.source, answer.states["12_0"].state) == ("none", "UNKNOWN")
    assert "did not answer" in answer.why


@pytest.mark.slow
@pytest.mark.slurm
def test_a_real_slurm_and_then_none(slurm_daemons: None, sweep: Sweep, wait_for: Callable) -> None:
    """Without accounting, and with slurmctld gone."""
    with rehearse(Site(nodes=1, cpus=4, gpus=0)) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        submit_sleepers(sweep, cluster)
        wait_for(lambda: [row.status for row in trial_statuses(sweep)] == ["running", "queued", "planned", "planned"])
        rows, answer = quick_trial_statuses(sweep)
        assert (rows[1].note, answer.source) == ("JobArrayTaskLimit", "squeue")
        (sweep.folder / ANSWER_NAME).unlink()
        daemons.end(cluster.root, "slurmctld")
        rows, answer = quick_trial_statuses(sweep)
        assert answer.source == "none"
        assert [row.status for row in rows] == ["unknown", "unknown", "planned", "planned"]


def submit_sleepers(sweep: Sweep, cluster: Cluster) -> None:
    command = ["sbatch", "--parsable", "--array=0-1%1", f"--output={sweep.folder}/%a", "--wrap", "sleep 300"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, env=cluster.env)
    for number in range(2):
        sweep.add_submissions([Submission(sweep.trials[number].id, f"{done.stdout.strip()}_{number}", "slurm", "")])
