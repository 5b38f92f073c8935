from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.rehearsal import accounting as rehearsal_accounting
from slurm.rehearsal import client
from slurm.rehearsal.cluster import Cluster
from slurm.rehearsal.conf import Blueprint, render_slurm_conf, render_slurmdbd_conf
from slurm.rehearsal.settings import Site

REPOSITORY = Path(__file__).parents[3]


def test_configuration_texts():
    blueprint = Blueprint(
        Path("/r"), Site(nodes=1, accounting=True), namespaces=True, ports=(1, 2, 3), host="here", user="me"
    )
    assert "AccountingStoragePort=3" in render_slurm_conf(blueprint).splitlines()
    assert "AccountingStoragePass=/r/munge/socket" in render_slurm_conf(blueprint).splitlines()
    assert {"DbdPort=3", "DbdHost=here", "SlurmUser=me"} <= set(render_slurmdbd_conf(blueprint).splitlines())


def test_only_the_table_of_procedures_is_needed():
    sql = "CREATE TABLE IF NOT EXISTS db (a int);\nCREATE TABLE IF NOT EXISTS proc (b int,\n c int);\nSET x=1;\n"
    assert rehearsal_accounting.needed_tables(sql) == "CREATE TABLE IF NOT EXISTS proc (b int,\n c int);"
    assert rehearsal_accounting.needed_tables("-- another layout\n") == "-- another layout\n"


def test_without_mariadb_the_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "daemon_path", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"slurmdbd, mariadbd, .*: apt-get install .*slurmdbd mariadb-server-core"):
        rehearsal_accounting.require_installed()


@pytest.mark.slow
@pytest.mark.slurm
def test_sacct_knows_how_jobs_ended_and_the_database_dies_with_the_owner(
    accounting: None,
    call: Callable[..., str],
    wait_for: Callable[..., None],
    processes_of: Callable[[Path], list[int]],
):
    script = (
        "import sys, time\n"
        "from slurm.rehearsal.cluster import rehearse\n"
        "from slurm.rehearsal.settings import Site\n"
        "with rehearse(Site(nodes=1, gpus=0, accounting=True)) as cluster:\n"
        "    sys.stdout.write(f'{cluster.root}\\n')\n"
        "    sys.stdout.flush()\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        root = Path(owner.stdout.readline().strip())
        assert len(processes_of(root)) > 5
        try:
            see_jobs_end(Cluster(root, (), client.client_env(root)), call, wait_for)
        finally:
            owner.kill()
    wait_for(lambda: not processes_of(root) and not root.exists())


def see_jobs_end(cluster: Cluster, call: Callable[..., str], wait_for: Callable[..., None]) -> None:
    submit = ("sbatch", "--parsable", "--output=/dev/null", "--comment=a sweep")
    commands = ("exit 0", "exit 7", "sleep 600")
    done, failed, cancelled = (call(cluster, *submit, "--wrap", command) for command in commands)
    wait_for(lambda: call(cluster, "squeue", "-h", "-j", cancelled, "-o", "%T") == "RUNNING")
    call(cluster, "scancel", cancelled)

    def rows() -> list[str]:
        fields = "--format=JobID,State,ExitCode,Comment"
        return call(cluster, "sacct", "--noheader", "--parsable2", "--allocations", fields).splitlines()

    wanted = {f"{done}|COMPLETED|0:0|a sweep", f"{failed}|FAILED|7:0|a sweep"}
    wait_for(lambda: wanted <= set(rows()) and any(row.startswith(f"{cancelled}|CANCELLED by") for row in rows()))
    assert (cluster.root / "db").stat().st_mode & 0o077 == 0  # whoever reaches its socket owns the database
