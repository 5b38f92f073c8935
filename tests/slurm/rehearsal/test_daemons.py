"""The processes of a rehearsal cluster, and how they end."""

from __future__ import annotations

import subprocess
from pathlib import Path

from slurm.rehearsal import daemons


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
