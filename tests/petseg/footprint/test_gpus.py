"""GPUs that a process was given, and that it does not see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from petseg.footprint.gpus import NodeFault, gpus_given, place, require_gpus
from petseg.train import main
from shards.command import run_command

IN_JOB = {"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2", "SLURMD_NODENAME": "node3"}


@pytest.mark.parametrize(
    ("environ", "given"),
    [
        ({}, 0),
        ({"SLURM_GPUS_ON_NODE": "0"}, 0),
        ({"SLURM_GPUS_ON_NODE": "2"}, 1),  # how many of them this process was to see is not known
        ({"SLURM_JOB_GPUS": "0"}, 1),  # the index of one
        ({"SLURM_STEP_GPUS": ""}, 0),
        ({"SLURM_JOB_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": ""}, 0),  # taken away on purpose
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1,MIG-2"}, 1),  # torch sees the first one alone
        ({"ROCR_VISIBLE_DEVICES": "0,1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "ACCELERATE_USE_CPU": "true"}, 0),
    ],
)
def test_what_was_given(environ: dict[str, str], given: int) -> None:
    assert gpus_given(environ) == given


@pytest.mark.parametrize(
    ("seen", "rank", "message"),
    [
        (0, 0, r"job 12_2 on node3 was given 2 GPUs, and torch sees none: .*nvidia-smi.*--exclude"),
        (1, 1, r"job 12_2 on node3 was given 2 GPUs, and torch sees 1, none for local rank 1"),
        (2, 1, ""),
    ],
)
def test_a_process_without_its_gpu_names_node_and_job(
    monkeypatch: pytest.MonkeyPatch, seen: int, rank: int, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    environ = {**IN_JOB, "CUDA_VISIBLE_DEVICES": "0,1", "LOCAL_RANK": str(rank)}
    if not message:
        require_gpus(environ)
        return
    with pytest.raises(NodeFault, match=message):
        require_gpus(environ)
    require_gpus(environ | {"ACCELERATE_USE_CPU": "true"})


def test_a_torch_for_cpus_is_no_nodes_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(ValueError, match=r"is built for CPUs only: install one that is built for GPUs"):
        require_gpus({**IN_JOB, "SLURM_GPUS_ON_NODE": "1"})


def test_folders() -> None:
    assert place({"SLURM_JOB_ID": "14", "SLURMD_NODENAME": "node3"}) == "job 14 on node3"
    assert place({}).startswith("this process on ")


def test_training_by_hand_fails_at_once(
    pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, value in {**IN_JOB, "SLURM_GPUS_ON_NODE": "1"}.items():
        monkeypatch.setenv(name, value)
    words = ["--data.shards", str(pet_shards), "--data.image-size-px", "64", "--out", str(tmp_path / "run")]
    assert run_command(main, words) == 3
    assert "job 12_2 on node3 was given 1 GPU, and torch sees none" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
