"""The processes of a rehearsal cluster, and how they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.rehearsal import daemons, nodes, watch


def test_what_a_daemon_started_ends_with_it(tmp_path: Path) -> None:
    """The child ignores the end of its parent, as a step of a job does."""
    (tmp_path / "run").mkdir()
    with subprocess.Popen(["sh", "-c", "sleep 300 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        ticks = {pid: daemons.start_ticks(pid) for pid in (parent.pid, child)}
        assert all(ticks.values())
        (tmp_path / "run" / "slurmd.pid").write_text(f"{parent.pid} {ticks[parent.pid]}")
        assert daemons.descendants([parent.pid]) == {child: ticks[child]}
        try:
            daemons.kill_with_children(tmp_path, "slurmd")
            assert parent.wait(timeout=10) == -9
            assert daemons.wait_until(lambda: daemons.start_ticks(child) != ticks[child], 10)
        finally:
            daemons.kill_all(ticks)
    assert not list((tmp_path / "run").iterdir())


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A cluster's folder; whatever is started in it ends with the test."""
    for name in ("run", "log"):
        (tmp_path / name).mkdir()
    yield tmp_path
    daemons.end(tmp_path, "*", signal.SIGKILL)
    daemons.reap(tmp_path)


def spawn(root: Path, name: str, script: str, **env: str) -> int:
    """Start a shell script, and return its pid once it has printed something."""
    daemons.spawn(root, name, ["sh", "-c", script], {"PATH": os.environ["PATH"], **env})
    assert daemons.wait_until(lambda: bool((root / "log" / f"{name}.out").read_text()), 30)
    return int((root / "run" / f"{name}.pid").read_text().split()[0])


def test_a_daemon_stands_on_its_own(root: Path) -> None:
    """In its own session, without our environment or input, and with a log that an earlier one may have begun."""
    (root / "log" / "one.out").write_text("earlier\n")
    pid = spawn(root, "one", 'read line || echo "$PWD $A ${HOME-none}"; echo oops >&2; exec sleep 600', A="b")
    assert os.getsid(pid) == pid
    assert daemons.wait_until(lambda: "oops" in (root / "log" / "one.out").read_text(), 30)
    assert (root / "log" / "one.out").read_text() == f"earlier\n{root} b none\noops\n"
    assert (root / "run" / "one.pid").read_text() == f"{pid} {daemons.start_ticks(pid)}\n"
    assert [path.name for path in (root / "run").iterdir()] == ["one.pid"]
    assert daemons.recorded(root) == {"one": pid}


def test_processes_are_known_by_their_records(root: Path) -> None:
    pids = {name: spawn(root, name, "echo; exec sleep 600") for name in ("node.1", "node.2", "munged")}
    (root / "run" / "gone.pid").write_text(f"{pids['munged']} 0\n")
    assert daemons.recorded(root) == pids
    assert daemons.recorded(root, "node.*") == {name: pids[name] for name in ("node.1", "node.2")}
    daemons.end(root, "node.*")
    assert daemons.recorded(root) == {"munged": pids["munged"]}
    assert sorted(path.name for path in (root / "run").iterdir()) == ["gone.pid", "munged.pid"]


