"""Rehearsal clusters that are configured unlike the default one, and commands that answer late or fail."""

from __future__ import annotations

import getpass
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.rehearsal import __main__ as rehearsal
from slurm.rehearsal import client, daemons
from slurm.rehearsal import cluster as rehearsal_cluster
from slurm.rehearsal.answers import BUSY, Answer, parse_answers, path_with, path_without, render_script
from slurm.rehearsal.cluster import rehearse
from slurm.rehearsal.conf import render_slurm_conf, render_slurmdbd_conf
from slurm.rehearsal.nodes import is_running
from slurm.rehearsal.settings import Site, merged, parse_conf
from tests.slurm.rehearsal.test_rehearsal import blueprint


def test_settings_take_the_place_of_the_rehearsals_own():
    conf = parse_conf(["maxarraysize=10", "low.GraceTime=300", "nodes.Features=a100", "EnforcePartLimits=", "X=a=b"])
    lines = render_slurm_conf(blueprint(conf=conf)).splitlines()
    assert "maxarraysize=10" in lines
    assert not [line for line in lines if line.startswith(("MaxArraySize", "EnforcePartLimits"))]
    assert "X=a=b" in lines
    low, nodes = (
        [line.split() for line in lines if line.startswith(name)] for name in ("PartitionName=low", "NodeName=")
    )
    assert "GraceTime=300" in low[0]
    assert "GraceTime=15" not in low[0]
    assert all("Features=a100" in words for words in nodes)
    assert len(nodes) == 2


def test_the_first_partition_is_the_default_one_whatever_its_name():
    lines = render_slurm_conf(blueprint(partitions=("prod", "scavenge"), conf={"scavenge.MaxTime": "60"})).splitlines()
    prod, scavenge = (line.split() for line in lines if line.startswith("PartitionName="))
    assert prod[0] == "PartitionName=prod"
    assert {"Default=YES", "PreemptMode=OFF", "MaxTime=INFINITE"} <= set(prod)
    assert scavenge[0] == "PartitionName=scavenge"
    assert {"PreemptMode=REQUEUE", "MaxTime=60"} <= set(scavenge)


@pytest.mark.parametrize("word", ["AccountingStorageEnforce=limits,wckeys", "TrackWCKey=yes"])
def test_the_database_is_told_of_wckeys_too(word: str):
    assert "TrackWCKey=yes" in render_slurmdbd_conf(blueprint(conf=parse_conf([word]))).splitlines()
    assert "TrackWCKey=no" in render_slurmdbd_conf(blueprint()).splitlines()


def test_merging_ignores_case_and_can_take_away():
    assert merged(["A=1", "B=2"], {"a": "3", "C": "4", "b": ""}) == ["a=3", "C=4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MaxArraySize"], "--conf MaxArraySize: must be KEY=VALUE"),
        (["=3"], "must be KEY=VALUE"),
        (["a.b.c=3"], "must be KEY=VALUE"),
        (["A=1", "a=2"], "--conf a is given twice"),
        (["A=1\nB=2"], "is one line"),
        (["slurmuser=me"], "the rehearsal sets slurmuser itself.*--partitions"),
        (["nodes.CPUs=3"], "the rehearsal sets CPUs itself"),
        (["fast.MaxTime=3"], "no partition fast: choose one of gpu, low, or nodes"),
    ],
)
def test_invalid_settings_are_refused(words: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        blueprint(conf=parse_conf(words))


@pytest.mark.parametrize("names", [(), ("a", "a"), ("nodes",), ("a b",), ("default",)])
def test_invalid_partitions_are_refused(names: tuple[str, ...]):
    with pytest.raises(ValueError, match="--partitions"):
        blueprint(partitions=names)


def test_answers_are_read_from_flags():
    slow, fail, lose = ["squeue=0.5", "sbatch=2"], ["sbatch=first-2:Connection refused: no"], ["scancel=always"]
    assert parse_answers(slow, fail, lose) == (
        Answer("sbatch", 2, "first-2", "fail", "Connection refused: no"),
        Answer("scancel", 0, "always", "lose", BUSY),
        Answer("squeue", 0.5),
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (([], ["squeue"], []), "--fail squeue: must be COMMAND=WHEN"),
        (([], ["squeue=often"], []), "--fail squeue=often: say when"),
        (([], [], ["squeue=first-0"]), "--lose squeue=first-0: say when"),
        ((["squeue=soon"], [], []), "--slow squeue=soon: must be seconds"),
        ((["squeue=-1"], [], []), "--slow squeue=-1: must be from 0"),
        (([], ["ls=always"], []), "ls: no command of Slurm's"),
        (([], ["squeue=always"], ["squeue=first-1"]), "fails in another way already"),
    ],
)
def test_invalid_answers_are_refused(flags: tuple[list[str], list[str], list[str]], message: str):
    with pytest.raises(ValueError, match=message):
        parse_answers(*flags)


