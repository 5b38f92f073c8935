"""The job of a second that looks around on a node: its flags, its script, and how long it is waited for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.checks import nodes
from jobs.checks.nodes import Ended, await_end, check_nodes, flags_of, run_on_a_node, wanted
from jobs.checks.setup import Command, Setup
from jobs.design.expansion import expand
from jobs.design.spec import Spec
from slurm.resources import Resources

GPU = Resources(partition="gpu", gpus_per_node=4)
SIZE = ["--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=100M", "--time=2"]
QUIET = ["--no-requeue", "--output=/dev/null", "--chdir=/", "--job-name=petseg-doctor"]


def test_the_job_is_small_and_may_run_where_trials_may() -> None:
    asked = Resources(
        partition="gpu", account="a", qos="q", wckey="w", constraint="c", exclude="n1", nodes=3, gpus_per_node=4,
        comment="no flag of this job",
    )  # fmt: skip
    placed = ["--partition=gpu", "--account=a", "--qos=q", "--wckey=w", "--constraint=c", "--exclude=n1"]
    assert flags_of(asked, 0) == [*placed, *SIZE, *QUIET]
    assert flags_of(Resources(), 2) == [*SIZE, "--gpus-per-node=2", *QUIET]


class Slurm:
    """Takes the jobs that a test lets it, and is asked for one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: Sequence[tuple[int, str, str]]) -> None:
        self.called: list[list[str]] = []
        self.scripts: list[str] = []
        self.waits: list[tuple[str, float]] = []
        self.error: Exception | None = None
        self._answers = iter(answers)
        monkeypatch.setattr(subprocess, "run", self._run)
        monkeypatch.setattr(nodes, "await_end", self._await)

    def _run(self, command: list[str], **how: Any) -> SimpleNamespace:
        self.called.append(command)
        if command[0] == "scancel":
            return SimpleNamespace()
        assert "SLURM_JOB_ID" not in how["env"]
        self.scripts.append(how["input"])
        code, out, error = next(self._answers)
        return SimpleNamespace(returncode=code, stdout=out, stderr=error)

    def _await(self, job_id: str, wait_s: float) -> Ended:
        self.waits.append((job_id, wait_s))
        if self.error:
            raise self.error
        return Ended("COMPLETED", 0, "n1")


def test_a_job_without_gpus_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits a minute at most, and is cancelled in any case; a job around us is none of its own."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    slurm = Slurm(monkeypatch, [(0, "12;cluster\n", "")])
    assert run_on_a_node("the script", GPU, 600.0) == Ended("COMPLETED", 0, "n1")
    assert slurm.called == [["sbatch", "--parsable", *flags_of(GPU, 0)], ["scancel", "12"]]
    assert (slurm.scripts, slurm.waits) == (["the script"], [("12", 60.0)])


def test_a_partition_that_takes_no_job_without_gpus_gets_one_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = Slurm(monkeypatch, [(1, "", "no GPU"), (0, "13\n", "")])
    slurm.error = OSError("it waits")
    with pytest.raises(OSError, match=r"^it waits$"):
        run_on_a_node("x", GPU, 5.0)
    assert slurm.called == [
        ["sbatch", "--parsable", *flags_of(GPU, 0)], ["sbatch", "--parsable", *flags_of(GPU, 4)], ["scancel", "13"],
    ]  # fmt: skip
    assert slurm.waits == [("13", 5.0)]


@pytest.mark.parametrize(("gpus", "tries"), [(4, 2), (0, 1)])
def test_the_last_refusal_is_told(monkeypatch: pytest.MonkeyPatch, gpus: int, tries: int) -> None:
    slurm = Slurm(monkeypatch, [(1, "", "first"), (1, "", "last\nline")][-tries:])
    with pytest.raises(OSError, match=r"^sbatch: last; line$"):
        run_on_a_node("x", Resources(gpus_per_node=gpus), 5.0)
    assert len(slurm.called) == tries


def facts(state: str, **more: str) -> str:
    return " ".join(f"{name}={value}" for name, value in {"JobId": "12", "JobState": state, **more}.items()) + "\n"


@pytest.mark.parametrize(
    ("answers", "seconds", "ended"),
    [
        (
            [*map(facts, ("PENDING", "RUNNING", "COMPLETING")), facts("COMPLETED", ExitCode="0:0", BatchHost="n1")],
            [1, 2, 3, 4],
            Ended("COMPLETED", 0, "n1"),
        ),
        ([facts("FAILED", ExitCode="11:0", NodeList="n2")], [1], Ended("FAILED", 11, "n2")),
        ([facts("CANCELLED")], [1], Ended("CANCELLED", 0, "a node")),
        ([facts("PENDING", Reason="Priority")] * 2, [5, 5.1], "job 12 was PENDING (Priority) for 5 s"),
        ([facts("CONFIGURING")] * 2, [5, 5.1], "job 12 was CONFIGURING (no reason) for 5 s"),
        ([*map(facts, ("PENDING", "RUNNING", "RUNNING"))], [4, 5, 65.1], "job 12 was RUNNING (no reason) for 60 s"),
        ([*map(facts, ("PENDING", "RUNNING", "FAILED"))], [4, 5, 65.1], Ended("FAILED", 0, "a node")),
    ],
)
def test_a_job_may_wait_as_long_as_the_user_says_and_run_for_a_minute(
    monkeypatch: pytest.MonkeyPatch, answers: list[str], seconds: list[float], ended: Ended | str
) -> None:
    left, clock = iter(answers), iter([0.0, *seconds])
    command = ["scontrol", "show", "job", "12", "--oneliner"]
    monkeypatch.setattr(nodes.patience, "call", lambda asked, limit_s: next(left) if asked == command else "")
    monkeypatch.setattr(nodes, "time", SimpleNamespace(monotonic=lambda: 1e6 + next(clock), sleep=lambda s: None))
    if isinstance(ended, Ended):
        assert await_end("12", 5.0) == ended
    else:
        with pytest.raises(OSError, match=rf"^{ended.replace('(', '[(]').replace(')', '[)]')}$"):
            await_end("12", 5.0)
    assert next(left, None) is None


