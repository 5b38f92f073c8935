"""Start and stop a rehearsal cluster: the daemons in their order, and all of them ended again."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm import rehearsal_daemons as daemons
from slurm.rehearsal_conf import Plan, free_ports, render_gres_conf, render_hosts, render_slurm_conf

APT_COMMAND = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins"
BINARIES = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel")
FOLDERS = ("etc", "state", "spool", "run", "log", "munge", "dev")
START_TIMEOUT_S = 30.0
STATE_FILE = "cluster.json"  # written first and read by stop: it marks the folder as ours

# The first process of a node's namespaces, and their init: $1 name, $2 hosts file, $3 slurm.conf.
NODE_SCRIPT = 'hostname "$1" && mount --bind "$2" /etc/hosts && { slurmd -D -f "$3" -N "$1" & wait; }'


@dataclass(frozen=True)
class Cluster:
    """A running cluster: pass `env` to the subprocesses that shall see it."""

    root: Path
    nodes: tuple[str, ...]
    env: dict[str, str]


def missing_binaries() -> list[str]:
    return [name for name in BINARIES if shutil.which(name, path=_daemon_path()) is None]


def start(root: Path, *, nodes: int = 2, cpus: int = 4, gpus: int = 2, owner: int | None = None) -> Cluster:
    """Start a cluster in `root` and wait until every node is idle.

    With `owner`, a pid, it is stopped and its folder removed when that process ends, however it ends.
    Raises ValueError if Slurm is not installed, a cluster runs there already, or the daemons do not come up.
    """
    missing = missing_binaries()
    if missing:
        raise ValueError(f"Slurm is not installed (no {', '.join(missing)}): {APT_COMMAND}")
    root = root.absolute()
    plan = Plan(
        root=root,
        nodes=nodes,
        cpus=cpus,
        gpus=gpus,
        mem_mb=64_000,
        namespaces=can_unshare(),
        ports=free_ports(nodes + 1),
        host=socket.gethostname().split(".")[0],
        user=getpass.getuser(),
    )
    _prepare(plan)
    processes = []
    try:
        if owner is not None:
            processes.append(_spawn_watch(root, owner))
        processes += _spawn_daemons(plan)
        _await_idle(plan)
    except BaseException:
        stop(root)
        _reap(processes)
        raise
    _children[root] = processes
    return Cluster(root=root, nodes=plan.node_names, env=client_env(root))


def stop(root: Path) -> None:
    """End every process of the cluster in `root`; nothing happens if there is none."""
    root = root.absolute()
    if not (root / STATE_FILE).is_file():
        return
    namespaces = json.loads((root / STATE_FILE).read_text())["namespaces"]
    if os.getpid() not in daemons.recorded(root, "watch").values():
        daemons.end(root, "watch")
    if not namespaces and daemons.recorded(root, "slurmctld"):
        _cancel_all(root)  # or the jobs would outlive their slurmd
    daemons.end(root, "slurmctld")
    # unshare ignores SIGTERM; its SIGKILL ends all that runs on the node
    daemons.end(root, "node.*", signal.SIGKILL if namespaces else signal.SIGTERM)
    daemons.end(root, "munged")
    _reap(_children.pop(root, []))


def destroy(root: Path) -> None:
    """Stop the cluster in `root` and remove its folder."""
    stop(root)
    if (root / STATE_FILE).is_file():
        shutil.rmtree(root, ignore_errors=True)


def client_env(root: Path) -> dict[str, str]:
    """This process's environment, pointed at the cluster in `root`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    return env | cluster_variables(root)


def is_running(root: Path) -> bool:
    return bool(daemons.recorded(root, "slurmctld"))


def can_unshare() -> bool:
    """Whether nodes get namespaces of their own: for root, where the machine (a container, say) allows it."""
    if os.geteuid() != 0:
        return False
    probe = ["unshare", "--pid", "--fork", "--uts", "--mount", "--mount-proc", "true"]
    try:
        return subprocess.run(probe, capture_output=True, timeout=10, check=False).returncode == 0
    except OSError:
        return False


# Popen objects of this process's clusters, kept so that their children can be waited for.
_children: dict[Path, list[subprocess.Popen[bytes]]] = {}


def cluster_variables(root: Path) -> dict[str, str]:
    # The nodes' addresses are all on the loopback interface, which gloo does not choose by itself.
    return {"SLURM_CONF": str(root.absolute() / "etc" / "slurm.conf"), "GLOO_SOCKET_IFNAME": "lo"}


