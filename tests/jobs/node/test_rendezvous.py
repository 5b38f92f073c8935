"""Where the ranks of a job meet: one note for each start, written by rank 0 and taken back by it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.node import rendezvous
from jobs.node.rendezvous import meet, remove_rendezvous


@pytest.fixture(autouse=True)
def job_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    monkeypatch.setattr(rendezvous, "TIMEOUT_S", 0.5)
    return tmp_path


def rank(number: int) -> SimpleNamespace:
    """What submitit says of a process of a job of two."""
    return SimpleNamespace(global_rank=number, num_tasks=2, job_id="12_0", hostnames=["node1", "node2"])


def test_all_ranks_get_the_address_of_rank_0() -> None:
    address, port = meet(rank(0))
    assert address == "node1"
    assert meet(rank(1)) == (address, port)


def test_a_rank_of_a_requeued_job_does_not_read_the_port_of_the_start_before(monkeypatch: pytest.MonkeyPatch) -> None:
    meet(rank(0))  # and its job was killed, so that the note stays
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(OSError, match="rank 0 wrote no "):
        meet(rank(1))
    _, port = meet(rank(0))
    assert meet(rank(1)) == ("node1", port)


def test_only_rank_0_removes_the_rendezvous(job_folder: Path) -> None:
    """This machine's controller starts a job again under the same id, and counts no restarts."""
    meet(rank(0))
    (note,) = job_folder.iterdir()
    remove_rendezvous(rank(1))
    assert json.loads(note.read_text())[0] == "node1"
    remove_rendezvous(rank(0))
    assert list(job_folder.iterdir()) == []
    remove_rendezvous(rank(0))  # nothing is there to take back