def test_a_scontrol_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], limit_s: float) -> str:
        raise subprocess.CalledProcessError(1, command, stderr="slurm_load_jobs error\n Invalid job id\n")

    monkeypatch.setattr(nodes.patience, "call", fail)
    with pytest.raises(OSError, match=r"^scontrol: slurm_load_jobs error; Invalid job id$"):
        await_end("12", 5.0)


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Two cells on two shard sets, one of them remote, and weights to begin with."""
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    setup = Setup(Command(GPU, name="lab", runs_dir=tmp_path / "runs", wait_min=2.0), tmp_path)
    shards = [str(tmp_path / "shards"), "https://host/set"]
    setup.cells = expand(Spec("lab", {"data.shards": shards}, {"model.init": str(tmp_path / "start.safetensors")}))
    setup.spec = Spec("other", {}, {})
    return setup


@pytest.fixture
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The script runs here, without its pause; how it was asked to run."""
    given: list[tuple[Any, ...]] = []

    def run_here(script: str, asked: Resources, wait_s: float) -> Ended:
        given.append((asked, wait_s))
        done = subprocess.run(["sh"], input=script.replace("sleep 3", "sleep 0"), text=True, check=False)
        return Ended("FAILED" if done.returncode else "COMPLETED", done.returncode, "n1")

    monkeypatch.setattr(nodes, "run_on_a_node", run_here)
    return given


def test_a_node_looks_for_all_that_a_trial_opens(setup: Setup, on_this_machine: list[tuple[Any, ...]]) -> None:
    """The first path that it does not see is named; a remote set is none."""
    shards, weights = setup.folder / "shards", setup.folder / "start.safetensors"
    assert wanted(setup) == {
        Path(sys.executable): f"this Python, {sys.executable}",
        shards / "manifest.json": f"the shards, {shards}",
        weights: f"the weights, {weights}",
    }
    finding = check_nodes(setup)
    assert (finding.status, finding.detail) == ("FAIL", f"n1 does not see the shards, {shards}")
    shards.mkdir()
    (shards / "manifest.json").touch()
    finding = check_nodes(setup)
    assert (finding.status, finding.detail) == ("FAIL", f"n1 does not see the weights, {weights}")
    weights.touch()
    finding = check_nodes(setup)
    seen = f"this Python, {sys.executable}, the shards, {shards}, the weights, {weights}"
    assert (finding.status, finding.detail) == ("ok", f"n1 can write to the sweep's folder, and sees {seen}")
    assert on_this_machine == [(GPU, 120.0)] * 3
    assert list(setup.folder.glob(".doctor-*")) == []  # beside the folder of sweeps, which is not there yet


def test_a_file_of_the_node_that_is_not_seen_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "SHARED_S", 0.0)
    finding = nodes.finding_of(Ended("COMPLETED", 0, "n1"), ["a", "b"], tmp_path, Path("/runs"))
    assert (finding.status, finding.detail) == ("FAIL", "what n1 writes to /runs is not seen here")


def test_a_long_list_of_paths_is_cut(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has an exit code of its own, of which a script has 256."""
    monkeypatch.setattr(nodes, "MAX_PATHS", 2)
    assert list(wanted(setup)) == [Path(sys.executable), setup.folder / "shards" / "manifest.json"]


def test_a_cluster_that_cannot_be_asked_is_no_failure(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> Ended:
        raise ValueError("sbatch: no")

    monkeypatch.setattr(nodes, "run_on_a_node", refuse)
    finding = check_nodes(setup)
    assert (finding.status, finding.detail) == ("warn", "not known what the nodes see: sbatch: no")
    assert finding.advice == "ask again when a node is free"
    missing = {"sbatch": None, "scontrol": None, "scancel": None}
    monkeypatch.setattr("shutil.which", lambda name: missing.get(name, "/bin/x"))
    assert check_nodes(setup).detail == "not known what the nodes see: no sbatch on PATH"


@pytest.mark.parametrize(("name", "folder"), [("lab", "lab"), ("", "other")])
def test_the_folder_of_the_sweep_itself_is_looked_at_where_it_is_there(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, name: str, folder: str
) -> None:
    """Its name is that of the command, and else that of the sweep file."""
    for there in ("lab", "other"):
        (setup.folder / "runs" / there).mkdir(parents=True)
    setup.command = replace(setup.command, name=name)
    monkeypatch.setattr(nodes, "run_on_a_node", lambda *given: Ended("FAILED", nodes.FIRST_UNSEEN, "n1"))
    assert check_nodes(setup).detail == f"n1 does not see the folder of the sweep, {setup.folder / 'runs' / folder}"


def test_a_shared_folder_may_show_a_file_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] >= 4.5:
            (tmp_path / nodes.WRITTEN).touch()

    monkeypatch.setattr(nodes, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    finding = nodes.finding_of(Ended("COMPLETED", 0, "n1"), ["the folder", "a", "b"], tmp_path, Path("/runs"))
    assert (finding.status, finding.detail) == ("ok", "n1 can write to the sweep's folder, and sees a, b")
    assert now == [4.5]
