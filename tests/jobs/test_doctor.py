"""The doctor on a healthy setup, and what its command says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import doctor
from jobs.checks.setup import Finding, Setup
from jobs.doctor import CHECKS, main
from shards.command import run_command
from slurm.resources import Resources

Doctor = Callable[..., dict[str, Finding]]


@pytest.mark.slow
def test_a_healthy_setup(ask: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All checks, an all-reduce of two processes on this machine among them."""
    monkeypatch.setenv("WORLD_SIZE", "4")  # of a launcher around us: nobody else will come
    found = ask(",".join(CHECKS), "--cluster", "local", "--tasks-per-node", "2", "--all-reduce", "--deep")
    assert {name: finding.status for name, finding in found.items()} == dict.fromkeys(CHECKS, "ok"), found
    assert "18 cells, 2 processes each" in found["config"].detail
    assert "each byte read, each sample decoded" in found["shards"].detail
    assert "27 train, 3 val, 30 test; no key and no picture in two" in found["splits"].detail
    assert "unet, ce: loss" in found["overfit"].detail
    assert "resnet34_unet, ce: loss" in found["overfit"].detail
    assert "stopped 2 times" in found["resume"].detail
    assert "2 processes (cpu)" in found["all-reduce"].detail
    assert all(finding.seconds >= 0 for finding in found.values())
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_lines_for_people(pet_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--set", f"data.shards={pet_shards}", "--set", "data.image_size_px=64", "--cluster", "local"]
    flags += ["--set", f"data.cache_dir={tmp_path}", "--runs-dir", str(tmp_path / "file" / "runs")]
    (tmp_path / "file").write_text("in the way")
    assert run_command(main, [*flags, "--quick", "--skip", "transforms"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [
        "config", "partition", "wandb", "shards", "splits",
            "labels", "mixing", "folder", "nodes", "cache",
    ]  # fmt: skip
    assert lines[0].startswith("ok    config")
    assert lines[7].startswith("FAIL  folder")
    assert " -> choose another folder with --runs-dir" in lines[7]
    assert "10 checks" in lines[-1]
    assert "1 failed, 0 with a warning" in lines[-1]


def test_an_unknown_check_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["--only", "shard"]) == 2
    assert "there is no check 'shard': choose among config, partition, wandb, shards" in capsys.readouterr().err


def test_a_profile_is_what_jobs_ask_for(
    ask: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "petseg").mkdir()
    (tmp_path / "petseg" / "profiles.toml").write_text('[mine]\ngpus = 8\npartition = "a100"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    asked: list[Resources] = []

    def note(setup: Setup) -> Finding:
        asked.append(setup.command.resources)
        return Finding("ok", "config", "")

    monkeypatch.setattr("jobs.checks.data.check_config", note)
    ask("config", "--profile", "mine")  # with --gpus 0
    assert asked == [Resources(partition="a100", gpus_per_node=0)]
    assert run_command(main, ["--profile", "none"]) == 2
    assert "no profile 'none': choose one of mine" in capsys.readouterr().err


def test_a_check_that_breaks_hides_no_other(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.CHECKS, "config", "jobs.checks.data:listed")
    found = ask("config,wandb")
    assert found["config"].status == "FAIL"
    assert "TypeError" in found["config"].detail
    assert found["wandb"].status == "ok"