def _daemon_path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def _prepare(plan: Plan) -> None:
    """Write the folder: configuration, munge key, device files. Raises ValueError if it is in use."""
    root = plan.root
    if is_running(root):
        raise ValueError(f"a cluster runs in {root} already: python -m slurm.rehearsal stop --root {root}")
    root.mkdir(parents=True, exist_ok=True)
    if root.stat().st_uid != os.geteuid():
        raise ValueError(f"{root} belongs to another user: choose a folder with --root")
    if any(root.iterdir()) and not (root / STATE_FILE).is_file():
        raise ValueError(f"{root} is neither empty nor a rehearsal cluster: choose a folder with --root")
    root.chmod(0o755)
    for folder in FOLDERS:
        shutil.rmtree(root / folder, ignore_errors=True)
        (root / folder).mkdir(mode=0o755)
    (root / STATE_FILE).write_text(json.dumps({"namespaces": plan.namespaces, "nodes": plan.node_names}))
    plan.conf.write_text(render_slurm_conf(plan))
    (root / "etc" / "gres.conf").write_text(render_gres_conf(plan))
    (root / "etc" / "plugstack.conf").touch()
    (root / "etc" / "hosts").write_text(render_hosts(plan, Path("/etc/hosts").read_text()))
    for node in plan.node_names:
        (root / "spool" / node).mkdir()
        for device in plan.gpu_files(node):
            device.symlink_to("/dev/null")
    key = root / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))


def _spawn_watch(root: Path, owner: int) -> subprocess.Popen[bytes]:
    ticks = daemons.start_ticks(owner)
    if ticks is None:
        raise ValueError(f"owner {owner} does not run")
    command = [sys.executable, "-m", "slurm.rehearsal_watch", str(root), str(owner), str(ticks)]
    return daemons.spawn(root, "watch", command, os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])})


def _spawn_daemons(plan: Plan) -> list[subprocess.Popen[bytes]]:
    root, conf = plan.root, str(plan.conf)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))} | {
        "PATH": _daemon_path(),
        "SLURM_CONF": conf,
    }
    munged = ["munged", "--foreground", "--force", f"--socket={plan.socket}", f"--key-file={root}/munge/key"]
    munged += [f"--pid-file={root}/run/munged.own", f"--seed-file={root}/munge/seed"]
    processes = [daemons.spawn(root, "munged", munged, env)]
    if not daemons.wait_until(plan.socket.exists, START_TIMEOUT_S):
        raise ValueError(f"munged did not start:\n{_log_tails(root)}")
    processes.append(daemons.spawn(root, "slurmctld", ["slurmctld", "-D", "-f", conf, "-i"], env))
    for node in plan.node_names:
        command = ["slurmd", "-D", "-f", conf, "-N", node]
        if plan.namespaces:
            command = ["unshare", "--pid", "--fork", "--kill-child", "--uts", "--mount", "--mount-proc"]
            command += ["sh", "-c", NODE_SCRIPT, "node", node, str(root / "etc" / "hosts"), conf]
        processes.append(daemons.spawn(root, f"node.{node}", command, env))
    return processes


def _await_idle(plan: Plan) -> None:
    def all_idle() -> bool:
        states = _client(plan.root, ["sinfo", "-h", "-N", "-p", "gpu", "-o", "%N %T"]).split("\n")
        return sorted(states) == sorted(f"{node} idle" for node in plan.node_names)

    if not daemons.wait_until(all_idle, START_TIMEOUT_S, poll_s=0.05):
        raise ValueError(f"the nodes did not become idle:\n{_log_tails(plan.root)}")


def _client(root: Path, command: Sequence[str]) -> str:
    """The answer of a Slurm client command, empty when slurmctld does not answer."""
    try:
        done = subprocess.run(
            list(command), env=client_env(root), capture_output=True, text=True, timeout=10, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cancel_all(root: Path) -> None:
    _client(root, ["scancel", f"--user={getpass.getuser()}"])
    daemons.wait_until(lambda: not _client(root, ["squeue", "-h", "-o", "%i"]), 10.0, poll_s=0.1)


def _reap(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


def _log_tails(root: Path, lines: int = 8) -> str:
    logs = sorted((root / "log").glob("*"))
    tails = [(log.name, log.read_text(errors="replace").splitlines()[-lines:]) for log in logs]
    return "\n".join(f"{name}: {line}" for name, tail in tails for line in tail)