@pytest.mark.parametrize(
    ("first", "said"), [(signal.SIGTERM, "told\n"), (signal.SIGINT, "asked\n"), (signal.SIGKILL, "")]
)
def test_a_daemon_is_told_to_end_and_then_killed(
    root: Path, first: signal.Signals, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until, graces = daemons.wait_until, list[float]()

    def wait(condition: Callable[[], bool], grace_s: float) -> bool:
        """For as long as the daemon needs, not for the grace."""
        graces.append(grace_s)
        log = root / "log" / "one.out"
        is_told = said and len(graces) == 1
        wait_until((lambda: log.read_text() == f"\n{said}") if is_told else condition, 30)
        return condition()

    pid = spawn(root, "one", "trap 'echo told' TERM; trap 'echo asked' INT; echo; while :; do sleep 0.01; done")
    monkeypatch.setattr(daemons, "wait_until", wait)
    daemons.end(root, "one", first, grace_s=1.5)
    assert daemons.start_ticks(pid) is None
    assert graces == [1.5] * (2 if said else 1)
    assert (root / "log" / "one.out").read_text() == f"\n{said}"


def test_readiness_is_awaited_while_the_daemon_lives(root: Path) -> None:
    spawn(root, "one", "echo; exec sleep 600")
    asked: list[int] = []
    daemons.await_ready(root, "one", lambda: asked.append(1) or len(asked) >= 3, 30)
    assert len(asked) >= 3
    with pytest.raises(ValueError, match=r"^one did not start:\none.out: $"):
        daemons.await_ready(root, "one", lambda: False, 0.05)
    spawn(root, "two", "seq 20; exit 1")
    tail = "\n".join(f"two.out: {number}" for number in range(13, 21))
    with pytest.raises(ValueError, match=f"^two did not start:\none.out: \n{tail}$"):
        daemons.await_ready(root, "two", lambda: False, 60)
    daemons.await_ready(root, "two", lambda: True, 60)  # it was ready before it ended


def test_a_condition_is_asked_at_least_once_and_in_time() -> None:
    assert daemons.wait_until(lambda: True, 0)
    assert not daemons.wait_until(lambda: False, 0)
    asked: list[int] = []
    assert daemons.wait_until(lambda: asked.append(1) or len(asked) == 4, 60, poll_s=0)


def test_a_process_is_known_by_its_start_however_it_is_named(tmp_path: Path) -> None:
    odd = tmp_path / "a) S 1 (b"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "600"]) as process:
        ticks = daemons.start_ticks(process.pid)
        own = daemons.start_ticks(os.getpid())
        assert ticks is not None
        assert own is not None
        assert ticks > own
        assert daemons.descendants([os.getpid()])[process.pid] == ticks
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert daemons.start_ticks(process.pid) is None  # a zombie is gone
    assert daemons.start_ticks(process.pid) is None


def test_only_the_process_that_is_meant_is_killed() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        ticks = daemons.start_ticks(process.pid)
        assert ticks is not None
        assert daemons.kill_all({process.pid: ticks + 1})
        assert daemons.kill_all({process.pid: None})
        assert process.poll() is None
        assert daemons.kill_all({process.pid: ticks})
        assert process.wait(30) == -signal.SIGKILL


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_all_below_a_process_are_stopped_and_it_is_not() -> None:
    script = "sh -c 'sleep 600 & echo $!; wait' & wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        frozen = daemons.freeze_descendants([process.pid])
        try:
            assert len(frozen) == 2
            assert frozen[grandchild] == daemons.start_ticks(grandchild)
            assert list(daemons.descendants([process.pid]))[-1] == grandchild  # parents come first
            assert daemons.wait_until(lambda: {state_of(pid) for pid in frozen} == {"T"}, 30)
            assert state_of(process.pid) != "T"
        finally:
            daemons.kill_all(frozen)


def test_whether_somebody_listens() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert not daemons.listens(port)
        listener.listen()
        assert daemons.listens(port)


def test_a_reaper_adopts_what_its_command_leaves_behind_and_outlives_it(tmp_path: Path) -> None:
    waits = 'me=$BASHPID; while grep -q "PPid:.$$\\$" /proc/$me/status; do sleep 0.01; done'
    orphan = f"{waits}; grep PPid /proc/$me/status >{tmp_path}/parent"
    reaper = Path(nodes.__file__).with_name("reaper.py")
    command = [sys.executable, "-I", "-S", str(reaper), "bash", "-c", f"({orphan}) & exit 3"]
    with subprocess.Popen(command) as process:
        assert process.wait(60) == 0
    assert (tmp_path / "parent").read_text().split() == ["PPid:", str(process.pid)]


def test_the_watch_ends_a_cluster_with_its_owner(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if another process has the owner's pid by now; where the cluster is gone, the watch goes too."""
    destroyed: list[Path] = []
    monkeypatch.setattr(watch, "destroy", destroyed.append)
    own = daemons.start_ticks(os.getpid())
    assert own is not None
    assert watch.main([str(root), str(os.getpid()), str(own + 1)]) == 0
    assert destroyed == [root]
    (root / "run").rename(root / "gone")
    assert watch.main([str(root), str(os.getpid()), str(own)]) == 0
    assert destroyed == [root]
    (root / "gone").rename(root / "run")
