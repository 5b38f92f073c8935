"""Hands one job array to sbatch: retries transient errors, and never submits twice.

sbatch's answer can be lost after slurmctld has accepted the array, and the launcher can be killed. The array's name and
comment contain a token, and before any retry squeue is asked for that token. The work of the jobs lies in files named
by the token before sbatch is called: a job that starts before its launcher has renamed them, or after the launcher was
killed, takes its own. An array whose jobs nobody knows, and whose work was given to others, is revoked: if it still
starts, its jobs end at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import signal
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, JobPaths

from shards.command import Unavailable
from slurm import cluster, patience
from slurm.environment import sbatch_environment
from slurm.local import MAX_REQUEUES
from slurm.request import Request

TOKEN_PREFIX = "petseg:"  # noqa: S105 - no secret, but a name for an array of jobs
JOB_ID = re.compile(r"^(\d+)(;\S*)?$", re.MULTILINE)  # sbatch --parsable: JOB or JOB;CLUSTER
# by the number of its array: the bare number of an array's last task means all of them
JOB_IN_SCRIPT = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
ASK_S = 20.0  # how long squeue is asked whether an array was taken
MAX_RESTARTS = 100  # with a time limit so short that Python never listens in time, a job would be requeued for ever

logger = logging.getLogger(__name__)


class Refused(RuntimeError):
    """sbatch's complaint about a job that it would refuse again."""


def new_token() -> str:
    return f"{TOKEN_PREFIX}{uuid.uuid4().hex[:16]}"


def short(token: str) -> str:
    """A token without its prefix, as it stands in names of jobs and files."""
    return token.removeprefix(TOKEN_PREFIX)


def work_file(folder: Path, token: str, index: int) -> Path:
    """The work of the job at this index of the array, until it is moved to where submitit looks for it."""
    return folder / f"{short(token)}_{index}.pkl"


def revoked_file(folder: Path, token: str) -> Path:
    return folder / f"{short(token)}.revoked"


def setup_lines(folder: Path, token: str) -> list[str]:
    """What the script does before its job begins: end it if it was revoked, else put its work where submitit looks."""
    revoked, work = revoked_file(folder, token), work_file(folder, token, 0)
    place = "${SLURM_ARRAY_TASK_ID:-0}"
    job = JOB_IN_SCRIPT
    stem, target = shlex.quote(str(work).removesuffix("0.pkl")), shlex.quote(f"{folder}/")
    return [
        f"if [ -e {shlex.quote(str(revoked))} ]; then",
        "    echo 'nothing to do: the launcher of this job was killed, and its work was given to other jobs'",
        "    exit 0",
        "fi",
        f'mv {stem}"{place}.pkl" {target}"{job}_submitted.pkl" 2>/dev/null || true  # unless its launcher did so',
    ]


def last_lines() -> list[str]:
    """What the script does after its job has ended: put it back into the queue if a signal ended it unprepared.

    TERM and USR2 end a Python that still imports. After TERM, sent at preemption in a partition with a grace time, and
    after USR2, sent ahead of the time limit, Slurm counts that as the job's own failure and does not start it again.
    A job that was cancelled is not RUNNING any more, and is left alone.
    """
    ask = f'squeue --noheader --states=RUNNING --jobs="{JOB_IN_SCRIPT}" --Format=PreemptTime:40'
    return [
        "code=$?",
        f'if [ "$code" -gt 128 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_RESTARTS} ]; then',
        f'    case "$code $({ask})" in',
        f"    {128 + signal.SIGUSR2}\\ ?* | *\\ [0-9]*)  # killed by USR2, or preempted",
        "        echo 'ended by a signal before it could listen to signals: back into the queue'",
        "        for pause in 1 2 4 8 16; do  # slurmctld may be busy",
        f'            scontrol requeue "{JOB_IN_SCRIPT}" && sleep 600  # which the requeue ends',
        '            sleep "$pause"',
        "        done",
        "    esac",
        "fi",
        'exit "$code"',
    ]


def revoke(folder: Path, token: str) -> None:
    """Let no job with this token begin any more."""
    folder.mkdir(parents=True, exist_ok=True)
    revoked_file(folder, token).touch()


def restore(folder: Path, token: str) -> None:
    """Take that back."""
    revoked_file(folder, token).unlink(missing_ok=True)


def submit_array(
    function: Callable[[Any], Any], items: Sequence[Any], request: Request, script: str, token: str
) -> list[submitit.Job[Any]]:
    """The jobs that run `function(item)`, by a script whose comment has the token; a job of its own for a single item.

    Does what submitit does except for the call of sbatch: its files are where the nodes look for them.
    Raises Refused, and Unavailable where Slurm accepts no more jobs now or does not answer.
    """
    resources, environ = request.resources, sbatch_environment(os.environ) | dict(request.variables)
    folder = request.folder.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    work = [work_file(folder, token, index) for index in range(len(items))]
    script_file = folder / f".submission_file_{short(token)}.sh"
    try:
        for item, path in zip(items, work, strict=True):
            submission = DelayedSubmission(function, item)
            submission.set_timeout(resources.timeout_min, MAX_REQUEUES)
            submission.dump(path)
        script_file.write_text(script)
        array = hand_over(script_file, environ, token)
    except Refused:  # after anything else the jobs may still come, and need their work
        for path in work:
            path.unlink(missing_ok=True)
        raise
    finally:
        script_file.unlink(missing_ok=True)
    ids = [f"{array}_{index}" for index in range(len(items))] if len(items) > 1 else [array]
    for job_id, path in zip(ids, work, strict=True):
        with contextlib.suppress(FileNotFoundError):  # the job has begun, and took it itself
            path.rename(JobPaths(folder, job_id).submitted_pickle)
    JobPaths(folder, ids[0]).submission_file.write_text(script)
    return [submitit.SlurmJob(folder=folder, job_id=job_id, tasks=list(range(resources.processes))) for job_id in ids]


def hand_over(script: Path, environ: Mapping[str, str], token: str) -> str:
    """The id that Slurm gives the script's job or array. Raises Refused, and Unavailable."""
    deadline = patience.Deadline()
    for pause_s in patience.pauses():
        reply = patience.run(["sbatch", "--parsable", str(script)], deadline, environ)
        if reply.returncode == 0 and (match := JOB_ID.search(reply.stdout)):
            return match[1]
        if not reply.passes:
            raise Refused(reply.stderr or f"it ended with exit code {reply.returncode}, and no job id: {reply.stdout}")
        try:
            deadline.wait(pause_s, f"sbatch: {reply.complaint}")
        except Unavailable:
            if job_id := _taken(token, reply):
                return job_id
            raise
        # not before: a request can wait in slurmctld for longer than sbatch itself does
        if job_id := _taken(token, reply):
            return job_id
    raise AssertionError("pauses never end")


def _taken(token: str, reply: patience.Reply) -> str:
    """The id of the jobs with this token, if there are any. Raises Unavailable where squeue does not answer."""
    try:
        jobs = cluster.jobs_by_token([token], ASK_S)
    except OSError as error:
        raise Unavailable(f"sbatch: {reply.complaint}; whether it took the jobs is not known ({error})") from error
    job_id = next((job_id.partition("_")[0] for job_id in jobs.values()), "")
    if job_id:
        logger.warning("sbatch: %s; but Slurm has taken the jobs, as %s", reply.complaint, job_id)
    return job_id
