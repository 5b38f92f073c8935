"""What is started for a node, and what Slurm is told when it breaks and heals; with daemons that only note it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slurm.rehearsal import nodes
from slurm.rehearsal.cluster import Cluster
from slurm.rehearsal.nodes import break_node, heal_node, require_running, spawn_controller, spawn_node


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is done to a cluster of node1 and node2, of which munged, slurmctld and node1 run."""
    calls: list[Any] = []
    (tmp_path / "cluster.json").write_text(json.dumps({"nodes": ["node1", "node2"], "namespaces": True}))
    monkeypatch.setattr(
        nodes.daemons, "recorded", lambda root, name: {name: 1} if name in ("munged", "slurmctld", "node.node1") else {}
    )
    monkeypatch.setattr(nodes.daemons, "spawn", lambda root, name, command, env: calls.append((name, command)))
    monkeypatch.setattr(nodes.daemons, "end", lambda root, name: calls.append(("end", name)))
    monkeypatch.setattr(nodes.daemons, "log_tails", lambda root: "the logs")
    monkeypatch.setattr(nodes, "end_nodes", lambda root, names, spaces: calls.append(("end nodes", names, spaces)))
    monkeypatch.setattr(nodes.client, "order", lambda root, command: calls.append(command))
    return calls


def test_what_runs_a_node_and_slurmctld(noted: list[Any], tmp_path: Path) -> None:
    conf, hosts = f"{tmp_path}/etc/slurm.conf", f"{tmp_path}/etc/hosts"
    spawn_node(tmp_path, "node1", namespaces=True)
    spawn_node(tmp_path, "127.0.0.11", namespaces=False)
    spawn_controller(tmp_path)
    reaper = str(Path(nodes.__file__).with_name("reaper.py"))
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--uts", "--mount", "--mount-proc"]
    assert noted == [
        ("node.node1", [*unshare, "sh", "-c", nodes.NODE_SCRIPT, "node", "node1", hosts, conf]),
        (
            "node.127.0.0.11",
            [sys.executable, "-I", "-S", reaper, "slurmd", "-D", "-f", conf, "-N", "127.0.0.11"],
        ),
        ("slurmctld", ["slurmctld", "-D", "-f", conf, "-i"]),
    ]


def down(reason: str, node: str) -> list[str]:
    return ["scontrol", "update", f"nodename={node}", "state=down", f"reason={reason} in a rehearsal"]


def test_slurm_is_told_of_a_broken_node_unless_it_is_to_find_out(noted: list[Any], tmp_path: Path) -> None:
    break_node(tmp_path, "node1")
    break_node(tmp_path, "node1", tell=False)
    Cluster(tmp_path, ("node1",), {}).break_node("node1", tell=False)
    ended = ("end nodes", ["node1"], True)
    assert noted == [ended, down("broken", "node1"), ended, ended]
    noted.clear()
    break_node(tmp_path, "slurmctld")
    assert noted == [("end", "slurmctld")]  # by TERM, at which it saves its state


def test_only_what_is_whole_breaks_and_only_what_is_broken_heals(noted: list[Any], tmp_path: Path) -> None:
    for act, node, message in (
        (break_node, "node2", rf"^node2 is broken already: .* slurm\.rehearsal heal node2 --root {tmp_path}$"),
        (heal_node, "node1", rf"^node1 is whole already: .* slurm\.rehearsal break node1 --root {tmp_path}$"),
        (heal_node, "slurmctld", r"^slurmctld is whole already: "),
        (heal_node, "node3", rf"^no node node3 in the cluster in {tmp_path}: choose one of node1, node2, slurmctld$"),
    ):
        with pytest.raises(ValueError, match=message):
            act(tmp_path, node)
    assert noted == []


def test_without_a_cluster_there_is_nothing_to_break(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    message = rf"^no cluster runs in {tmp_path}: .* slurm\.rehearsal start --root {tmp_path}$"
    for act in (lambda: break_node(tmp_path, "node1"), lambda: require_running(tmp_path)):
        with pytest.raises(ValueError, match=message):
            act()


def test_a_node_heals_once_slurm_uses_it(noted: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is down first, so that its jobs are known to be lost, and is resumed as soon as its slurmd has reported."""
    states = ["down*", "unknown", "down", "idle"]

    def ask(root: Path, command: list[str]) -> str:
        if command[0] == "sinfo":
            assert command[1:] == ["-h", "-N", "-n", "node2", "-o", "%T"]
            return f"{states.pop(0)}\nanother partition's"
        noted.append(command)
        return ""

    monkeypatch.setattr(nodes.client, "ask", ask)
    heal_node(tmp_path, "node2")
    assert states == []
    assert [call if isinstance(call, list) else call[0] for call in noted] == [
        down("to be healed", "node2"),
        "node.node2",
        ["scontrol", "update", "nodename=node2", "state=resume"],
    ]


def test_slurmctld_heals_once_it_answers(noted: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["gpu* up", ""]

    def await_ready(root: Path, name: str, condition: Callable[[], bool], timeout_s: float) -> None:
        noted.append((root, name, condition(), condition()))

    monkeypatch.setattr(nodes.daemons, "recorded", lambda root, name: {name: 1} if name == "munged" else {})
    monkeypatch.setattr(nodes.client, "ask", lambda root, command: answers.pop())
    monkeypatch.setattr(nodes.daemons, "await_ready", await_ready)
    heal_node(tmp_path, "slurmctld")
    assert [call[0] for call in noted] == ["slurmctld", tmp_path]
    assert noted[1] == (tmp_path, "slurmctld", False, True)


@pytest.mark.parametrize("answer", ["drained", ""])
def test_a_node_that_does_not_come_back_is_told_with_its_state(
    noted: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(nodes, "HEAL_TIMEOUT_S", 0.0)
    monkeypatch.setattr(nodes.client, "ask", lambda root, command: answer)
    state = answer or "unknown"
    with pytest.raises(ValueError, match=rf"^node2 does not come back \(it is {state}\):\nthe logs$"):
        heal_node(tmp_path, "node2")


@pytest.mark.parametrize(
    ("state", "is_back"),
    [("idle", True), ("mixed", True), ("allocated", True), ("completing", True), ("idle*", False), ("down", False)],
)
def test_which_nodes_get_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, is_back: bool) -> None:
    monkeypatch.setattr(nodes.client, "ask", lambda root, command: state)
    assert nodes._is_back(tmp_path, "node1") is is_back
