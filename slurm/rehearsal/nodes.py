"""The nodes of a rehearsal cluster, and its slurmctld: started, broken as by a power cut, and healed."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from shards.command import typed
from slurm.rehearsal import client, daemons

CONTROLLER = "slurmctld"  # breaks and heals as nodes do
STATE_FILE = "cluster.json"  # written first and read by stop: it marks the folder as ours
HEAL_TIMEOUT_S = 30.0
END_TIMEOUT_S = 10.0

# The first process of a node's namespaces, and their init: $1 name, $2 hosts file, $3 slurm.conf.
NODE_SCRIPT = 'hostname "$1" && mount --bind "$2" /etc/hosts && { slurmd -D -f "$3" -N "$1" & wait; }'

# sinfo's words for a node that Slurm gives jobs to; one that does not answer has a * behind it
IN_SERVICE = frozenset({"idle", "mixed", "allocated", "completing"})


def spawn_node(root: Path, node: str, namespaces: bool) -> None:
    """Start the node's slurmd; the recorded process is what `end_nodes` needs to find all that runs on the node."""
    conf = str(root / "etc" / "slurm.conf")
    if namespaces:
        command = ["unshare", "--pid", "--fork", "--kill-child", "--uts", "--mount", "--mount-proc"]
        command += ["sh", "-c", NODE_SCRIPT, "node", node, str(root / "etc" / "hosts"), conf]
    else:
        reaper = Path(__file__).with_name("reaper.py")
        command = [sys.executable, "-I", "-S", str(reaper), "slurmd", "-D", "-f", conf, "-N", node]
    daemons.spawn(root, _record(node), command, client.daemon_env(root))


def spawn_controller(root: Path) -> None:
    """Start slurmctld, which continues with the state that an earlier one has saved."""
    command = [CONTROLLER, "-D", "-f", str(root / "etc" / "slurm.conf"), "-i"]
    daemons.spawn(root, CONTROLLER, command, client.daemon_env(root))


def end_nodes(root: Path, nodes: Sequence[str], namespaces: bool) -> None:
    """Kill the nodes' slurmd and all their jobs' processes without warning.

    With namespaces one SIGKILL does it: with the first process of its pid namespace the kernel ends all others.
    Without, the processes below the reaper are stopped, all of them, and only then killed.
    """
    names = [_record(node) for node in nodes]
    pids = [pid for name in names for pid in daemons.recorded(root, name).values()]
    if namespaces:
        below = daemons.descendants(pids)
        daemons.kill_all({pid: daemons.start_ticks(pid) for pid in pids})  # unshare, whose end is its child's end
    else:
        below = daemons.freeze_descendants(pids)
    if not daemons.kill_all(below, END_TIMEOUT_S):
        left = [pid for pid, ticks in below.items() if daemons.start_ticks(pid) == ticks]
        raise OSError(f"processes {left} survive SIGKILL: they may wait for a disk or a device")
    # the reapers have no children left to wait for, and end
    daemons.wait_until(lambda: not any(daemons.recorded(root, name) for name in names), END_TIMEOUT_S)
    for name in names:
        daemons.end(root, name, signal.SIGKILL)


def break_node(root: Path, node: str, *, tell: bool = True) -> None:
    """End the node with all that runs on it, as a power cut does; `slurmctld` is asked to save its state first.

    With `tell` Slurm learns of a node's end at once, as from an administrator, and requeues the node's jobs. Otherwise
    it has to find out: SlurmdTimeout is 10 s in a rehearsal, and Slurm checks the nodes now and then.
    Raises ValueError if no cluster runs in `root`, it has no such node, or the node is broken already.
    """
    root = root.absolute()
    namespaces = _require_node(root, node)
    if not is_whole(root, node):
        raise ValueError(f"{node} is broken already: {typed('-m', 'slurm.rehearsal', 'heal', node, '--root', root)}")
    if node == CONTROLLER:
        daemons.end(root, CONTROLLER)
        return
    end_nodes(root, [node], namespaces)
    if tell:
        _set_down(root, node, "broken in a rehearsal")


def heal_node(root: Path, node: str) -> None:
    """Start the broken node again and wait until Slurm uses it, or slurmctld, and wait until it answers.

    Raises ValueError if no cluster runs in `root`, it has no such node, the node is whole, or does not come back.
    """
    root = root.absolute()
    namespaces = _require_node(root, node)
    if is_whole(root, node):
        raise ValueError(f"{node} is whole already: {typed('-m', 'slurm.rehearsal', 'break', node, '--root', root)}")
    if node == CONTROLLER:
        spawn_controller(root)
        daemons.await_ready(root, CONTROLLER, lambda: bool(client.ask(root, ["sinfo", "-h"])), HEAL_TIMEOUT_S)
        return
    # Slurm may not have noticed yet: jobs that died with the node would stay RUNNING for BatchStartTimeout and more.
    _set_down(root, node, "to be healed in a rehearsal")
    spawn_node(root, node, namespaces)
    if not daemons.wait_until(lambda: _is_back(root, node), HEAL_TIMEOUT_S, poll_s=0.05):
        raise ValueError(f"{node} does not come back (it is {_state(root, node)}):\n{daemons.log_tails(root)}")


def is_running(root: Path) -> bool:
    """Whether a cluster runs, even if its slurmctld is broken: munged starts first and ends last."""
    return bool(daemons.recorded(root, "munged"))


def require_running(root: Path) -> None:
    """Raises ValueError if no cluster runs in `root`."""
    if not is_running(root):
        raise ValueError(f"no cluster runs in {root}: {typed('-m', 'slurm.rehearsal', 'start', '--root', root)}")


def is_whole(root: Path, node: str) -> bool:
    return bool(daemons.recorded(root, _record(node)))


def _record(node: str) -> str:
    return node if node == CONTROLLER else f"node.{node}"


def _require_node(root: Path, node: str) -> bool:
    """Whether the cluster's nodes have namespaces; ValueError if the cluster does not run or has no such node."""
    require_running(root)
    state = json.loads((root / STATE_FILE).read_text())
    if node not in (*state["nodes"], CONTROLLER):
        choices = ", ".join([*state["nodes"], CONTROLLER])
        raise ValueError(f"no node {node} in the cluster in {root}: choose one of {choices}")
    return bool(state["namespaces"])


def _set_down(root: Path, node: str, reason: str) -> None:
    client.order(root, ["scontrol", "update", f"nodename={node}", "state=down", f"reason={reason}"])


def _state(root: Path, node: str) -> str:
    """The node's state as sinfo says it (one line for each partition it is in), `unknown` without an answer."""
    return client.ask(root, ["sinfo", "-h", "-N", "-n", node, "-o", "%T"]).partition("\n")[0] or "unknown"


def _is_back(root: Path, node: str) -> bool:
    state = _state(root, node)
    if state in ("down", "drained", "draining"):  # and not down*: its slurmd has reported
        client.ask(root, ["scontrol", "update", f"nodename={node}", "state=resume"])
    return state in IN_SERVICE
