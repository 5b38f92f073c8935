"""Small sweeps on real Slurms that are configured as sites are, from the first command to the report.

Each ends with the numbers that the same trials have on this machine, to the last digit.
"""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from jobs.report import main as report_main
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Sweep
from jobs.state.trial_status import trial_statuses
from jobs.status import main as status_main
from jobs.sweep import main
from shards.command import run_command
from slurm import patience
from slurm.rehearsal import client
from slurm.rehearsal.answers import Answer
from slurm.rehearsal.cluster import Cluster, rehearse
from slurm.rehearsal.settings import Site

SMALL = ["--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "1", "--timeout-min", "10"]
SEEDS, EPOCHS = 3, 2
ROOM_S = 240  # for one sweep, on a busy machine

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

Launch = Callable[..., str]


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, so that sums come out the same; and as much patience as users have."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(patience, "PATIENCE_S", 60.0)


@pytest.fixture(scope="module")
def flags_of(pet_shards: Path) -> Callable[..., list[str]]:
    """Flags of a sweep over so many seeds, in a folder's `runs`."""

    def make(folder: Path, seeds: int, epochs: int = EPOCHS) -> list[str]:
        values = {
            "data.shards": pet_shards, "data.image_size_px": 64, "model.width": 4, "train.epochs": epochs,
            "train.batch_size": 16, "train.mixed_precision": "no", "tracking.overlays": 2,
        }  # fmt: skip
        flags = ["--runs-dir", str(folder / "runs"), "--axis", "augment.policy=none", "--axis", "model.arch=unet"]
        flags += ["--axis", f"train.seed={','.join(map(str, range(seeds)))}"]
        return flags + [word for name, value in values.items() for word in ("--set", f"{name}={value}")]

    return make


@pytest.fixture(scope="module")
def numbers(
    flags_of: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, dict[str, float]]]:
    """Trial -> its result's metrics, of the sweeps as this machine runs them, each of them once."""
    known: dict[int, dict[str, dict[str, float]]] = {}

    def of(epochs: int) -> dict[str, dict[str, float]]:
        if epochs not in known:
            folder = tmp_path_factory.mktemp(f"here-{epochs}")
            # with two at a time a trial has one thread, as in a job of one core
            here = ["--cluster", "debug", "--max-parallel", str(len(os.sched_getaffinity(0)))]
            assert run_command(main, [*flags_of(folder, 1 if epochs > EPOCHS else SEEDS, epochs), *here]) == 0
            known[epochs] = results(load_sweep(folder / "runs" / "lab"))
        return known[epochs]

    return of


@contextmanager
def at(patch: pytest.MonkeyPatch, **site: Any) -> Iterator[Cluster]:
    """This process's own Slurm commands talk to a cluster that is made for the length of the block."""
    with rehearse(Site(gpus=0, **site)) as cluster, patch.context() as inside:
        for name, value in cluster.env.items():
            inside.setenv(name, value)
        yield cluster


def results(sweep: Sweep) -> dict[str, dict[str, float]]:
    """The results of the finished trials, without what only the clock decides."""
    found = {trial.id: trial.result() for trial in sweep.trials}
    return {
        name: {key: value for key, value in result.metrics.items() if not key.startswith("perf/")}
        for name, result in found.items()
        if result is not None
    }


def await_results(folder: Path, again: Callable[[], object] | None = None) -> Sweep:
    """Wait until all trials have ended; `again` is what is done meanwhile. A failed trial ends the wait."""
    sweep = load_sweep(folder / "runs" / "lab")
    deadline = time.monotonic() + ROOM_S
    while len(results(sweep)) < len(sweep.trials):
        assert time.monotonic() < deadline, [(row.status, row.note) for row in trial_statuses(sweep)]
        failed = [trial.state() for trial in sweep.trials if trial.state().status == "failed"]
        assert not failed
        if again is not None:
            again()
        time.sleep(1.0)
    return sweep


