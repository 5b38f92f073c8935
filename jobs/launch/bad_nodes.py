"""Finds nodes that fail repeatedly: starts of a sweep ended there by the node, as their logs and Slurm say.

A node that showed a job no GPU, as recorded by the job, is certain to do so again: once is enough.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jobs.node.faults import read_faults
from jobs.runs.log_files import START_OF_ATTEMPT, rank_logs, read_tail
from jobs.runs.trial import Submission, Sweep
from jobs.runs.trial_state import TrialState
from jobs.state.triage import Evidence, daemon_lines, diagnose
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.attempts import read_attempts
from shards.cause import Cause
from slurm.cluster import node_names

ENOUGH = 2  # failures of a node: one may be chance
_ENVIRONMENT = re.compile(r"JobEnvironment\(.*?hostname=([^,)\s]+).*?\bnode=\d+\((\d+)\)")
_NAMED = re.compile(r"^srun: error: Node failure on (\S+)", re.MULTILINE)

Failed = tuple[str, int, str]  # job, how many of its starts came after, host: each start counts once


@dataclass(frozen=True)
class BadNodes:
    """Nodes to exclude, by Slurm's names, and messages about them."""

    names: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()


def bad_nodes(sweep: Sweep, rows: Sequence[TrialStatus]) -> BadNodes:
    """The nodes on which two starts of the sweep or more ended by a failure of the node, or one without its GPUs.

    None of them if they are more than half of the cluster: then it is the network or the file system. Only nodes count
    whose name Slurm knows; without Slurm there are none.
    """
    failed = list(node_failures(sweep, rows))
    lacking = {fault.node for fault in read_faults(sweep.folder)}
    if (len(failed) < ENOUGH and not lacking) or not (nodes := node_names()):
        return BadNodes()
    counts = Counter(name for _, _, name in {(job, later, node_of(host, nodes)) for job, later, host in failed} if name)
    bad = {name: count for name, count in sorted(counts.items()) if count >= ENOUGH}
    without_gpus = sorted({name for host in lacking if (name := node_of(host, nodes))})
    names = tuple(dict.fromkeys([*bad, *without_gpus]))
    if 2 * len(names) > len(nodes):
        why = "more than half of the nodes, which looks like the network or the file system: none is left out"
        return BadNodes(messages=(f"starts of this sweep ended by failures of {', '.join(names)}, {why}",))
    messages = [
        f"{name} is left out: {count} starts of this sweep ended there by a failure of the node (--no-exclude takes it)"
        for name, count in bad.items()
        if name not in without_gpus
    ]
    messages += [
        f"{name} is left out: a job of this sweep saw no GPU there (--no-exclude takes it)" for name in without_gpus
    ]
    return BadNodes(names, tuple(messages))


def node_failures(sweep: Sweep, rows: Sequence[TrialStatus]) -> Iterator[Failed]:
    """Starts of jobs on Slurm that ended by a failure of their node."""
    given: dict[str, list[Submission]] = {}
    for submission in sweep.all_submissions():
        if submission.cluster == "slurm" and submission.job_id:
            given.setdefault(submission.trial, []).append(submission)
    for row in rows:
        jobs = given.get(row.trial.id, [])
        if not jobs or (row.verdict is None and len(jobs) == 1 and len(read_attempts(row.trial.folder)) < 2):
            continue  # its only start goes well: a thousand logs are slow to read
        for submission in jobs:
            yield from _of_job(row, submission, is_last=submission is jobs[-1])


def _of_job(row: TrialStatus, submission: Submission, is_last: bool) -> Iterator[Failed]:
    logs = [split_starts(read_tail(path)) for path in rank_logs(row.trial, submission)]
    named = [(later, host) for log in logs for later, text in enumerate(reversed(log)) if (host := failed_host(text))]
    yield from ((submission.job_id, later, host) for later, host in named)
    # a lost node writes nothing into the log, but Slurm knows; among several nodes nobody knows which
    silent = is_last and row.cause == Cause.NODE_FAILURE and all(later for later, _ in named)
    state = row.trial.state().of_job(submission.job_id)
    several = any(nodes_of(text) > 1 for log in logs for text in log)
    if silent and not several and state.job_id:
        yield submission.job_id, 0, state.host


def split_starts(log: str) -> list[str]:
    """The part of a log for each start of its job, oldest first."""
    return re.split(rf"^(?=.*{re.escape(START_OF_ATTEMPT)})", log, flags=re.MULTILINE)[1:]


def nodes_of(text: str) -> int:
    """How many nodes a start had, by its first line."""
    match = _ENVIRONMENT.search(text)
    return int(match[2]) if match else 1


def failed_host(text: str) -> str:
    """The host whose failure ended a start, by the log of one of its processes; empty if none is known."""
    if diagnose(Evidence(TrialState("running"), logs=(text,))).cause is not Cause.NODE_FAILURE:
        return ""
    if named := _NAMED.search(text):
        return named[1].rstrip(",:.")
    if "DUE TO NODE FAILURE" in daemon_lines(text) and nodes_of(text) > 1:
        return ""  # any of them
    environment = _ENVIRONMENT.search(text)
    return environment[1] if environment else ""


def node_of(host: str, nodes: Mapping[str, str]) -> str:
    """The name of the one node with this host; empty if there is none, or several. nodes: name -> host"""
    if host in nodes:
        return host
    short = host.partition(".")[0]
    names = [name for name, its_host in nodes.items() if short in (name, its_host.partition(".")[0])]
    return names[0] if len(names) == 1 else ""
