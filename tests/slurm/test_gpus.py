"""The GPUs of a machine, by what its environment and its driver say."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.gpus import visible_gpus

LIST = """GPU 0: NVIDIA A100 (UUID: GPU-1)
  MIG 1g.10gb Device 0: (UUID: MIG-1)
GPU 1: NVIDIA A100 (UUID: GPU-2)
"""


@pytest.mark.parametrize(("allowed", "gpus"), [("", []), (" ", []), ("3", [3]), ("0,1", [0, 1]), (" 2 , 10,", [2, 10])])
def test_the_variable_decides_where_it_is_set(monkeypatch: pytest.MonkeyPatch, allowed: str, gpus: list[int]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert visible_gpus() == gpus


@pytest.mark.parametrize("allowed", ["0,GPU-1", "-1", "0,1.5"])
def test_other_names_than_indices_are_refused(monkeypatch: pytest.MonkeyPatch, allowed: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    with pytest.raises(
        ValueError, match=rf"^CUDA_VISIBLE_DEVICES={allowed}: submitit takes indices only, such as 0,1$"
    ):
        visible_gpus()


@pytest.mark.parametrize(("code", "gpus"), [(0, [0, 1]), (9, [])])
def test_else_the_driver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, gpus: list[int]) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    script = f"#!/bin/sh\n[ \"$*\" = --list-gpus ] || exit 1\ncat <<'END'\n{LIST}END\nexit {code}\n"
    (tmp_path / "nvidia-smi").write_text(script)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert visible_gpus() == gpus