def assert_reported(folder: Path, wanted: dict[str, dict[str, float]], capsys: pytest.CaptureFixture[str]) -> None:
    """Each trial has the numbers it should have, status has all as done, and the page and its table have them too."""
    sweep = load_sweep(folder / "runs" / "lab")
    found = results(sweep)
    assert found == {name: wanted[name] for name in found}
    assert len(found) == len(sweep.trials)
    deadline = time.monotonic() + 30
    while {row.status for row in trial_statuses(sweep)} != {"done"}:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert run_command(status_main, [str(sweep.folder)]) == 0
    assert run_command(report_main, [str(sweep.folder)]) == 0
    assert (sweep.folder / "report.html").is_file()
    capsys.readouterr()
    assert run_command(report_main, [str(sweep.folder), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["trials"] == row["seeds"] == len(found)
    assert row["val_dice"] == pytest.approx(mean(metrics["val/dice"] for metrics in found.values()), abs=1e-6)


def sacctmgr(cluster: Cluster, *words: str) -> None:
    client.order(cluster.root, ["sacctmgr", "-i", *words])


def squeue(*words: str) -> list[str]:
    command = ["squeue", "--me", "--noheader", "--array", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.split()


def test_no_accounting_small_arrays_and_a_slurmctld_that_is_overloaded(
    flags_of: Callable[..., list[str]], numbers: Callable[..., dict[str, dict[str, float]]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """sacct fails, ended jobs are forgotten after seconds, each second answer is an error, and all take their time."""
    conf = {"MaxArraySize": "2", "MinJobAge": "2", "SchedulerParameters": "", "EnforcePartLimits": "NO"}
    answers = (
        Answer("squeue", 0.5, "every-2"),
        Answer("sbatch", 0.5, "every-2", words="Batch job submission failed: Socket timed out on send/recv operation"),
        Answer("scontrol", fails="every-2", words="slurm_load_ctl_conf error: Zero Bytes were transmitted or received"),
        Answer("sacct", fails="always", words="Slurm accounting storage is disabled"),
    )
    wanted = numbers(EPOCHS)
    with at(monkeypatch, nodes=1, cpus=2, conf=conf, answers=answers):
        flags = [*flags_of(tmp_path, 3), *SMALL, "--partition", "gpu"]
        assert run_command(main, flags) == 0
        jobs = {s.job_id.partition("_")[0] for s in load_sweep(tmp_path / "runs" / "lab").submissions().values()}
        assert len(jobs) == 2  # arrays of two tasks at most
        assert "trying again" in caplog.text
        assert run_command(main, flags) == 0  # asked again at once: nothing is submitted twice
        assert "0 to submit" in capsys.readouterr().out
        await_results(tmp_path)
        assert_reported(tmp_path, wanted, capsys)


def test_accounts_qos_wckeys_and_limits_that_are_enforced(
    accounting: None, flags_of: Callable[..., list[str]], numbers: Callable[..., dict[str, dict[str, float]]],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Partitions of other names that let in one account and one QOS, and one job of a user at a time in the queue."""
    conf = {"AccountingStorageEnforce": "associations,limits,qos,wckeys", "SelectTypeParameters": "CR_Core_Memory"}
    conf |= {"prod.AllowAccounts": "vision", "prod.AllowQos": "night", "prod.MaxTime": "30", "DefMemPerCPU": "100"}
    user, wanted = getpass.getuser(), numbers(EPOCHS)
    with at(monkeypatch, nodes=1, cpus=2, accounting=True, partitions=("debug", "prod"), conf=conf) as cluster:
        sacctmgr(cluster, "add", "qos", "night", "set", "MaxSubmitJobsPerUser=1")
        sacctmgr(cluster, "add", "account", "vision", "set", "qos=night")
        sacctmgr(cluster, "add", "user", f"name={user}", "account=vision", "wckey=pets")
        flags = [*flags_of(tmp_path, 2), *SMALL, "--partition", "prod", "--account", "vision", "--qos", "night"]
        assert run_command(main, [*flags, "--wckey", "pets", "--timeout-min", "60"]) == 2  # more than MaxTime
        assert run_command(main, [*flags, "--wckey", "rodents"]) == 2
        assert "--wckey" in capsys.readouterr().err
        flags += ["--wckey", "pets"]
        assert run_command(main, flags) == 75
        assert "1 of 2 trials are left as planned" in capsys.readouterr().out
        assert squeue("--format=%a/%q/%w/%P") == ["vision/night/pets/prod"]
        codes = []
        await_results(tmp_path, again=lambda: codes.append(run_command(main, flags)))
        assert set(codes) <= {0, 75}
        assert_reported(tmp_path, wanted, capsys)


def test_whole_nodes_only_and_no_requeue(
    flags_of: Callable[..., list[str]], numbers: Callable[..., dict[str, dict[str, float]]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A job has a node to itself, and is not started again when it dies: the same command again submits it."""
    conf = {"SelectType": "select/linear", "SelectTypeParameters": "CR_Memory", "JobRequeue": "0", "MinJobAge": "2"}
    conf |= {"PreemptType": "preempt/none", "PreemptMode": "OFF", "low.PreemptMode": ""}
    wanted = numbers(EPOCHS)
    with at(monkeypatch, nodes=2, cpus=2, conf=conf) as cluster:
        flags = [*flags_of(tmp_path, 2), *SMALL, "--partition", "gpu", "--no-requeue"]
        assert run_command(main, flags) == 0
        broken: list[str] = []

        def go_on() -> None:
            running = squeue("--states=RUNNING", "--format=%N")
            if not broken and running:
                broken.append(running[0])
                cluster.break_node(running[0])
                cluster.heal_node(running[0])
            assert run_command(main, flags) == 0

        sweep = await_results(tmp_path, again=go_on)
        assert broken
        assert len((sweep.folder / "submissions.jsonl").read_text().splitlines()) == 6  # three jobs, planned and noted
        assert_reported(tmp_path, wanted, capsys)


@pytest.mark.long
def test_a_preempted_trial_in_a_partition_with_a_long_grace(
    flags_of: Callable[..., list[str]], numbers: Callable[..., dict[str, dict[str, float]]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Preemption is by TERM only, and leaves five minutes; the trial gives its node back in seconds and comes again."""
    conf = {"scavenge.GraceTime": "300", "SlurmctldParameters": "", "KillWait": "30"}
    epochs = 40
    wanted = numbers(epochs)
    with at(monkeypatch, nodes=1, cpus=2, partitions=("prod", "scavenge"), conf=conf):
        flags = [*flags_of(tmp_path, 1, epochs), *SMALL, "--partition", "scavenge"]
        assert run_command(main, flags) == 0
        (trial,) = load_sweep(tmp_path / "runs" / "lab").trials
        deadline = time.monotonic() + ROOM_S
        while len(trial.metrics()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first = ["sbatch", "--parsable", "--partition=prod", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
        urgent = subprocess.run(first, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
        begin = time.monotonic()
        while not squeue(f"--jobs={urgent}", "--states=RUNNING,COMPLETED", "--format=%i"):
            assert time.monotonic() - begin < 60, "the node is not given back"
            time.sleep(0.2)
        await_results(tmp_path)
        assert trial.state().restarts == 1
        assert_reported(tmp_path, wanted, capsys)


def test_several_nodes_with_features_and_sbatch_defaults_of_the_site(
    flags_of: Callable[..., list[str]], numbers: Callable[..., dict[str, dict[str, float]]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """slurmctld restarts while trials run, sbatch's answer is lost, and the environment has defaults of its own."""
    conf = {"nodes.Features": "a100,ib", "SelectTypeParameters": "CR_Core_Memory", "MaxMemPerNode": "4096"}
    conf |= {"PriorityType": "priority/multifactor", "SchedulerType": "sched/builtin"}
    answers = (Answer("sbatch", fails="every-2", kind="lose"),)
    wanted = numbers(EPOCHS)
    with at(monkeypatch, nodes=2, cpus=1, partitions=("batch",), conf=conf, answers=answers) as cluster:
        monkeypatch.setenv("SQUEUE_FORMAT", "%all")
        monkeypatch.setenv("SACCT_FORMAT", "jobid")
        monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
        monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
        flags = [
            *flags_of(tmp_path, 2),
            *SMALL,
            "--partition",
            "batch",
            "--constraint",
            "a100&ib",
            "--max-parallel",
            "2",
        ]
        assert run_command(main, [*flags, "--mem-gb", "8"]) == 2  # more than MaxMemPerNode
        assert run_command(main, flags) == 0
        cluster.break_node("slurmctld")
        cluster.heal_node("slurmctld")
        await_results(tmp_path)
        assert len({s.job_id for s in load_sweep(tmp_path / "runs" / "lab").submissions().values()}) == 2
        assert_reported(tmp_path, wanted, capsys)
