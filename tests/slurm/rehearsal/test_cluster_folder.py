"""What a cluster's folder holds, whose folders are left alone, and what is stopped where a cluster does not come up."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slurm.rehearsal import accounting, cluster, daemons
from slurm.rehearsal.cluster import destroy, rehearse, start, stop
from slurm.rehearsal.settings import Site
from tests.slurm.rehearsal.test_rehearsal import blueprint


def test_the_folder_of_a_cluster(tmp_path: Path) -> None:
    """Keys and files as the daemons want them; what an earlier cluster has left is gone, but nothing else."""
    root = tmp_path / "deep" / "root"
    plan = blueprint(str(root), gpus=1)
    cluster._prepare(plan)
    key = (root / "munge" / "key").read_bytes()
    for left in ("log/slurmctld.log", "db/data", "bin/squeue", "state/job", "notes"):
        (root / left).parent.mkdir(exist_ok=True)
        (root / left).touch()
    root.chmod(0o700)
    cluster._prepare(plan)
    assert json.loads((root / "cluster.json").read_text()) == {"namespaces": True, "nodes": ["node1", "node2"]}
    folders = {"etc", "state", "spool", "run", "log", "munge", "dev"}
    assert {path.name for path in root.iterdir()} == {*folders, "cluster.json", "notes"}
    assert root.stat().st_mode & 0o777 == 0o755  # jobs of others enter it
    assert (root / "munge" / "key").stat().st_mode & 0o777 == 0o600
    assert len(key) == 128
    assert (root / "munge" / "key").read_bytes() != key
    assert {path.name for path in (root / "etc").iterdir()} == {"slurm.conf", "gres.conf", "plugstack.conf", "hosts"}
    assert (root / "etc" / "hosts").read_text().endswith("\n127.0.0.11 node1\n127.0.0.12 node2\n")
    assert {path.name for path in (root / "spool").iterdir()} == {"node1", "node2"}
    assert {path.name: str(path.readlink()) for path in (root / "dev").iterdir()} == {
        "node1-gpu0": "/dev/null", "node2-gpu0": "/dev/null"
    }  # fmt: skip


def test_folders_of_others_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(ValueError, match=rf"^{tmp_path} belongs to another user: choose a folder with --root$"):
        cluster._prepare(blueprint(str(tmp_path)))
    monkeypatch.setattr(cluster, "is_running", lambda root: True)
    message = rf"^a cluster runs in {tmp_path} already: .* slurm\.rehearsal stop --root {tmp_path}$"
    with pytest.raises(ValueError, match=message):
        cluster._prepare(blueprint(str(tmp_path)))


def test_only_a_clusters_own_folder_is_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    destroy(tmp_path)
    stop(tmp_path / "none")
    assert (tmp_path / "thesis.tex").exists()
    (tmp_path / "cluster.json").write_text('{"nodes": [], "namespaces": false}')
    (tmp_path / "run").mkdir()
    destroy(tmp_path)
    assert not tmp_path.exists()


@pytest.fixture
def not_started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Clusters that are prepared and stopped, but whose daemons do not come up."""
    stopped: list[Any] = []

    def fail(plan: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "missing_binaries", list)
    monkeypatch.setattr(cluster, "_ask_slurm_about_conf", lambda plan: None)
    monkeypatch.setattr(cluster.daemons, "spawn", lambda *words: None)
    monkeypatch.setattr(cluster, "_start_daemons", fail)
    monkeypatch.setattr(cluster, "stop", stopped.append)
    return stopped