@pytest.mark.parametrize(
    ("answer", "codes", "done"),
    [
        (Answer("sbatch", fails="first-2"), [1, 1, 0, 0], ["3", "4"]),
        (Answer("sbatch", fails="every-2"), [0, 1, 0, 1], ["1", "3"]),
        (Answer("sbatch", fails="always"), [1, 1, 1, 1], []),
        (Answer("sbatch", fails="first-1", kind="lose"), [1, 0, 0, 0], ["1", "2", "3", "4"]),
        (Answer("sbatch", delay_s=0.01), [0, 0, 0, 0], ["1", "2", "3", "4"]),
    ],
)
def test_a_command_that_fails_now_and_then(tmp_path: Path, answer: Answer, codes: list[int], done: list[str]):
    """What it does, what it says, and how it ends, with a stand-in for sbatch that writes down its arguments."""
    real, calls, script = tmp_path / "it's real", tmp_path / "calls", tmp_path / "sbatch"
    real.write_text(f'#!/bin/sh\ncat >>{shlex.quote(str(tmp_path / "done"))}\necho "job $1"\n')
    script.write_text(render_script(answer, str(real), calls))
    for path in (real, script):
        path.chmod(0o755)
    seen = []
    for number in range(1, 5):
        ran = subprocess.run([script, "a b"], input=f"{number}\n", capture_output=True, text=True, check=False)
        seen.append(ran.returncode)
        assert (ran.stdout, ran.stderr) == (
            ("job a b\n", "") if ran.returncode == 0 else ("", f"sbatch: error: {BUSY}\n")
        )
    assert seen == codes
    assert ((tmp_path / "done").read_text().split() if (tmp_path / "done").exists() else []) == done


def test_the_scripts_come_first_on_path_and_once():
    path = path_with(Path("/r"), f"/bin{os.pathsep}/r/bin{os.pathsep}/usr/bin")
    assert path.split(os.pathsep) == ["/r/bin", "/bin", "/usr/bin"]
    assert path_without(Path("/r"), path).split(os.pathsep) == ["/bin", "/usr/bin"]


@pytest.mark.slurm
def test_slurm_says_what_it_does_not_take_before_a_daemon_starts(slurm_daemons: None):
    for conf, message in (
        ({"MaxArraySise": "10"}, "unrecognized key: MaxArraySise"),
        ({"MaxArraySize": "ten"}, r"MaxArraySize value \(ten\) is not a valid number"),
        ({"low.GraceTimes": "10"}, "unrecognized key: GraceTimes"),
    ):
        with (
            pytest.raises(ValueError, match=f"Slurm does not take this configuration: .*{message}"),
            rehearse(Site(conf=conf)),
        ):
            pass


