"""Runs and sweeps small enough to be real, and the doctor on drawn pets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.checks.setup import Finding
from jobs.design.shard_sets import ShardSets
from jobs.doctor import main
from petseg.config import RunConfig
from petseg.config.values import with_values
from shards.command import run_command
from shards.manifest import Manifest, load_manifest
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


@pytest.fixture(scope="session")
def manifest(pet_shards: Path) -> Manifest:
    return load_manifest(pet_shards)


@pytest.fixture(scope="session")
def sets(pet_shards: Path, manifest: Manifest) -> ShardSets:
    """The drawn pets as the shard set of a sweep."""
    return ShardSets({str(pet_shards): manifest})


@pytest.fixture
def tiny(pet_shards: Path, tmp_path: Path) -> RunConfig:
    """A run of a second or two in this process, on one thread: sums come out the same."""
    import torch  # most files here do without

    torch.set_num_threads(1)
    values = {
        "data.shards": str(pet_shards), "data.image_size_px": 64, "data.threads": 1, "data.cache": "none",
        "data.cache_dir": str(tmp_path / "cache"), "model.width": 4, "train.epochs": 2, "train.batch_size": 8,
        "train.log_every": 1, "train.test": False, "tracking.overlays": 0,
    }  # fmt: skip
    return with_values(RunConfig(), values)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like one of submitit's."""
    command = [sys.executable, "-c", "import time; time.sleep(60)", "submitit"]
    with subprocess.Popen(command) as process:
        yield process
        process.kill()


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
