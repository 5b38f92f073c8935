from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slurm.rehearsal import __main__ as rehearsal
from slurm.rehearsal import client, daemons
from slurm.rehearsal import cluster as rehearsal_cluster
from slurm.rehearsal.cluster import rehearse
from slurm.rehearsal.conf import Blueprint, free_ports, render_gres_conf, render_hosts, render_slurm_conf
from slurm.rehearsal.settings import Site

REPOSITORY = Path(__file__).parents[3]
needs_namespaces = pytest.mark.skipif(
    os.environ.get("CI") != "true" and not rehearsal_cluster.can_unshare(),
    reason="no namespaces: not root, or not allowed",
)


def blueprint(root: str = "/r", ports: tuple[int, ...] = (1, 2, 3), namespaces: bool = True, **site: Any) -> Blueprint:
    return Blueprint(Path(root), Site(**site), namespaces, ports, host="here", user="me")


def test_configuration_texts():
    lines = render_slurm_conf(blueprint()).splitlines()
    assert (
        "NodeName=node2 NodeHostname=node2 NodeAddr=127.0.0.12 Port=3 CPUs=4 RealMemory=64000 "
        "Gres=gpu:fake:2 State=UNKNOWN"
    ) in lines
    assert [line.split()[0] for line in lines if line.startswith("PartitionName=")] == [
        "PartitionName=gpu",
        "PartitionName=low",
    ]
    assert render_gres_conf(blueprint(nodes=1, ports=(1, 2), gpus=1)) == (
        "NodeName=node1 Name=gpu Type=fake File=/r/dev/node1-gpu0\n"
    )
    assert render_hosts(blueprint(), "127.0.0.1 localhost\n").splitlines()[1:] == [
        "127.0.0.11 node1",
        "127.0.0.12 node2",
    ]


def test_without_namespaces_nodes_are_named_by_address():
    assert blueprint(namespaces=False).node_names == ("127.0.0.11", "127.0.0.12")
    assert "NodeName=127.0.0.11 NodeHostname=here" in render_slurm_conf(blueprint(namespaces=False))


def test_without_gpus_there_is_no_gres():
    assert "Gres=gpu" not in render_slurm_conf(blueprint(gpus=0))
    assert render_gres_conf(blueprint(gpus=0)) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": 0}, "nodes=0"),
        ({"cpus": 0}, "cpus=0"),
        ({"root": "/" + "r" * 100}, "too long for a Unix socket"),
    ],
)
def test_impossible_plans(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        blueprint(**changes)


def test_free_ports_are_outside_the_range_of_outgoing_connections():
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(10_000 <= port < 30_000 for port in ports)


def test_a_pid_that_names_another_process_is_left_alone(tmp_path: Path):
    (tmp_path / "run").mkdir()
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        ticks = daemons.start_ticks(bystander.pid)
        assert ticks is not None
        (tmp_path / "run" / "munged.pid").write_text(f"{bystander.pid} {ticks - 1}\n")
        daemons.end(tmp_path, "munged", signal.SIGKILL)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_without_slurm_the_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "daemon_path", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"no munged, slurmctld, .*: apt-get install .*slurmctld"):
        rehearsal_cluster.start(tmp_path / "root", Site())


def test_a_folder_of_somebody_elses_files_is_refused(tmp_path: Path, slurm_daemons: None):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="neither empty nor a rehearsal cluster"):
        rehearsal_cluster.start(tmp_path, Site())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slurm
@needs_namespaces
def test_nodes_have_hostnames_and_gpus(rehearsal_cluster):
    script = "hostname; echo $CUDA_VISIBLE_DEVICES; getent hosts node2"
    command = ["srun", "--nodes=2", "--gpus-per-node=2", "--label", "sh", "-c", script]
    done = subprocess.run(command, env=rehearsal_cluster.env, check=True, capture_output=True, text=True, timeout=60)
    words = sorted(" ".join(line.split()) for line in done.stdout.splitlines())
    assert words == ["0: 0,1", "0: 127.0.0.12 node2", "0: node1", "1: 0,1", "1: 127.0.0.12 node2", "1: node2"]