@pytest.mark.slurm
def test_a_cluster_of_another_kind(slurm_daemons: None, call: Callable[..., str]):
    conf = {"MaxArraySize": "10", "scavenge.GraceTime": "300", "JobRequeue": "0", "nodes.Features": "a100"}
    conf |= {"SelectType": "select/linear", "SelectTypeParameters": "CR_Memory"}
    with rehearse(Site(nodes=1, gpus=0, partitions=("prod", "scavenge"), conf=conf)) as cluster:
        shown = {line.partition("=")[0].strip(): line.partition("=")[2].strip() for line in
                 call(cluster, "scontrol", "show", "config").splitlines()}  # fmt: skip
        assert (shown["MaxArraySize"], shown["JobRequeue"], shown["SelectType"]) == ("10", "0", "select/linear")
        assert call(cluster, "sinfo", "-h", "-o", "%P %f").splitlines() == ["prod* a100", "scavenge a100"]
        assert "GraceTime=300 " in call(cluster, "scontrol", "show", "partition", "scavenge", "-o")

        cluster.break_node("slurmctld")
        assert is_running(cluster.root)
        assert "slurmctld" not in daemons.recorded(cluster.root)
        with pytest.raises(ValueError, match="slurmctld is broken already"):
            cluster.break_node("slurmctld")
        cluster.heal_node("slurmctld")
        assert call(cluster, "sinfo", "-h", "-o", "%P").splitlines() == ["prod*", "scavenge"]

        cluster.disturb(Answer("squeue", fails="first-1", words="busy"))
        with pytest.raises(subprocess.CalledProcessError) as caught:
            call(cluster, "squeue")
        assert caught.value.stderr == "squeue: error: busy\n"
        assert call(cluster, "squeue", "-h") == ""
        cluster.disturb(Answer("sbatch", fails="always", kind="lose"))
        with pytest.raises(subprocess.CalledProcessError, match="sbatch"):
            call(cluster, "sbatch", "--hold", "--output=/dev/null", "--wrap=true")
        cluster.disturb()
        assert len(call(cluster, "squeue", "-h").splitlines()) == 1
        call(cluster, "sbatch", "--hold", "--output=/dev/null", "--wrap=true")


@pytest.mark.slow
@pytest.mark.slurm
def test_a_cluster_that_enforces_wckeys(accounting: None, call: Callable[..., str]):
    conf = {"AccountingStorageEnforce": "limits,wckeys"}
    with rehearse(Site(nodes=1, gpus=0, accounting=True, conf=conf)) as cluster:
        submit = ("sbatch", "--parsable", "--output=/dev/null", "--wrap=true")
        with pytest.raises(subprocess.CalledProcessError) as caught:
            call(cluster, *submit, "--wckey=submitit")
        assert "Invalid wckey specification" in caught.value.stderr
        client.order(cluster.root, ["sacctmgr", "-i", "add", "user", f"name={getpass.getuser()}", "wckey=thesis"])
        assert call(cluster, *submit, "--wckey=thesis").isdecimal()


@pytest.mark.slurm
def test_the_flags_and_a_cluster_that_runs_already(slurm_daemons: None, capfd: pytest.CaptureFixture[str]):
    root = Path("/tmp") / f"rehearsal-{os.getpid()}-flags"  # munge needs a short path
    flags = ["--root", str(root)]
    try:
        with pytest.raises(ValueError, match="no cluster runs in"):
            rehearsal.main(["disturb", *flags])
        changed = ["--conf", "MaxArraySize=7", "--partitions", "day", "night", "--fail", "squeue=always:no answer"]
        assert rehearsal.main(["start", *flags, "--nodes", "1", "--gpus", "0", *changed]) == 0
        capfd.readouterr()
        assert rehearsal.main(["run", *flags, "--", "squeue"]) == 1
        assert capfd.readouterr().err == "squeue: error: no answer\n"
        assert rehearsal.main(["env", *flags]) == 0
        script = f"{capfd.readouterr().out}\nsqueue || sinfo -h -o %P"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=True)
        assert (done.stdout.split(), done.stderr) == (["day*", "night"], "squeue: error: no answer\n")
        assert rehearsal.main(["disturb", *flags]) == 0
        assert rehearsal.main(["run", *flags, "--", "squeue", "-h"]) == 0
        with pytest.raises(ValueError, match="is configured as it is"):
            rehearsal.main(["run", *flags, "--conf", "MaxArraySize=8", "--", "squeue"])
    finally:
        rehearsal_cluster.destroy(root)
