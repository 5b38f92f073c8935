"""What is said beside sbatch's refusal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm import refusals
from slurm.executor import submit
from slurm.refusals import advice_on
from slurm.rehearsal.cluster import Cluster, rehearse
from slurm.rehearsal.settings import Site
from slurm.request import Request
from slurm.resources import Resources

ACCOUNT = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("Invalid generic resource (gres) specification", "--gpus 0 runs on the CPU; `python jobs/doctor.py --only"),
        (ACCOUNT, "give another --account"),
        ("Invalid qos specification", "give another --qos"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "give a lower --timeout-min"),
        ("Invalid feature specification", "give another --constraint"),
        ("Invalid node name specified", "give another --exclude"),
        ("Job dependency problem", "give another --dependency"),
        (
            "Requested node configuration is not available",
            "ask for less (--gpus 0 runs on the CPU); `python jobs/doctor",
        ),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", "ask for less, or"),
        ("Invalid partition name specified", "partitions here: gpu, low"),
    ],
)
def test_advice_follows_the_complaint(words: str, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals.cluster, "partitions", lambda: ["gpu", "low"])
    said = advice_on(words, Resources(partition="a b"))
    assert advice in said
    assert ("partitions here" in said) is words.startswith("Invalid partition")
    if "doctor" in said:
        assert "`python jobs/doctor.py --only partition --partition 'a b'`, with the same flags" in said


def test_an_unknown_complaint_gets_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert advice_on("I/O error writing script/environment to file", Resources()) == ""
    assert "--gpus 0" not in advice_on("Requested node configuration is not available", Resources(gpus_per_node=0))


@pytest.fixture(scope="module")
def without_gpus(slurm_daemons: None) -> Iterator[Cluster]:
    with rehearse(Site(nodes=1, cpus=2, gpus=0, conf={"GresTypes": ""})) as cluster:
        yield cluster


@pytest.mark.slurm
def test_a_cluster_without_gpus_points_at_the_cpu_and_the_doctor(
    without_gpus: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in without_gpus.env.items():
        monkeypatch.setenv(name, value)
    asked = Resources(cpus_per_task=1, mem_gb=1)
    with pytest.raises(ValueError, match=r"Invalid generic resource .*--gpus 0 runs on the CPU.*jobs/doctor\.py"):
        submit(abs, [1, 2], "slurm", Request(tmp_path, asked, "t", 2))


@pytest.mark.slurm
def test_an_unknown_account_lists_no_partitions(
    limiting_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in limiting_cluster.env.items():
        monkeypatch.setenv(name, value)
    asked = Resources(gpus_per_node=0, cpus_per_task=1, mem_gb=1, account="nobodys")
    with pytest.raises(ValueError, match=r"Invalid account.*another --account.*sacctmgr show assoc") as caught:
        submit(abs, [1], "slurm", Request(tmp_path, asked, "t", 1))
    assert "partitions here" not in str(caught.value)


DOCTOR = "`python jobs/doctor.py --only partition`, with the same flags, compares them with what the nodes have"


@pytest.mark.parametrize(
    ("words", "gpus", "advice"),
    [
        (
            "sbatch: fatal: Could not establish a configuration source",
            1,
            "no Slurm is set up on this machine: go to a login node of the cluster, or add --cluster local",
        ),
        (
            "Invalid wckey specification",
            1,
            "give one of your own by --wckey: `sacctmgr show wckey user=$USER` lists them",
        ),
        ("Memory specification can not be satisfied", 1, f"ask for less (--gpus 0 runs on the CPU); {DOCTOR}"),
        ("Memory specification can not be satisfied", 0, f"ask for less; {DOCTOR}"),
        ("Node count specification invalid", 0, f"ask for less; {DOCTOR}"),
        ("CPU count per node can not be satisfied", 0, f"ask for less; {DOCTOR}"),
        ("Task count specification invalid", 0, f"ask for less; {DOCTOR}"),
        ("Requested partition configuration not available now", 1, "partitions here: none"),
    ],
)  # fmt: skip
def test_the_whole_advice(words: str, gpus: int, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals.cluster, "partitions", list)
    assert advice_on(words, Resources(gpus_per_node=gpus)) == advice


def test_slurm_is_asked_for_its_partitions_only_where_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(refusals.cluster, "partitions", lambda: asked.append("sinfo") or [])
    advice_on(ACCOUNT, Resources())
    assert asked == []
    advice_on("Invalid partition name specified", Resources())
    assert asked == ["sinfo"]