@pytest.mark.slurm
@pytest.mark.parametrize("namespaces", [pytest.param(True, marks=needs_namespaces), False])
def test_stop_ends_every_process(
    slurm_daemons: None,
    monkeypatch: pytest.MonkeyPatch,
    namespaces: bool,
    processes_of: Callable[[Path], list[int]],
    wait_for: Callable[..., None],
):
    monkeypatch.setattr(rehearsal_cluster, "can_unshare", lambda: namespaces)
    with rehearse(Site(nodes=1, gpus=0)) as cluster:
        sleeper = ["sbatch", "--output=/dev/null", "--wrap", "trap '' TERM; sleep 600"]
        subprocess.run(sleeper, env=cluster.env, check=True, capture_output=True, timeout=30)
        running = ["squeue", "--noheader", "--states=RUNNING"]
        wait_for(lambda: subprocess.run(running, env=cluster.env, capture_output=True, timeout=30).stdout)
        assert len(processes_of(cluster.root)) > 4  # watch, munged, slurmctld, slurmd, and the job's own
    assert processes_of(cluster.root) == []
    assert not cluster.root.exists()


@pytest.mark.slurm
def test_the_cluster_and_a_healed_node_end_with_the_owner(
    slurm_daemons: None, processes_of: Callable[[Path], list[int]], wait_for: Callable[..., None]
):
    script = (
        "import sys, time\n"
        "from slurm.rehearsal.cluster import rehearse\n"
        "from slurm.rehearsal.settings import Site\n"
        "with rehearse(Site(nodes=1, gpus=0)) as cluster:\n"
        "    cluster.break_node(cluster.nodes[0])\n"
        "    cluster.heal_node(cluster.nodes[0])\n"
        "    sys.stdout.write(f'{cluster.root}\\n')\n"
        "    sys.stdout.flush()\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        root = Path(owner.stdout.readline().strip())
        assert processes_of(root)
        owner.kill()
    wait_for(lambda: not processes_of(root) and not root.exists())


@pytest.mark.slurm
def test_the_command(slurm_daemons: None, processes_of: Callable[[Path], list[int]], capfd: pytest.CaptureFixture[str]):
    root = Path("/tmp") / f"rehearsal-{os.getpid()}-{time.monotonic_ns()}"  # munge needs a short path
    flags = ["--root", str(root)]
    try:
        for verb in (["env"], ["break", "node1"], ["heal", "node1"]):
            with pytest.raises(ValueError, match=f"no cluster runs in {root}: .* start"):
                rehearsal.main([*verb, *flags])
        assert rehearsal.main(["start", *flags, "--nodes", "1", "--gpus", "0"]) == 0
        with pytest.raises(ValueError, match=r"runs in .* already"):
            rehearsal.main(["start", *flags])
        capfd.readouterr()
        assert rehearsal.main(["env", *flags]) == 0
        assert f"export SLURM_CONF={root}/etc/slurm.conf\n" in capfd.readouterr().out
        assert rehearsal.main(["run", *flags, "--", "srun", "sh", "-c", "exit 7"]) == 7
        node = json.loads((root / "cluster.json").read_text())["nodes"][0]
        assert rehearsal.main(["break", node, "--silent", *flags]) == 0
        with pytest.raises(ValueError, match=f"{node} is broken already: .* heal {node}"):
            rehearsal.main(["break", node, *flags])
        assert rehearsal.main(["heal", node, *flags]) == 0
        with pytest.raises(ValueError, match=f"{node} is whole already: .* break {node}"):
            rehearsal.main(["heal", node, *flags])
        with pytest.raises(ValueError, match=f"no node attic in the cluster in .*: choose one of {node}"):
            rehearsal.main(["break", "attic", *flags])
        assert rehearsal.main(["stop", *flags]) == 0
        assert processes_of(root) == []
        assert rehearsal.main(["stop", *flags]) == 0
    finally:
        rehearsal_cluster.destroy(root)


def test_run_needs_a_command():
    with pytest.raises(ValueError, match="nothing to run"):
        rehearsal.main(["run"])
    with pytest.raises(ValueError, match="goes with run only"):
        rehearsal.main(["stop", "--", "sinfo"])
