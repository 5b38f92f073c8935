"""What status says of a chain whose own jobs have failed, wait, or are done."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import chain, report, status
from jobs.state.chain_state import FOLDER, ChainJob, Note, _standing, add_note, chain_jobs, chain_lines, write_end
from shards.command import FAILED, OK, WRONG_USE, run_command
from slurm.cluster import JobState
from slurm.rehearsal.cluster import Cluster
from tests.jobs.written_trials import finish, sweep_of

SMALL = ["--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "1", "--timeout-min", "5", "--partition", "gpu"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "my lab"
    (folder / FOLDER).mkdir(parents=True)
    return folder


def note(folder: Path, step: str, job_id: str, dependency: str = "", said: str = "") -> None:
    log = folder / FOLDER / f"{job_id}_0_log.out"
    log.write_text(said)
    add_note(folder, Note(step, job_id, dependency, str(log)))


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What squeue answers; sacct knows nothing."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin:/bin")

    def change(lines: str) -> None:
        for name, text in (("squeue", lines), ("sacct", "")):
            script = "".join(f"echo '{line}'\n" for line in text.splitlines())
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}")
            (tmp_path / "bin" / name).chmod(0o755)

    return change


def test_a_pack_that_failed_is_shown_with_its_last_words(
    folder: Path, says: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    said = "12:00:00 INFO jobs.node.chain_steps: python -m shards.pack\nerror: no such folder: data/none\n"
    note(folder, "pack", "12", said=f"{said}submitit ERROR (x) - Submitted job triggered an exception\nTraceback\n")
    note(folder, "train", "13", "afterok:12")
    write_end(folder / FOLDER, "12", "shards.pack", 2)
    says("13|CANCELLED|Dependency|")
    assert run_command(status.main, [str(folder)]) == FAILED
    out = capsys.readouterr().out
    assert out.startswith("my lab: no trials yet\n\nchain: pack failed, train cancelled\n")
    assert "  pack: job 12, python -m shards.pack ended with exit code 2\n" in out
    assert "  | error: no such folder: data/none\n" in out
    assert "Traceback" not in out
    assert f"  its log: {folder / FOLDER / '12_0_log.out'}\n" in out
    assert "  train: job 13, cancelled by somebody, or by Slurm, because it waits for a job that failed" in out
    assert run_command(status.main, [str(folder), "--json"]) == FAILED
    document = json.loads(capsys.readouterr().out)
    assert [(job["step"], job["state"]) for job in document["chain"]] == [("pack", "failed"), ("train", "cancelled")]
    says("")  # Slurm forgets; what was seen is known
    assert [job.status for job in chain_jobs(folder)] == ["failed", "cancelled"]
    assert run_command(report.main, [str(folder)]) == WRONG_USE
    assert f"no trials in {folder} yet: `python jobs/status.py '{folder}'` says where" in capsys.readouterr().err


def test_a_chain_on_its_way_and_one_that_is_done(
    folder: Path, says: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    note(folder, "pack", "8")
    write_end(folder / FOLDER, "8", "shards.pack", 3)
    note(folder, "pack", "12")  # again, after what was wrong had been mended
    note(folder, "train", "13", "afterok:12")
    says("12|RUNNING|None|node1\n13|PENDING|Dependency|")
    assert run_command(status.main, [str(folder)]) == OK
    assert "chain: pack running, train queued\n" in capsys.readouterr().out
    says("13|PENDING|DependencyNeverSatisfied|")
    assert [job.status for job in chain_jobs(folder)] == ["unknown", "never"]

    sweep = sweep_of(folder, 1)
    finish(sweep.trials[0])
    note(folder, "report", "15", "afterany:14")
    write_end(folder / FOLDER, "15", "jobs.status", 0)
    says("")
    assert [job.status for job in chain_jobs(folder)] == ["done"] * 3
    assert run_command(status.main, [str(folder)]) == OK
    assert "chain" not in capsys.readouterr().out


def test_a_report_that_was_killed_fails_the_status_of_a_finished_sweep(
    folder: Path, says: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    finish(sweep_of(folder, 1).trials[0])
    note(folder, "report", "15", "afterany:14")
    says("15|OUT_OF_MEMORY|OutOfMemory|node1")
    assert run_command(status.main, [str(folder)]) == FAILED
    assert "report: job 15, ended by Slurm: OUT_OF_MEMORY OutOfMemory\n" in capsys.readouterr().out


def test_a_source_that_is_missing_is_refused_before_anything_is_submitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, runs = str(tmp_path / "set"), str(tmp_path / "runs")
    words = ["pack", "train", "--set", f"data.shards={out}", "--runs-dir", runs, *SMALL, "--pack", "--out", out]
    assert run_command(chain.main, [*words, "--source", str(tmp_path / "none")]) == WRONG_USE
    said = capsys.readouterr().err
    assert str(tmp_path / "none") in said
    assert "could not begin, as it says above: nothing is submitted" in said
    assert run_command(chain.main, [*words, "--sorce", "x"]) == WRONG_USE
    assert "--sorce" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slurm
def test_a_pack_that_fails_on_a_real_slurm(
    on_cluster: Cluster, tmp_path: Path, wait_for: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """One drawn pet cannot be split, which only packing finds out."""
    out = str(tmp_path / "set")
    words = ["pack", "train", "--set", f"data.shards={out}", "--runs-dir", str(tmp_path / "runs"), *SMALL]
    assert run_command(chain.main, [*words, "--pack", "--out", out, "--synthetic", "1"]) == OK
    folder = tmp_path / "runs" / "lab"
    wait_for(lambda: [job.status for job in chain_jobs(folder)] == ["failed", "cancelled"])
    subprocess.run(["scancel", "--me"], check=True, timeout=30)
    capsys.readouterr()
    assert run_command(status.main, [str(folder)]) == FAILED
    out = capsys.readouterr().out
    assert "chain: pack failed, train cancelled" in out
    assert "python -m shards.pack ended with exit code" in out


def standing(*states: str) -> list[ChainJob]:
    steps = ("pack", "train", "report")
    tail = ("its last words",)
    return [
        ChainJob(Note(step, str(number), "", f"{step}.out"), state, f"it is {state}", tail)
        for number, (step, state) in enumerate(zip(steps, states, strict=False), start=1)
    ]


def test_a_chain_is_reported_until_all_of_it_is_done() -> None:
    assert list(chain_lines([])) == list(chain_lines(standing("done", "done", "done"))) == []
    assert list(chain_lines(standing("done", "running", "queued"))) == [
        "\nchain: pack done, train running, report queued",
        "  train: job 2, it is running",
        "  report: job 3, it is queued",
    ]


@pytest.mark.parametrize(
    ("state", "shows_log", "tells_next"),
    [
        ("failed", True, True),
        ("unknown", True, False),  # it may run
        ("cancelled", False, True),
        ("never", False, True),
        ("running", False, False),
        ("queued", False, False),
    ],
)
def test_what_is_told_of_a_job_of_a_chain(state: str, shows_log: bool, tells_next: bool) -> None:
    lines = list(chain_lines(standing("done", state)))
    assert ("  | its last words" in lines) is ("  its log: train.out" in lines) is shows_log
    assert any(line.startswith("  next: fix that") for line in lines) is tells_next
    assert not any("pack.out" in line for line in lines)


@pytest.mark.parametrize(
    ("end", "state", "status", "why"),
    [
        ({"code": 0}, None, "done", ""),
        ({"code": 3, "module": "shards.pack"}, None, "failed", "python -m shards.pack ended with exit code 3"),
        ({}, None, "unknown", "Slurm does not answer ()"),
        ({}, JobState("UNKNOWN", "timed out", "", "none"), "unknown", "Slurm does not answer (timed out)"),
        ({}, JobState("MISSING", "", "", "squeue"), "unknown", "Slurm no longer knows it"),
        ({}, JobState("PENDING", "Priority", "", "squeue"), "queued", "Priority"),
        ({}, JobState("PENDING", "DependencyNeverSatisfied", "", "squeue"), "never", "never starts"),
        ({}, JobState("RUNNING", "", "n1", "squeue"), "running", "running"),
        ({}, JobState("COMPLETED", "", "n1", "sacct"), "done", ""),
        ({}, JobState("CANCELLED", "", "", "sacct"), "cancelled", "because it waits for a job that failed (afterok:1)"),
        ({}, JobState("TIMEOUT", "", "n1", "sacct"), "failed", "TIMEOUT"),
    ],
)
def test_a_job_of_a_chain_stands_as_its_end_and_slurm_say(
    tmp_path: Path, end: dict[str, Any], state: JobState | None, status: str, why: str
) -> None:
    job = _standing(Note("train", "2", "afterok:1", str(tmp_path / "none.out")), end, state)
    assert job.status == status
    assert why in job.why