def test_a_cluster_that_does_not_come_up_is_stopped(not_started: list[Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "root", Site(nodes=1))
    assert not_started == [tmp_path / "root"]
    with pytest.raises(KeyboardInterrupt), rehearse(Site(nodes=1)):
        pass
    assert len(set(not_started[1:])) == 1
    assert not not_started[-1].exists()


def test_an_owner_that_is_gone_owns_nothing(not_started: list[Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^owner 0 does not run$"):
        start(tmp_path / "root", Site(nodes=1), owner=0)
    assert not_started == [tmp_path / "root"]


def test_the_watch_is_told_which_process_it_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs from the cluster's folder, and finds this code all the same."""
    started: list[Any] = []
    monkeypatch.setattr(cluster.daemons, "spawn", lambda *words: started.append(words))
    cluster._spawn_watch(tmp_path, os.getpid())
    ((root, name, command, environ),) = started
    ticks = str(daemons.start_ticks(os.getpid()))
    assert (root, name) == (tmp_path, "watch")
    assert command == [sys.executable, "-m", "slurm.rehearsal.watch", str(tmp_path), str(os.getpid()), ticks]
    assert (Path(environ["PYTHONPATH"]) / "slurm" / "rehearsal" / "watch.py").is_file()
    assert environ["PATH"] == os.environ["PATH"]


def test_namespaces_are_for_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "unshare").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\n')
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(cluster.os, "geteuid", lambda: 1000)
    assert not cluster.can_unshare()
    assert not (tmp_path / "asked").exists()
    monkeypatch.setattr(cluster.os, "geteuid", lambda: 0)
    assert cluster.can_unshare()
    assert (tmp_path / "asked").read_text() == "--pid --fork --uts --mount --mount-proc true\n"
    (tmp_path / "unshare").write_text("#!/bin/sh\nexit 1\n")
    assert not cluster.can_unshare()
    monkeypatch.setenv("PATH", "/nowhere")
    assert not cluster.can_unshare()


def test_files_of_the_database_are_asked_for_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "missing_binaries", list)
    tables = (tmp_path / "old.sql", tmp_path / "new.sql")
    monkeypatch.setattr(accounting, "SYSTEM_TABLES", tables)
    with pytest.raises(ValueError, match=rf"^no accounting: {tables[1]} not installed: apt-get install "):
        accounting.require_installed()
    tables[0].touch()
    accounting.require_installed()


def test_this_user_is_added_until_slurmdbd_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(root: Path, command: list[str]) -> str:
        asked.append(" ".join(command))
        return "me\n" if len(asked) == 4 else "root\nmeyer"

    monkeypatch.setattr(accounting.client, "ask", ask)
    accounting.add_user(blueprint(str(tmp_path)))
    add = "sacctmgr -i add user name=me account=root"
    assert asked == [add, "sacctmgr -n -P show association user=me format=user"] * 2
    monkeypatch.setattr(accounting, "START_TIMEOUT_S", 0.0)
    with pytest.raises(ValueError, match=r"^slurmdbd does not know me:\n$"):
        accounting.add_user(blueprint(str(tmp_path)))


def test_a_cluster_ends_from_its_watch_to_its_munged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """munged last, whatever becomes of the nodes: while it runs, the cluster does; the watch does not end itself."""
    done: list[Any] = []
    watches = {"watch": 0}

    def end_nodes(root: Path, names: list[str], namespaces: bool) -> None:
        done.append(("nodes", names, namespaces))
        raise OSError("a process survives")

    monkeypatch.setattr(cluster.daemons, "recorded", lambda root, name: watches)
    monkeypatch.setattr(cluster.daemons, "end", lambda root, name: done.append(name))
    monkeypatch.setattr(cluster.daemons, "kill_with_children", lambda root, name: done.append(("killed", name)))
    monkeypatch.setattr(cluster.daemons, "reap", lambda root: done.append("reaped"))
    monkeypatch.setattr(cluster, "end_accounting", lambda root: done.append("accounting"))
    monkeypatch.setattr(cluster, "end_nodes", end_nodes)
    (tmp_path / "cluster.json").write_text('{"nodes": ["node1"], "namespaces": true}')
    wanted = [("killed", "slurmctld"), "accounting", ("nodes", ["node1"], True), "munged", "reaped"]
    with pytest.raises(OSError, match="a process survives"):
        stop(tmp_path)
    assert done == ["watch", *wanted]
    done.clear()
    watches["watch"] = os.getpid()
    with pytest.raises(OSError, match="a process survives"):
        stop(tmp_path)
    assert done == wanted


def test_a_cluster_is_up_once_all_nodes_are_idle_in_all_partitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["", "node1 idle\nnode2 idle*\nnode1 idle", "node1 idle", "node1 idle\nnode2 idle\nnode1 idle"]
    monkeypatch.setattr(cluster.client, "ask", lambda root, command: answers.pop(0))
    cluster._await_idle(blueprint(str(tmp_path)))
    assert answers == []
    monkeypatch.setattr(cluster, "START_TIMEOUT_S", 0.0)
    monkeypatch.setattr(cluster.client, "ask", lambda root, command: "node1 idle")
    monkeypatch.setattr(cluster.daemons, "log_tails", lambda root: "the logs")
    with pytest.raises(ValueError, match=r"^the nodes did not become idle:\nthe logs$"):
        cluster._await_idle(blueprint(str(tmp_path)))


def test_daemons_start_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """munged before all who sign by it, the database before slurmctld, which asks it at once, and the nodes last."""
    done: list[str] = []

    def note(text: str) -> Callable[..., None]:
        return lambda *words: done.append(text.format(*words))

    monkeypatch.setattr(cluster.daemons, "spawn", note("{1}"))
    monkeypatch.setattr(cluster.daemons, "await_ready", note("{1} is up"))
    monkeypatch.setattr(cluster, "spawn_controller", note("slurmctld"))
    monkeypatch.setattr(cluster, "spawn_node", note("{1} {2}"))
    monkeypatch.setattr(cluster, "start_accounting", note("accounting"))
    monkeypatch.setattr(cluster, "add_user", note("user"))
    cluster._start_daemons(blueprint(str(tmp_path)))
    first, then = ["munged", "munged is up"], ["slurmctld", "slurmctld is up", "node1 True", "node2 True"]
    assert done == [*first, *then]
    done.clear()
    cluster._start_daemons(blueprint(str(tmp_path), ports=(1, 2, 3, 4), accounting=True))
    assert done == [*first, "accounting", *then, "user"]


def test_there_is_nothing_to_save_in_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[tuple[object, ...]] = []
    monkeypatch.setattr(accounting.daemons, "end", lambda *words: ended.append(words))
    accounting.end_accounting(tmp_path)
    assert ended == [(tmp_path, name, signal.SIGKILL) for name in ("slurmdbd", "mariadbd")]


def test_the_database_is_kept_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reaches its socket owns it, and slurmdbd refuses a configuration that others can read."""
    started: dict[str, tuple[list[str], dict[str, str]]] = {}
    monkeypatch.setattr(
        accounting.daemons, "spawn", lambda root, name, command, env: started.update({name: (command, env)})
    )
    awaited: list[tuple[str, bool, bool]] = []

    def await_ready(root: Path, name: str, ready: Callable[[], bool], timeout_s: float) -> None:
        log = root / "log" / "mariadbd.out"
        log.write_text("starting\n")
        before = ready()
        log.write_bytes(b"\xff mariadbd: ready for connections.\n")
        awaited.append((name, before, ready()))

    monkeypatch.setattr(accounting.daemons, "await_ready", await_ready)
    monkeypatch.setattr(accounting.daemons, "listens", lambda port: port == 4)
    (tmp_path / "tables.sql").write_text("CREATE TABLE IF NOT EXISTS proc (a int);\n")
    monkeypatch.setattr(accounting, "SYSTEM_TABLES", (tmp_path / "tables.sql",))
    root = tmp_path / "root"
    plan = blueprint(str(root), ports=(1, 2, 3, 4), accounting=True)
    cluster._prepare(plan)
    accounting.start_accounting(plan)
    assert list(started) == ["mariadbd", "slurmdbd"]
    assert awaited == [("mariadbd", False, True), ("slurmdbd", True, True)]
    command, environ = started["slurmdbd"]
    assert (command, environ["MYSQL_UNIX_PORT"]) == (["slurmdbd", "-D"], f"{root}/db/socket")
    command, _ = started["mariadbd"]
    assert command[:6] == [
        "mariadbd", "--no-defaults", "--user=me", f"--datadir={root}/db/data", f"--socket={root}/db/socket",
        f"--pid-file={root}/db/pid",
    ]  # fmt: skip
    assert {"--skip-networking", f"--init-file={root}/db/init.sql"} <= set(command)
    modes = [(root / name).stat().st_mode & 0o777 for name in ("db", "db/data", "etc/slurmdbd.conf")]
    assert modes == [0o700, 0o700, 0o600]
    assert (root / "db" / "init.sql").read_text() == (
        "CREATE DATABASE mysql;\nUSE mysql;\nCREATE TABLE IF NOT EXISTS proc (a int);"
    )
