"""Accounting for a rehearsal cluster: slurmdbd and a MariaDB of its own, thrown away with the cluster.

The database listens on no network, and its socket lies in a folder that nobody else may enter: that is what guards
it, so it runs without passwords (--skip-grant-tables). Nothing is made durable, which makes it quick.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from slurm.rehearsal import client, daemons
from slurm.rehearsal.conf import Blueprint, render_slurmdbd_conf

APT_COMMAND = "apt-get install --no-install-recommends slurmdbd mariadb-server-core"
BINARIES = ("slurmdbd", "mariadbd", "sacct")
START_TIMEOUT_S = 30.0
FOLDER = "db"

# The file has changed its name and its place with MariaDB's versions; Debian 12 has the last of these.
SYSTEM_TABLES = tuple(
    Path("/usr/share") / folder / f"{name}_system_tables.sql"
    for folder in ("mariadb", "mysql")
    for name in ("mariadb", "mysql")
)

MARIADB_OPTIONS = (
    "--skip-networking",
    "--skip-grant-tables",
    "--performance-schema=OFF",
    "--max-allowed-packet=16M",
    # slurmdbd asks for at least 900 s
    "--innodb-lock-wait-timeout=900",
    # small, and never synced: the data end with the cluster
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=8M",
    "--innodb-data-file-path=ibdata1:4M:autoextend",
    "--innodb-temp-data-file-path=ibtmp1:4M:autoextend",
    "--innodb-doublewrite=0",
    "--innodb-flush-log-at-trx-commit=0",
    "--debug-no-sync",
    # io_uring is forbidden in many containers
    "--innodb-use-native-aio=0",
    "--aria-log-file-size=8M",
    "--aria-pagecache-buffer-size=8M",
)


def missing_binaries() -> list[str]:
    return [name for name in BINARIES if shutil.which(name, path=client.daemon_path()) is None]


def require_installed() -> None:
    """Raises ValueError with the command to type if accounting's programs or their files are missing."""
    missing = missing_binaries()
    if not missing and _system_tables() is None:
        missing = [str(SYSTEM_TABLES[-1])]
    if missing:
        raise ValueError(f"no accounting: {', '.join(missing)} not installed: {APT_COMMAND}")


def start_accounting(blueprint: Blueprint) -> None:
    """Start MariaDB, then slurmdbd, and tell it of the cluster; slurmctld, which asks it at once, comes after.

    Needs munge. Raises ValueError if one of them does not come up.
    """
    env = client.daemon_env(blueprint.root)
    _start_mariadb(blueprint, env)
    conf = blueprint.root / "etc" / "slurmdbd.conf"
    conf.touch(mode=0o600)  # slurmdbd refuses one that others can read
    conf.write_text(render_slurmdbd_conf(blueprint))
    # slurmdbd has no setting for the database's socket; its client library has this variable
    daemons.spawn(
        blueprint.root, "slurmdbd", ["slurmdbd", "-D"], env | {"MYSQL_UNIX_PORT": str(_socket(blueprint.root))}
    )
    daemons.await_ready(blueprint.root, "slurmdbd", lambda: daemons.listens(blueprint.ports[-1]), START_TIMEOUT_S)


def add_user(blueprint: Blueprint) -> None:
    """Give this user an association: without one, a cluster that enforces limits refuses the user's jobs.

    slurmctld registers the cluster when it starts, and not always before it answers.
    """
    add = ["sacctmgr", "-i", "add", "user", f"name={blueprint.user}", "account=root"]
    shown = ["sacctmgr", "-n", "-P", "show", "association", f"user={blueprint.user}", "format=user"]

    def is_there() -> bool:
        client.ask(blueprint.root, add)  # fails where it is there already, which the next question tells apart
        return blueprint.user in client.ask(blueprint.root, shown).split()

    if not daemons.wait_until(is_there, START_TIMEOUT_S, poll_s=0.1):
        raise ValueError(f"slurmdbd does not know {blueprint.user}:\n{daemons.log_tails(blueprint.root)}")


def end_accounting(root: Path) -> None:
    """End both; there is nothing to save."""
    for name in ("slurmdbd", "mariadbd"):
        daemons.end(root, name, signal.SIGKILL)


def _start_mariadb(blueprint: Blueprint, env: Mapping[str, str]) -> None:
    folder, log = blueprint.root / FOLDER, blueprint.root / "log" / "mariadbd.out"
    folder.mkdir(mode=0o700)
    (folder / "data").mkdir(mode=0o700)
    tables = _system_tables()
    assert tables is not None, "require_installed comes first"
    (folder / "init.sql").write_text(f"CREATE DATABASE mysql;\nUSE mysql;\n{needed_tables(tables.read_text())}")
    command = ["mariadbd", "--no-defaults", f"--user={blueprint.user}", f"--datadir={folder}/data"]
    command += [f"--socket={_socket(blueprint.root)}", f"--pid-file={folder}/pid", f"--init-file={folder}/init.sql"]
    daemons.spawn(blueprint.root, "mariadbd", [*command, *MARIADB_OPTIONS], env)

    def is_ready() -> bool:
        return "ready for connections" in log.read_text(errors="replace")

    daemons.await_ready(blueprint.root, "mariadbd", is_ready, START_TIMEOUT_S)


def _socket(root: Path) -> Path:
    return root / FOLDER / "socket"


def needed_tables(sql: str) -> str:
    """The SQL of mysql.proc alone, which slurmdbd's stored procedures need: creating all tables takes a second."""
    match = re.search(r"^CREATE TABLE IF NOT EXISTS proc \(.*?;$", sql, re.MULTILINE | re.DOTALL)
    return match[0] if match else sql


def _system_tables() -> Path | None:
    return next((path for path in SYSTEM_TABLES if os.access(path, os.R_OK)), None)
