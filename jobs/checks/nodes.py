"""Check of what the nodes see: a job of a second on one of them looks for all that a trial's job will open.

The job is a shell script, which Slurm itself carries to the node, and it answers by its exit code: both work where no
folder is shared.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from jobs.checks.folders import nearest_folder
from jobs.checks.setup import Finding, Setup
from petseg.config.values import weights_files
from petseg.data.store import folder_of, is_remote
from shards.manifest import MANIFEST_NAME
from slurm import patience
from slurm.cluster import CLIENT_TIMEOUT_S, parse_facts
from slurm.environment import sbatch_environment
from slurm.patience import one_line
from slurm.resources import Resources

WAIT_S, RUN_S = 60.0, 60.0  # in the queue, and on the node
POLL_S = 0.5
SHARED_S = 5.0  # until a file that a node has written is seen here
WRITTEN = "written-by-the-node"
CANNOT_WRITE, FIRST_UNSEEN, MAX_PATHS = 9, 10, 200  # exit codes of the script
WAITING = ("PENDING", "CONFIGURING")
# a shared folder may show the node late what was made here just now
SCRIPT = """#!/bin/sh
number={first}
for path in {paths}; do
    [ -r "$path" ] || {{ sleep 3; [ -r "$path" ]; }} || exit "$number"
    number=$((number + 1))
done
true > {written} || exit {cannot_write}
"""


@dataclass(frozen=True)
class Ended:
    """How the job on the node ended."""

    state: str
    exit_code: int
    node: str


def check_nodes(setup: Setup) -> Finding:
    """A node of the partition sees the sweep's folder, the shards, weights and this Python, and can write there."""
    what, asked = "nodes", setup.command.resources
    if setup.command.cluster == "local":
        return Finding("ok", what, "the sweep is to run on this machine: no node is asked")
    if missing := [name for name in ("sbatch", "scontrol", "scancel") if shutil.which(name) is None]:
        return unknown(f"no {missing[0]} on PATH", "go to a login node, or give --cluster local")
    if not asked.partition:
        return unknown("no partition is named", "give --partition NAME: a job of a second looks there")
    runs = nearest_folder(setup.command.runs_dir / (setup.command.name or setup.spec.name))
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=runs) as probe:
        paths = {Path(probe): f"the folder of the sweep, {runs}", **wanted(setup)}
        script = SCRIPT.format(
            paths=" ".join(shlex.quote(str(path)) for path in paths),
            first=FIRST_UNSEEN,
            cannot_write=CANNOT_WRITE,
            written=shlex.quote(f"{probe}/{WRITTEN}"),
        )
        try:
            ended = run_on_a_node(script, asked, 60 * setup.command.wait_min)
        except (OSError, ValueError) as error:
            return unknown(str(error), "ask again when a node is free")
        return finding_of(ended, list(paths.values()), Path(probe), runs)


def unknown(why: str, advice: str) -> Finding:
    return Finding("warn", "nodes", f"not known what the nodes see: {why}", advice)


def wanted(setup: Setup) -> dict[Path, str]:
    """The paths that a trial's job opens besides the folder of its sweep, with descriptions."""
    names = {Path(sys.executable): f"this Python, {sys.executable}"}
    for config in setup.distinct(lambda config: (config.data.shards, *weights_files(config).values())):
        shards = config.data.shards
        if not is_remote(shards):
            names[folder_of(shards).absolute() / MANIFEST_NAME] = f"the shards, {shards}"
        for weights in weights_files(config).values():
            names[Path(weights).absolute()] = f"the weights, {weights}"
    return dict(list(names.items())[:MAX_PATHS])


def finding_of(ended: Ended, names: list[str], probe: Path, runs: Path) -> Finding:
    """The finding for the exit code of the job; names: of what the script looked for, in its order."""
    what, unseen = "nodes", ended.exit_code - FIRST_UNSEEN
    shared = "give a folder of a file system that the nodes share"
    if ended.state == "FAILED" and 0 <= unseen < len(names):
        return Finding("FAIL", what, f"{ended.node} does not see {names[unseen]}", shared)
    if ended.state == "FAILED" and ended.exit_code == CANNOT_WRITE:
        return Finding("FAIL", what, f"{ended.node} cannot write to {runs}", "mount it for writing, or " + shared)
    if ended.state != "COMPLETED":
        return unknown(f"the job on {ended.node} ended {ended.state}, exit code {ended.exit_code}", "see its node")
    deadline = time.monotonic() + SHARED_S
    while not (probe / WRITTEN).exists():
        if time.monotonic() > deadline:
            return Finding("FAIL", what, f"what {ended.node} writes to {runs} is not seen here", shared)
        time.sleep(POLL_S)
    return Finding("ok", what, f"{ended.node} can write to the sweep's folder, and sees {', '.join(names[1:])}")


def run_on_a_node(script: str, asked: Resources, wait_s: float) -> Ended:
    """Run the script on a node of the partition; returns how it ended. Raises OSError if that takes too long."""
    refusals = []
    for gpus in dict.fromkeys((0, asked.gpus_per_node)):  # some partitions take no job without
        command = ["sbatch", "--parsable", *flags_of(asked, gpus)]
        done = subprocess.run(
            command, input=script, env=sbatch_environment(os.environ),
            capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            job_id = done.stdout.strip().partition(";")[0]
            try:
                return await_end(job_id, min(WAIT_S, wait_s))
            finally:  # one that has ended is no longer there to be cancelled
                subprocess.run(["scancel", job_id], capture_output=True, timeout=CLIENT_TIMEOUT_S, check=False)
        refusals.append(one_line(done.stderr))
    raise OSError(f"sbatch: {refusals[-1]}")


def flags_of(asked: Resources, gpus: int) -> list[str]:
    """sbatch's flags of a job of one core that may run where the trials' jobs may."""
    names = ("partition", "account", "qos", "wckey", "constraint", "exclude")
    placed = [f"--{name}={getattr(asked, name)}" for name in names if getattr(asked, name)]
    size = ["--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=100M", "--time=2"]
    size += [f"--gpus-per-node={gpus}"] if gpus else []
    return [*placed, *size, "--no-requeue", "--output=/dev/null", "--chdir=/", "--job-name=petseg-doctor"]


def await_end(job_id: str, wait_s: float) -> Ended:
    """Wait for the job; returns how it ended. Raises OSError if it waits in the queue, or runs, for too long."""
    begin, started = time.monotonic(), 0.0
    while True:
        try:
            facts = parse_facts(patience.call(["scontrol", "show", "job", job_id, "--oneliner"], CLIENT_TIMEOUT_S))
        except subprocess.CalledProcessError as error:
            raise OSError(f"scontrol: {one_line(error.stderr)}") from None
        state, now = facts.get("JobState", "?"), time.monotonic()
        if state not in (*WAITING, "RUNNING", "COMPLETING"):
            code = facts.get("ExitCode", "0:0").partition(":")[0]
            return Ended(state, int(code), facts.get("BatchHost") or facts.get("NodeList", "a node"))
        started = started or (now if state not in WAITING else 0.0)
        if now - (started or begin) > (RUN_S if started else wait_s):
            limit_s = RUN_S if started else wait_s
            raise OSError(f"job {job_id} was {state} ({facts.get('Reason', 'no reason')}) for {limit_s:.0f} s")
        time.sleep(POLL_S)
