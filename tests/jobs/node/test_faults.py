"""Jobs that are given GPUs and see none, on a Slurm whose GPUs are make-believe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jobs.launch.bad_nodes import bad_nodes
from jobs.node.faults import FOLDER, Fault, note_fault, read_faults
from jobs.state.trial_status import trial_statuses
from jobs.sweep import main
from petseg.run_folder.attempts import read_attempts
from shards.command import run_command
from shards.files import NotRegular
from slurm.rehearsal.cluster import Cluster
from tests.jobs.disturbed_runs import ended, launcher, sweep_of
from tests.jobs.faulty_checkout import copy_with_fault, wait_until

WITH_GPU = ["--partition", "gpu", "--gpus", "1", "--cpus-per-task", "1", "--mem-gb", "1", "--timeout-min", "10"]
HEALTHY_BUT_FOR_ONE = "    if environ.get('SLURMD_NODENAME') != {sick!r}:\n        return\n"

no_real_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that is to be missed")


def test_faults_are_read_as_they_were_written(tmp_path: Path) -> None:
    faults = [Fault("12_0", 0, "node1", "no GPU"), Fault("12_0", 1, "node2", "no GPU")]
    assert read_faults(tmp_path) == []
    for fault in [*faults, faults[0]]:
        note_fault(tmp_path, fault)
    (tmp_path / FOLDER / "13_0-0-node3.json").write_text("{")
    assert read_faults(tmp_path) == faults


def test_each_node_of_a_start_has_a_note_of_its_own_and_foreign_ones_are_left_out(tmp_path: Path) -> None:
    faults = [Fault("12", 0, node, "no GPU") for node in ("node1", "node2")]
    for fault in faults:
        note_fault(tmp_path, fault)
    folder = tmp_path / FOLDER
    assert sorted(path.name for path in folder.iterdir()) == ["12-0-node1.json", "12-0-node2.json"]
    (folder / "note.txt").write_text((folder / "12-0-node1.json").read_text())
    (folder / "0.json").write_text('{"job_id": "13", "start": 0}')
    (folder / "1.json").write_text('{"job_id": "13", "start": "0", "node": "n", "error": ""}')
    (folder / "2.json").mkdir()
    assert read_faults(tmp_path) == faults


def test_notes_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / FOLDER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotRegular):
        note_fault(tmp_path, Fault("12", 0, "node1", "no GPU"))
    assert list((tmp_path / "elsewhere").iterdir()) == []


@no_real_gpu
@pytest.mark.slurm
@pytest.mark.slow
def test_a_trial_without_its_gpu_goes_to_another_node(
    tiny_sweep: list[str], tmp_path: Path, on_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick, healthy = on_cluster.nodes
    fault = HEALTHY_BUT_FOR_ONE.format(sick=sick)
    copy = copy_with_fault(tmp_path / "checkout", "petseg/footprint/gpus.py", "    given = gpus_given", fault)
    code, log = ended(launcher(copy, [*tiny_sweep, *WITH_GPU, "--axis", "model.arch=unet"]))
    assert code == 0, log
    (trial,) = sweep_of(tmp_path).trials
    wait_until(lambda: trial.result() or trial.state().status == "failed")
    assert trial.result(), trial.state()
    (noted,) = read_faults(sweep_of(tmp_path).folder)
    job = sweep_of(tmp_path).submissions()[trial.id]
    assert (noted.job_id, noted.start, noted.node) == (job.job_id, 0, sick)
    text = Path(job.log).read_text()
    assert f"on {sick} was given 1 GPU, and torch sees none" in text
    assert f"the job is back in the queue, without {sick}" in text
    assert len(read_attempts(trial.folder)) == 1  # on the sick node it had begun nothing
    assert healthy != sick


@no_real_gpu
@pytest.mark.slurm
@pytest.mark.slow
def test_where_no_node_has_a_gpu_all_trials_of_the_job_fail_and_say_so(
    tiny_sweep: list[str], tmp_path: Path, on_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, wait_for: Callable
) -> None:
    """Two at once: neither trains on the CPU, on either node."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = [*tiny_sweep, *WITH_GPU, "--trials-per-job", "2", "--trials-at-once", "2"]
    assert run_command(main, flags) == 0
    sweep = sweep_of(tmp_path)
    wait_until(lambda: all(trial.state().status == "failed" for trial in sweep.trials))
    assert {fault.node for fault in read_faults(sweep.folder)} == set(on_cluster.nodes)
    rows = trial_statuses(sweep)
    assert [(row.status, row.cause) for row in rows] == [("failed", "node_failure")] * 2
    assert all(f"on {on_cluster.nodes[-1]} was given GPUs, and workers 1" in row.note for row in rows)
    assert not any(trial.metrics() for trial in sweep.trials)
    bad = bad_nodes(sweep, rows)
    assert bad.names == ()
    assert "more than half of the nodes" in bad.messages[0]
