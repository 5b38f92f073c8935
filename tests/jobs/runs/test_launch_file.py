"""launch.json keeps how a sweep was launched last, for those who submit its trials again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.runs import launch as module
from jobs.runs.launch import Launch, leave_out, load_launch, require_shareable, save_launch
from slurm.resources import Resources

ONE = Resources(gpus_per_node=1)


def test_a_launch_is_read_as_it_was_saved(tmp_path: Path) -> None:
    launch = Launch("local", Resources(partition="gpu", gpus_per_node=1, cpus_per_task=7, exclude="n1"), 3, 4, 2)
    save_launch(launch, tmp_path)
    assert load_launch(tmp_path) == launch
    content = json.loads((tmp_path / "launch.json").read_text())
    del content["trials_at_once"]  # as an earlier version wrote it
    (tmp_path / "launch.json").write_text(json.dumps(content))
    assert load_launch(tmp_path) == replace(launch, trials_at_once=1)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"resources": {}}', '{"cluster": "slurm", "resources": 3}'])
def test_a_launch_that_cannot_be_read_says_what_writes_it(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "launch.json").write_text(text)
    with pytest.raises(ValueError, match="cannot be used") as failed:
        load_launch(tmp_path)
    assert str(failed.value).startswith(f"{tmp_path / 'launch.json'} cannot be used (")
    assert str(failed.value).endswith("): run jobs/sweep.py again")


def test_nodes_are_left_out_beside_those_that_were() -> None:
    launch = Launch("slurm", ONE, 0, 1)
    assert leave_out(launch, []) is launch
    once = leave_out(launch, ["n1", "n[3-4]"])
    assert once == replace(launch, resources=replace(ONE, exclude="n1,n[3-4]"))
    assert leave_out(once, ["n9"]).resources.exclude == "n1,n[3-4],n9"
    local = replace(launch, cluster="local")
    assert leave_out(local, []) is local
    with pytest.raises(ValueError, match=r"^--exclude: the sweep runs by --cluster local, which has no nodes"):
        leave_out(local, ["n1"])


@pytest.mark.parametrize(
    ("cluster", "resources", "per_job", "at_once", "message"),
    [
        ("slurm", ONE, 4, 4, ""),
        ("local", ONE, 4, 2, ""),
        ("debug", ONE, 1, 1, ""),
        ("slurm", Resources(gpus_per_node=2), 1, 1, ""),
        ("slurm", ONE, 2, 3, "--trials-at-once 3: a job has no more than --trials-per-job 2; raise that too"),
        ("debug", ONE, 2, 2, "--trials-at-once: --cluster debug runs trials in one process; take --cluster local"),
        ("slurm", Resources(gpus_per_node=2), 2, 2,
         ("--trials-at-once 2: the trials share a job of one process, and this one has 2; take --gpus 1 (or 0) and "
         "--nodes 1")),
    ],
)  # fmt: skip
def test_trials_share_a_job_of_one_process(
    cluster: Any, resources: Resources, per_job: int, at_once: int, message: str
) -> None:
    if not message:
        require_shareable(cluster, resources, per_job, at_once)
        return
    for check in (
        lambda: require_shareable(cluster, resources, per_job, at_once),
        lambda: Launch(cluster, resources, 0, per_job, at_once),
    ):
        with pytest.raises(ValueError, match="--trials-at-once") as refused:
            check()
        assert str(refused.value) == message


def test_a_machine_without_gpus_says_so_where_they_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "visible_gpus", list)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: range(3))
    told = "no GPU on this machine: the trials run on the CPU"
    for cluster, gpus, said in (("local", 0, []), ("slurm", 1, []), ("local", 1, [told]), ("debug", 1, [told])):
        caplog.clear()
        with caplog.at_level("INFO"):
            resources, most = Launch(cluster, Resources(gpus_per_node=gpus), 2, 1).settle(5)  # type: ignore[arg-type]
        assert caplog.messages == said
        assert most == 2
    assert (resources.gpus_per_node, resources.cpus_per_task) == (0, 1)
