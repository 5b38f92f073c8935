"""Sweeps small enough to run for real, and the doctor on drawn pets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.checks.setup import Finding
from jobs.doctor import main
from shards.command import run_command
from tests.wandb_server import KEY, WandbServer

Doctor = Callable[..., dict[str, Finding]]

TINY = {
    "data.image_size_px": 64,
    "model.width": 4,
    "train.epochs": 1,
    "train.batch_size": 16,
    "train.mixed_precision": "no",
    "tracking.overlays": 2,
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    """A recording server that wandb's client takes for its own."""
    server = WandbServer()
    for name in ("HTTP_PROXY", "http_proxy", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield server
    server.stop()


@pytest.fixture
def tiny_sweep(pet_shards: Path, tmp_path: Path) -> list[str]:
    """Flags of jobs/sweep.py: two trials of a second or two, in tmp_path/runs/lab."""
    settings = {"data.shards": str(pet_shards), **TINY}
    flags = ["--runs-dir", str(tmp_path / "runs"), "--axis", "augment.policy=none", "--axis", "train.seed=0"]
    for name, value in settings.items():
        flags += ["--set", f"{name}={value}"]
    return flags


@pytest.fixture
def ask(pet_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run some checks on drawn pets, with further flags; returns the findings by name."""

    def run(only: str, *flags: str, shards: Path | str = pet_shards) -> dict[str, Finding]:
        settings = {"data.shards": shards, "data.image_size_px": 64, "data.cache_dir": tmp_path / "cache"}
        words = [f for name, value in settings.items() for f in ("--set", f"{name}={value}")]
        words += ["--runs-dir", str(tmp_path / "runs"), "--gpus", "0", *flags, "--only", only, "--json"]
        code = run_command(main, words)
        findings = {row["what"]: Finding(**row) for row in json.loads(capsys.readouterr().out)}
        assert code == (3 if any(finding.status == "FAIL" for finding in findings.values()) else 0)
        return findings

    return run


@pytest.fixture
def copied(pet_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pet_shards, tmp_path / "copied"))
