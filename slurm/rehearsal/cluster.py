"""Start and stop a rehearsal cluster: the daemons in their order, and all of them ended again."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.command import typed
from slurm.patience import one_line
from slurm.rehearsal import client, daemons
from slurm.rehearsal.accounting import FOLDER as ACCOUNTING_FOLDER
from slurm.rehearsal.accounting import add_user, end_accounting, require_installed, start_accounting
from slurm.rehearsal.answers import FOLDER as ANSWERS_FOLDER
from slurm.rehearsal.answers import Answer, set_answers
from slurm.rehearsal.client import client_env
from slurm.rehearsal.conf import Blueprint, free_ports, render_gres_conf, render_hosts, render_slurm_conf
from slurm.rehearsal.nodes import (
    STATE_FILE,
    break_node,
    end_nodes,
    heal_node,
    is_running,
    spawn_controller,
    spawn_node,
)
from slurm.rehearsal.settings import Site

APT_COMMAND = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins"
BINARIES = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel")
FOLDERS = ("etc", "state", "spool", "run", "log", "munge", "dev")
START_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Cluster:
    """A running cluster: pass `env` to the subprocesses that shall see it."""

    root: Path
    nodes: tuple[str, ...]
    env: dict[str, str]

    def break_node(self, node: str, *, tell: bool = True) -> None:
        """End the node with all that runs on it, or slurmctld; see `nodes.break_node`."""
        break_node(self.root, node, tell=tell)

    def heal_node(self, node: str) -> None:
        """Start the broken node again; see `nodes.heal_node`."""
        heal_node(self.root, node)

    def disturb(self, *answers: Answer) -> None:
        """Let commands answer late or fail from here on, and all others as they should."""
        set_answers(self.root, answers)


def missing_binaries() -> list[str]:
    return [name for name in BINARIES if shutil.which(name, path=client.daemon_path()) is None]


@contextlib.contextmanager
def rehearse(site: Site) -> Iterator[Cluster]:
    """A cluster in a temporary folder for the length of the block; it dies with this process.

    Raises ValueError if Slurm is not installed, does not take the configuration, or its daemons do not come up.
    """
    # Not under a test's own temporary folder: munge and the jobs need a short path that others may enter.
    root = Path(tempfile.mkdtemp(prefix="rehearsal-"))
    try:
        yield start(root, site, owner=os.getpid())
    finally:
        stop(root)
        shutil.rmtree(root, ignore_errors=True)


def start(root: Path, site: Site, owner: int | None = None) -> Cluster:
    """Start a cluster in `root` and wait until every node is idle.

    owner: a pid; the cluster is stopped and its folder removed when that process ends, however it ends
    Raises ValueError if Slurm is not installed, does not know a setting or does not take its value, if a cluster runs
    there already, or if the daemons do not come up.
    """
    if missing := missing_binaries():
        raise ValueError(f"Slurm is not installed (no {', '.join(missing)}): {APT_COMMAND}")
    if site.accounting:
        require_installed()
    root = root.absolute()
    blueprint = Blueprint(
        root=root,
        site=site,
        namespaces=can_unshare(),
        ports=free_ports(site.nodes + 1 + site.accounting),
        host=socket.gethostname().split(".")[0],
        user=getpass.getuser(),
    )
    _prepare(blueprint)
    _ask_slurm_about_conf(blueprint)
    set_answers(root, site.answers)
    try:
        if owner is not None:
            _spawn_watch(root, owner)
        _start_daemons(blueprint)
        _await_idle(blueprint)
    except BaseException:
        stop(root)
        raise
    return Cluster(root=root, nodes=blueprint.node_names, env=client_env(root))


def stop(root: Path) -> None:
    """End every process of the cluster in `root`; do nothing if there is none."""
    root = root.absolute()
    if not (root / STATE_FILE).is_file():
        return
    state = json.loads((root / STATE_FILE).read_text())
    if os.getpid() not in daemons.recorded(root, "watch").values():
        daemons.end(root, "watch")
    # Nothing of it is used again: on SIGTERM slurmctld would save its state, and wait for the database.
    daemons.kill_with_children(root, "slurmctld")
    end_accounting(root)
    try:
        end_nodes(root, state["nodes"], state["namespaces"])
    finally:
        daemons.end(root, "munged")
        daemons.reap(root)


def destroy(root: Path) -> None:
    """Stop the cluster in `root` and remove its folder."""
    stop(root)
    if (root / STATE_FILE).is_file():
        shutil.rmtree(root, ignore_errors=True)


def can_unshare() -> bool:
    """Whether nodes get namespaces of their own: for root, where the machine (a container, say) allows it."""
    if os.geteuid() != 0:
        return False
    probe = ["unshare", "--pid", "--fork", "--uts", "--mount", "--mount-proc", "true"]
    try:
        return subprocess.run(probe, capture_output=True, timeout=10, check=False).returncode == 0
    except OSError:
        return False


def _prepare(blueprint: Blueprint) -> None:
    """Write the folder: configuration, munge key, device files. Raises ValueError if it is in use."""
    root = blueprint.root
    if is_running(root):
        raise ValueError(f"a cluster runs in {root} already: {typed('-m', 'slurm.rehearsal', 'stop', '--root', root)}")
    root.mkdir(parents=True, exist_ok=True)
    if root.stat().st_uid != os.geteuid():
        raise ValueError(f"{root} belongs to another user: choose a folder with --root")
    if any(root.iterdir()) and not (root / STATE_FILE).is_file():
        raise ValueError(f"{root} is neither empty nor a rehearsal cluster: choose a folder with --root")
    root.chmod(0o755)
    for folder in (*FOLDERS, ACCOUNTING_FOLDER, ANSWERS_FOLDER):
        shutil.rmtree(root / folder, ignore_errors=True)
    for folder in FOLDERS:
        (root / folder).mkdir(mode=0o755)
    (root / STATE_FILE).write_text(json.dumps({"namespaces": blueprint.namespaces, "nodes": blueprint.node_names}))
    blueprint.conf.write_text(render_slurm_conf(blueprint))
    (root / "etc" / "gres.conf").write_text(render_gres_conf(blueprint))
    (root / "etc" / "plugstack.conf").touch()
    (root / "etc" / "hosts").write_text(render_hosts(blueprint, Path("/etc/hosts").read_text()))
    for node in blueprint.node_names:
        (root / "spool" / node).mkdir()
        for device in blueprint.gpu_files(node):
            device.symlink_to("/dev/null")
    key = root / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))


def _ask_slurm_about_conf(blueprint: Blueprint) -> None:
    """Raises ValueError with Slurm's own words for a setting that it does not know, or whose value it does not take.

    Each client reads slurm.conf before it does anything, even before it prints its help.
    """
    help_text = ["scontrol", "--help"]
    done = subprocess.run(
        help_text, env=client.daemon_env(blueprint.root), capture_output=True, text=True, timeout=10, check=False
    )
    if done.returncode:
        raise ValueError(f"Slurm does not take this configuration: {one_line(done.stderr)}")


def _spawn_watch(root: Path, owner: int) -> None:
    ticks = daemons.start_ticks(owner)
    if ticks is None:
        raise ValueError(f"owner {owner} does not run")
    command = [sys.executable, "-m", "slurm.rehearsal.watch", str(root), str(owner), str(ticks)]
    daemons.spawn(root, "watch", command, os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})


def _start_daemons(blueprint: Blueprint) -> None:
    root, env = blueprint.root, client.daemon_env(blueprint.root)
    munged = ["munged", "--foreground", "--force", f"--socket={blueprint.socket}", f"--key-file={root}/munge/key"]
    munged += [f"--pid-file={root}/run/munged.own", f"--seed-file={root}/munge/seed"]
    daemons.spawn(root, "munged", munged, env)
    daemons.await_ready(root, "munged", blueprint.socket.exists, START_TIMEOUT_S)
    if blueprint.site.accounting:
        start_accounting(blueprint)
    spawn_controller(root)
    # a slurmd that comes too early tries again after a second
    daemons.await_ready(root, "slurmctld", lambda: daemons.listens(blueprint.ports[0]), START_TIMEOUT_S)
    for node in blueprint.node_names:
        spawn_node(root, node, blueprint.namespaces)
    if blueprint.site.accounting:
        add_user(blueprint)


def _await_idle(blueprint: Blueprint) -> None:
    def all_idle() -> bool:
        # one line for each node in each of its partitions
        states = client.ask(blueprint.root, ["sinfo", "--all", "-h", "-N", "-o", "%N %T"]).split("\n")
        return set(states) == {f"{node} idle" for node in blueprint.node_names}

    if not daemons.wait_until(all_idle, START_TIMEOUT_S, poll_s=0.05):
        raise ValueError(f"the nodes did not become idle:\n{daemons.log_tails(blueprint.root)}")
