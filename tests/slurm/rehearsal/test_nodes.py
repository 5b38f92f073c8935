"""Nodes that break and heal, and jobs that are preempted: on a real Slurm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.rehearsal import cluster as rehearsal_cluster
from slurm.rehearsal import daemons
from slurm.rehearsal.cluster import rehearse
from slurm.rehearsal.settings import Site

needs_namespaces = pytest.mark.skipif(
    os.environ.get("CI") != "true" and not rehearsal_cluster.can_unshare(),
    reason="no namespaces: not root, or not allowed",
)
# Three ways out of a job: a session without an environment, a grandchild without a parent, and deafness.
ESCAPEES = """\
env -i /usr/bin/env setsid sleep {0} &
(setsid sh -c 'sleep {0}; :' &)
sh -c 'trap "" TERM; sleep {0}; :' &
wait"""
LIVES = """\
#!/bin/bash
echo life "${SLURM_RESTART_COUNT:-0}"
if [[ ${SLURM_RESTART_COUNT:-0} == 1 ]]; then exit; fi
"""


def sleepers(word: str) -> list[int]:
    done = subprocess.run(["pgrep", "--full", f"sleep {word}"], capture_output=True, text=True, timeout=30, check=False)
    return [pid for pid in map(int, done.stdout.split()) if daemons.start_ticks(pid)]


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.parametrize("namespaces", [pytest.param(True, marks=needs_namespaces), False])
def test_a_broken_node_takes_its_jobs_with_it(
    slurm_daemons: None,
    monkeypatch: pytest.MonkeyPatch,
    namespaces: bool,
    call: Callable[..., str],
    wait_for: Callable[..., None],
    processes_of: Callable[[Path], list[int]],
):
    monkeypatch.setattr(rehearsal_cluster, "can_unshare", lambda: namespaces)
    with rehearse(Site(nodes=2, cpus=1, gpus=0)) as cluster:
        words = {node: f"60{number}.{os.getpid()}" for number, node in enumerate(cluster.nodes)}
        submit = ("sbatch", "--parsable", "--requeue", "--output=/dev/null")
        jobs = {
            node: call(cluster, *submit, f"--nodelist={node}", "--wrap", ESCAPEES.format(word))
            for node, word in words.items()
        }
        wait_for(lambda: all(len(sleepers(word)) >= 5 for word in words.values()))
        broken, other = cluster.nodes

        cluster.break_node(broken)
        assert sleepers(words[broken]) == []
        wait_for(lambda: "Restarts=1" in call(cluster, "scontrol", "show", "job", jobs[broken]))
        assert call(cluster, "sinfo", "-h", "-p", "gpu", "-n", broken, "-o", "%T").startswith("down")
        assert len(sleepers(words[other])) >= 5
        assert call(cluster, "squeue", "-h", "-j", jobs[other], "-o", "%T") == "RUNNING"

        cluster.heal_node(broken)
        assert call(cluster, "sinfo", "-h", "-p", "gpu", "-n", broken, "-o", "%T") == "idle"
        if namespaces:  # once is enough: a requeued job waits for some 6 s
            wait_for(lambda: len(sleepers(words[broken])) >= 5)

        cluster.break_node(other, tell=False)
        assert sleepers(words[other]) == []
        assert call(cluster, "squeue", "-h", "-j", jobs[other], "-o", "%T") == "RUNNING"  # so Slurm believes
        cluster.heal_node(other)
        wait_for(lambda: "Restarts=1" in call(cluster, "scontrol", "show", "job", jobs[other]))
    assert [sleepers(word) for word in words.values()] == [[], []]
    assert processes_of(cluster.root) == []


@pytest.mark.slow
@pytest.mark.slurm
def test_a_preempted_job_is_told_by_its_signal_and_runs_again(
    slurm_daemons: None, tmp_path: Path, call: Callable[..., str], wait_for: Callable[..., None]
):
    """Two of them: one that saves at its signal and gives its node back, and one that knows nothing of all this."""
    scripts = {
        "knowing": LIVES + "trap 'echo saved; scontrol requeue $SLURM_JOB_ID' USR1\nsleep 600 & wait; wait\n",
        "plain": LIVES + "sleep 600\n",
    }
    with rehearse(Site(nodes=2, cpus=1, gpus=0)) as cluster:
        # a job that does nothing during its grace is asked again only after KillWait + MessageTimeout (22 s)
        lowest = ["nodes=ALL", "prioritytier=1", "preemptmode=requeue", "gracetime=0"]
        call(cluster, "scontrol", "create", "partitionname=lowest", *lowest)
        submit = ("sbatch", "--parsable", "--requeue", "--open-mode=append", "--time=5")
        options = {"knowing": ("--partition=low", "--signal=B:USR1@60"), "plain": ("--partition=lowest",)}
        logs = {name: tmp_path / f"{name}.log" for name in scripts}
        for name, text in scripts.items():
            (tmp_path / name).write_text(text)
            call(cluster, *submit, *options[name], f"--output={logs[name]}", str(tmp_path / name))
        wait_for(lambda: all(log.exists() and log.read_text() for log in logs.values()))

        call(cluster, *submit, "--partition=gpu", "--nodes=2", "--output=/dev/null", "--wrap", "true")
        wait_for(lambda: all("life 1" in log.read_text() for log in logs.values()))
        assert "\nsaved\n" in logs["knowing"].read_text()
        assert "PREEMPTION" in logs["plain"].read_text()
