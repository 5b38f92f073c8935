"""In what order the processes of a node are ended, with daemons that only note it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from slurm.rehearsal import nodes
from slurm.rehearsal.nodes import END_TIMEOUT_S, end_nodes


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is done, on two nodes whose daemons have the pids 11 and 12; what lies below them is 21 and 22."""
    calls: list[Any] = []
    pids = {nodes._record("node1"): {"slurmd": 11}, nodes._record("node2"): {"slurmd": 12}}

    def kill_all(processes: dict[int, int], timeout_s: float = 0.0) -> bool:
        calls.append(("kill", processes, timeout_s))
        return True

    def below(kind: str) -> Any:
        return lambda of: calls.append((kind, of)) or {21: 210, 22: 220}

    monkeypatch.setattr(nodes.daemons, "recorded", lambda root, name: pids[name])
    monkeypatch.setattr(nodes.daemons, "descendants", below("listed"))
    monkeypatch.setattr(nodes.daemons, "freeze_descendants", below("frozen"))
    monkeypatch.setattr(nodes.daemons, "start_ticks", lambda pid: 10 * pid)
    monkeypatch.setattr(nodes.daemons, "kill_all", kill_all)
    monkeypatch.setattr(nodes.daemons, "wait_until", lambda done, timeout_s: calls.append(("waited", timeout_s)))
    monkeypatch.setattr(nodes.daemons, "end", lambda root, name, number: calls.append(("ended", name, number)))
    return calls


ENDED = [
    ("waited", END_TIMEOUT_S),
    *(("ended", nodes._record(node), signal.SIGKILL) for node in ("node1", "node2")),
]


def test_without_namespaces_all_are_stopped_before_any_is_killed(noted: list[Any], tmp_path: Path) -> None:
    end_nodes(tmp_path, ["node1", "node2"], namespaces=False)
    assert noted == [("frozen", [11, 12]), ("kill", {21: 210, 22: 220}, END_TIMEOUT_S), *ENDED]


def test_with_namespaces_the_first_process_takes_the_others_along(noted: list[Any], tmp_path: Path) -> None:
    end_nodes(tmp_path, ["node1", "node2"], namespaces=True)
    listed, first, rest, *after = noted
    assert listed == ("listed", [11, 12])
    assert first[:2] == ("kill", {11: 110, 12: 120})
    assert rest == ("kill", {21: 210, 22: 220}, END_TIMEOUT_S)
    assert after == ENDED


def test_processes_that_survive_are_named_and_their_records_stay(
    noted: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes.daemons, "kill_all", lambda processes, timeout_s=0.0: False)
    monkeypatch.setattr(nodes.daemons, "start_ticks", lambda pid: 220 if pid == 22 else 0)  # 21 is another's by now
    with pytest.raises(OSError, match=r"processes \[22\] survive SIGKILL"):
        end_nodes(tmp_path, ["node1", "node2"], namespaces=False)
    assert noted == [("frozen", [11, 12])]
