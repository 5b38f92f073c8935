"""Nodes on which starts of a sweep ended again and again, told by logs as they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.launch.bad_nodes import BadNodes, bad_nodes, failed_host, node_failures, node_of, nodes_of, split_starts
from jobs.node.faults import Fault, note_fault
from jobs.retry import main
from jobs.runs.launch import Launch, leave_out
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.state.trial_status import trial_statuses
from shards.command import run_command
from slurm.cluster import parse_nodes
from slurm.resources import Resources

NODES = "".join(f"node{i}|node{i}\n" for i in range(1, 7))
ECC = """\
submitit ERROR (2026-03-01 09:40:00,637) - Submitted job triggered an exception
Traceback (most recent call last):
  File "/home/me/runs/lab/code/0123abcd/petseg/training/epoch.py", line 141, in train_step
    logits = run.model(image)
RuntimeError: CUDA error: uncorrectable ECC error encountered
"""
BUG = ECC.replace("RuntimeError: CUDA error: uncorrectable ECC error encountered", "KeyError: 'dice'")
NODE_FAILURE = (
    "slurmstepd: error: *** JOB 12 ON node3 CANCELLED AT 2026-03-01T09:40:00 DUE TO NODE FAILURE, SEE SLURMCTLD LOG "
    "FOR DETAILS ***\n"
)


def start(host: str, nodes: int = 1) -> str:
    """submitit's first lines."""
    return (
        f"submitit INFO (2026-03-01 09:30:00,108) - Starting with JobEnvironment(job_id=12_0, hostname={host}, "
        f"local_rank=0(1), node=0({nodes}), global_rank=0({nodes}))\n09:30:02 rank 0 INFO petseg.train: hello\n"
    )


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sweep]:
    """A sweep with the logs of each trial's jobs, on a cluster whose Slurm has forgotten them."""

    def build(logs: list[list[str]], nodes: str = NODES, host: str = "node1", cluster: str = "slurm") -> Sweep:
        for name, text in (("squeue", ""), ("sacct", ""), ("sinfo", nodes)):
            (tmp_path / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        folder = tmp_path / "runs" / "lab"
        trials = tuple(
            Trial(f"{n}{'a' * 9}", {"train.seed": n}, folder / f"trials/{n}{'a' * 9}") for n in range(len(logs))
        )
        sweep = Sweep(folder, "lab", {"train.seed": list(range(len(logs)))}, "0" * 16, "x", trials)
        save_sweep(sweep)
        for number, (trial, texts) in enumerate(zip(trials, logs, strict=True)):
            for attempt, text in enumerate(texts):
                job_id = f"{number + 1}{attempt}"
                log = sweep.folder / "logs" / f"{job_id}_0_log.out"
                log.parent.mkdir(exist_ok=True)
                log.write_text(text)
                sweep.add_submissions([Submission(trial.id, job_id, cluster, str(log))])
                trial.write_state(TrialState("running", job_id=job_id, host=host))
        return sweep

    return build


def found(sweep: Sweep) -> BadNodes:
    return bad_nodes(sweep, trial_statuses(sweep))


Build = Callable[..., Sweep]


def test_two_failures_of_one_node_are_enough_and_one_is_not(build: Build) -> None:
    bad = found(build([[start("node3") + ECC], [start("node3") + ECC], [start("node4") + ECC]]))
    assert bad.names == ("node3",)
    assert bad.messages == (
        "node3 is left out: 2 starts of this sweep ended there by a failure of the node (--no-exclude takes it)",
    )


def test_a_node_without_its_gpu_is_left_out_after_one_failure(build: Build) -> None:
    sweep = build([[start("node4") + ECC]])
    note_fault(sweep.folder, Fault("10_0", 0, "node3", "job 10_0 on node3 was given 1 GPU, and torch sees none"))
    bad = found(sweep)
    assert bad.names == ("node3",)
    assert bad.messages == ("node3 is left out: a job of this sweep saw no GPU there (--no-exclude takes it)",)


def test_starts_of_one_job_and_jobs_of_one_trial_count(build: Build) -> None:
    requeued = start("node3") + NODE_FAILURE + start("node3") + NODE_FAILURE + start("node5")
    assert found(build([[requeued]])).names == ("node3",)
    retried = [start("node3") + NODE_FAILURE + start("node5") + ECC, start("node5") + ECC]
    assert found(build([retried, [start("node3") + ECC]])).names == ("node3", "node5")


def test_errors_of_the_code_do_not_count_against_nodes(build: Build) -> None:
    assert found(build([[start("node3") + BUG], [start("node3") + BUG]])) == BadNodes()


def test_a_lost_node_is_known_from_slurm(build: Build, tmp_path: Path) -> None:
    sweep = build([[start("node2")], [start("node2")]], host="node2.cluster")
    (tmp_path / "sacct").write_text("#!/bin/sh\nprintf '10|NODE_FAIL|node2|0:0\\n20|NODE_FAIL|node2|0:0\\n'\n")
    assert found(sweep).names == ("node2",)


def test_of_a_job_of_several_nodes_only_the_named_one_counts(build: Build) -> None:
    unnamed = start("node1", nodes=2) + NODE_FAILURE
    assert found(build([[unnamed], [unnamed]])).names == ()
    named = start("node1", nodes=2) + "srun: error: Node failure on node3\n"
    assert found(build([[named], [named]])).names == ("node3",)


def test_failures_on_most_nodes_exclude_none(build: Build) -> None:
    bad = found(
        build([[start(f"node{n}") + ECC] for n in (1, 1, 2, 2)], nodes="node1|node1\nnode2|node2\nnode3|node3\n")
    )
    assert bad.names == ()
    assert "ended by failures of node1, node2, more than half of the nodes" in bad.messages[0]


def test_failures_on_half_of_the_nodes_exclude_them(build: Build) -> None:
    nodes = "node1|node1\nnode2|node2\nnode3|node3\nnode4|node4\n"
    assert found(build([[start(f"node{n}") + ECC] for n in (1, 1, 2, 2)], nodes=nodes)).names == ("node1", "node2")


def test_without_slurm_nothing_is_left_out(build: Build) -> None:
    assert found(build([[start("node3") + ECC], [start("node3") + ECC]], nodes="")) == BadNodes()
    assert found(build([[start("node3") + ECC], [start("node3") + ECC]], cluster="local")) == BadNodes()


@pytest.mark.parametrize(
    ("host", "node"), [("n1", "n1"), ("n1.lab.org", "n1"), ("big7", "gpu-7"), ("twin", ""), ("other", "")]
)
def test_slurms_name_of_a_host(host: str, node: str) -> None:
    nodes = parse_nodes("n1|n1\nn1|n1\ngpu-7|big7.lab.org\na|twin\nb|twin\n")
    assert nodes == {"n1": "n1", "gpu-7": "big7.lab.org", "a": "twin", "b": "twin"}
    assert node_of(host, nodes) == node


def test_a_log_falls_into_its_starts() -> None:
    assert split_starts("srun: hello\n" + start("a") + ECC + start("b")) == [start("a") + ECC, start("b")]
    assert split_starts("nothing") == []


def test_retry_leaves_them_out_and_says_so(
    build: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("jobs.launch.submit.resubmit", lambda *words: calls.append(words[3]) or 0)
    sweep = build([[start("node3") + ECC], [start("node3") + ECC]])
    assert run_command(main, [str(sweep.folder), "--failed", "--exclude", "node[5-6]"]) == 0
    assert "node3 is left out: 2 starts" in capsys.readouterr().out
    assert run_command(main, [str(sweep.folder), "--failed", "--no-exclude"]) == 0
    assert "left out" not in capsys.readouterr().out
    assert calls == [["node[5-6]", "node3"], []]


def test_nodes_are_left_out_beside_those_of_the_launch() -> None:
    launch = Launch("slurm", Resources(exclude="node[1-2]"), 0, 1)
    assert leave_out(launch, ["node[5-6]", "node3"]).resources.exclude == "node[1-2],node[5-6],node3"
    assert leave_out(launch, []) is launch
    assert leave_out(Launch("slurm", Resources(), 0, 1), ["node3"]).resources.exclude == "node3"
    with pytest.raises(ValueError, match="--cluster local, which has no nodes to leave out"):
        leave_out(Launch("local", Resources(), 0, 1), ["node3"])


@pytest.mark.parametrize(
    ("text", "host"),
    [
        (start("a.lab.org") + ECC, "a.lab.org"),
        (start("a", nodes=2) + ECC, "a"),  # each process knows its own
        (start("a") + NODE_FAILURE, "a"),
        (start("a", nodes=2) + NODE_FAILURE, ""),  # any of them
        (start("a", nodes=2) + NODE_FAILURE + "srun: error: Node failure on node3.\n", "node3"),
        (start("a") + "srun: error: Node failure on node3,\n", "node3"),
        (start("a") + BUG, ""),
        (start("a"), ""),
        (NODE_FAILURE, ""),
        ("", ""),
    ],
)
def test_the_host_whose_failure_ended_a_start(text: str, host: str) -> None:
    assert failed_host(text) == host
    assert nodes_of(text) == (2 if "node=0(2)" in text else 1)


def test_each_start_counts_from_the_last_one_back(build: Build) -> None:
    requeued = start("node3") + NODE_FAILURE + start("node4") + ECC + start("node5")
    sweep = build([[requeued, start("node6") + ECC], [start("node2")]])
    assert list(node_failures(sweep, trial_statuses(sweep))) == [
        ("10", 1, "node4"), ("10", 2, "node3"), ("11", 0, "node6"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("logs", "lost"),
    [
        ([start("node2")], [("10", 0, "node2.cluster")]),
        ([start("node2") + ECC], [("10", 0, "node2")]),  # its log names it already
        ([start("node2") + ECC + start("node2")], [("10", 1, "node2"), ("10", 0, "node2.cluster")]),
        ([start("node2", nodes=2)], []),  # which of them, nobody knows
        ([start("node1") + ECC, start("node2")], [("10", 0, "node1"), ("11", 0, "node2.cluster")]),
    ],
)
def test_a_node_that_was_lost_in_silence_counts_for_the_last_start(
    build: Build, tmp_path: Path, logs: list[str], lost: list[tuple[str, int, str]]
) -> None:
    sweep = build([logs], host="node2.cluster")
    (tmp_path / "sacct").write_text(f"#!/bin/sh\nprintf '1{len(logs) - 1}|NODE_FAIL|node2|0:0\\n'\n")
    assert list(node_failures(sweep, trial_statuses(sweep))) == lost


def test_jobs_of_this_machine_and_submissions_without_a_job_count_for_no_node(build: Build) -> None:
    sweep = build([[start("node3") + ECC]])
    rows = trial_statuses(sweep)
    assert [host for _, _, host in node_failures(sweep, rows)] == ["node3"]
    sweep.add_submissions(
        [Submission(sweep.trials[0].id, "", "slurm", ""), Submission(sweep.trials[0].id, "9", "local", "")]
    )
    assert [host for _, _, host in node_failures(sweep, rows)] == ["node3"]


def test_a_node_is_named_once_whether_it_failed_or_showed_no_gpu(build: Build) -> None:
    sweep = build([[start("node3") + ECC], [start("node3") + ECC], [start("node5") + ECC] * 2])
    for node in ("node3", "node1", "elsewhere"):
        note_fault(sweep.folder, Fault("10_0", 0, node, "no GPU"))
    bad = found(sweep)
    assert bad.names == ("node3", "node5", "node1")
    assert [message.partition(":")[0] for message in bad.messages] == [
        "node5 is left out", "node1 is left out", "node3 is left out",
    ]  # fmt: skip
