"""A process of a run is killed: the others stop with the word to go on, and the run goes on to its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from petseg.run.peers import GONE, LostPeer, lost_peers_raise
from petseg.run_folder.layout import load_result
from shards.command import INTERRUPTED, Failure

REPOSITORY = Path(__file__).parents[3]


def start(rank: int, port: int, shards: Path, folder: Path, epochs: int) -> subprocess.Popen:
    env = {
        **os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank),
    }  # fmt: skip
    values = {
        "data.shards": shards, "data.image-size-px": 64, "data.threads": 1, "data.cache-dir": folder / "cache",
        "model.width": 4, "train.batch-size": 8, "train.epochs": epochs, "train.log-every": 1, "tracking.overlays": 0,
        "out": folder / "run",
    }  # fmt: skip
    flags = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "petseg/train.py", *flags, "--train.no-test"]
    return subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_whose_peer_was_killed_asks_to_be_run_again(
    pet_shards: Path, tmp_path: Path, killed: int, wait_for: Callable
) -> None:
    port = free_port()
    ranks = [start(rank, port, pet_shards, tmp_path, epochs=200) for rank in (0, 1)]
    try:
        wait_for(lambda: list((tmp_path / "run" / "checkpoints").glob("step-*")))
        ranks[killed].send_signal(signal.SIGKILL)
        _, said = ranks[1 - killed].communicate(timeout=120)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert ranks[1 - killed].returncode == INTERRUPTED, said
    assert "interrupted: another process of this run has ended (" in said
    assert "run the same command to go on from what is saved" in said
    assert "bug:" not in said
    assert load_result(tmp_path / "run") is None


@pytest.mark.parametrize(
    "said",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:47152",
        "[gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:44953: Connection reset by peer.",
        "[gloo/transport/tcp/pair.cc:459] writev [127.0.0.1]:3113: Broken pipe",
        "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete",
        "NCCL error in: ProcessGroupNCCL.cpp:2, ncclRemoteError: A call failed possibly due to a network error",
        "NCCL error: remote process exited or there was a network error",
        "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
    ],
)
def test_messages_of_gloo_and_nccl_about_a_lost_peer(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    with pytest.raises(LostPeer, match="has ended"), lost_peers_raise():
        raise RuntimeError(said)


def test_other_errors_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"^Broken pipe$"), lost_peers_raise():
        raise RuntimeError("Broken pipe")  # of a process alone
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    for error in (RuntimeError("CUDA out of memory"), Failure("Connection closed by peer"), ValueError("Broken pipe")):
        with pytest.raises(type(error), match=str(error)), lost_peers_raise():
            raise error
    assert not GONE.search("CUDA out of memory")
