"""Where the ranks of a job meet: one note for each start, written by rank 0 and taken back by it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.node import rendezvous
from jobs.node.rendezvous import RanksNotMet, meet, remove_rendezvous, set_up_ranks


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


RANK_VARIABLES = (
    "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_CPU",
)  # fmt: skip


@pytest.mark.parametrize("gpus", [0, 2])
def test_torch_is_told_who_is_who(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    """The fifth of six processes on two nodes."""
    kept = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    monkeypatch.setattr(os, "environ", kept)
    monkeypatch.setattr(rendezvous, "gpus_given", lambda environ: gpus)
    monkeypatch.setattr(rendezvous, "meet", lambda environment: ("node1", 4711))
    environment: Any = SimpleNamespace(num_tasks=6, global_rank=4, local_rank=1, num_nodes=2)
    set_up_ranks(environment)
    values = ["node1", "4711", "4", "6", "1", "3", *([] if gpus else ["true"])]
    assert {name: os.environ[name] for name in RANK_VARIABLES if name in os.environ} == dict(
        zip(RANK_VARIABLES, values, strict=False)
    )


def test_a_process_alone_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "meet", lambda environment: pytest.fail("nobody is there"))
    environment: Any = SimpleNamespace(num_tasks=1)
    set_up_ranks(environment)


def test_a_rank_waits_for_the_note_of_rank_0(job_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            (job_folder / "12_0_rendezvous_0.json").write_text('["node1", 4711]')

    monkeypatch.setattr(rendezvous, "time", SimpleNamespace(monotonic=lambda: len(naps) * 0.1, sleep=sleep))
    assert meet(rank(1)) == ("node1", 4711)
    assert naps == [rendezvous.POLL_S] * 2


def test_a_rank_without_rank_0_gives_up_and_says_which_note_it_awaited(
    job_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += 60

    monkeypatch.setattr(rendezvous, "TIMEOUT_S", 300.0)
    monkeypatch.setattr(rendezvous, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    with pytest.raises(RanksNotMet) as failed:
        meet(rank(1))
    note = job_folder / "12_0_rendezvous_0.json"
    assert str(failed.value) == f"rank 0 wrote no {note} within 300 s: see its log"
    assert now == 300.0


def test_the_port_of_rank_0_is_free_on_all_addresses() -> None:
    _, port = meet(rank(0))
    with socket.socket() as listener:
        listener.bind(("", port))
    assert port >= 1024
