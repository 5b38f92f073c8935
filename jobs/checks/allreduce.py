"""Check of the network between processes: a job that adds numbers up over all of them, as training does each step.

`all_reduce` travels to the job by its import path. It reports in a file, because a job's pickle is code.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import uuid
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import submitit

from jobs.checks.setup import Finding, Setup
from jobs.node.rendezvous import remove_rendezvous, set_up_ranks
from shards.files import write_whole
from slurm.cluster import job_states
from slurm.executor import submit
from slurm.gpus import visible_gpus
from slurm.request import Request
from slurm.resources import Resources

MEGABYTES = 64  # about the gradients of a 17 M parameter model
ROUNDS = 5
TIMEOUT_MIN = 5
RENDEZVOUS_TIMEOUT_S = 120
POLL_S = 1.0
CLIENT_TIMEOUT_S = 30.0
RESULT_NAME = "all_reduce.json"


def all_reduce(folder: str) -> None:
    """In each process of a job: sum a tensor over all of them a few times; the first one writes down what came out."""
    environment = submitit.JobEnvironment()
    set_up_ranks(environment)
    import torch
    from torch import distributed

    rank, world_size, on_gpu = environment.global_rank, environment.num_tasks, torch.cuda.is_available()
    device = torch.device("cuda", environment.local_rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    limit = timedelta(seconds=RENDEZVOUS_TIMEOUT_S)
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=limit, device_id=device if on_gpu else None)
    try:
        seconds, wrong = [], 0
        for _ in range(ROUNDS):
            tensor = torch.full((MEGABYTES * 250_000,), float(rank + 1), device=device)
            distributed.barrier()
            start = time.perf_counter()
            distributed.all_reduce(tensor)
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            wrong += int((tensor != world_size * (world_size + 1) / 2).sum().item())
        ranks: list[Any] = [None] * world_size
        distributed.all_gather_object(ranks, (environment.hostname, wrong))
    finally:
        distributed.destroy_process_group()
    if rank == 0:
        # each process sends and receives 2 (n - 1) / n of the tensor (ring all-reduce): NCCL's "bus bandwidth"
        moved = 2 * (world_size - 1) / world_size * MEGABYTES * 1e6
        hosts, wrong = sorted({host for host, _ in ranks}), sum(count for _, count in ranks)
        row = {"world_size": world_size, "hosts": hosts, "device": str(device.type), "wrong": wrong}
        row |= {"ms": 1e3 * min(seconds), "gb_per_s": moved / min(seconds) / 1e9}
        write_whole(Path(folder) / RESULT_NAME, json.dumps(row))
    remove_rendezvous(environment)


def check_all_reduce(setup: Setup) -> Finding:
    """All processes that a trial would have add up right, on the nodes that it would get; measures how quickly."""
    what, cluster = "all-reduce", setup.command.cluster
    asked = replace(setup.command.resources, timeout_min=TIMEOUT_MIN, signal_delay_s=30)
    if cluster == "local" and asked.gpus_per_node and not visible_gpus():
        asked = replace(asked, gpus_per_node=0)
    if asked.processes == 1:
        return Finding("warn", what, "a trial has one process: there is nothing to add up", "--nodes 2, or --gpus 2")
    folder = (setup.command.runs_dir / f".doctor-{uuid.uuid4().hex[:12]}").absolute()  # the nodes must see it
    folder.mkdir(parents=True)
    jobs = submit(all_reduce, [str(folder)], cluster, Request(folder, asked, "petseg-doctor", 1))
    problem = "" if cluster == "local" else await_job(jobs[0].job_id, folder, 60 * setup.command.wait_min)
    if not (folder / RESULT_NAME).exists():
        log = jobs[0].paths.stdout
        advice = f"its log: {log}" if log.exists() else f"the nodes do not see {folder}: give another --runs-dir"
        return Finding("FAIL", what, problem or f"{asked.processes} processes did not come to an end", advice)
    row = json.loads((folder / RESULT_NAME).read_text())
    shutil.rmtree(folder, ignore_errors=True)
    return finding_of(row, asked)


def finding_of(row: dict[str, Any], asked: Resources) -> Finding:
    """The finding for what the job wrote down."""
    what, speed = "all-reduce", f"{MEGABYTES} MB in {row['ms']:.1f} ms, {row['gb_per_s']:.2f} GB/s"
    shown = f"{row['world_size']} processes ({row['device']}) on {', '.join(row['hosts'])}: {speed}"
    if row["wrong"]:
        return Finding("FAIL", what, f"{shown}, but {row['wrong']} sums are wrong", "do not train there: tell the site")
    if row["world_size"] != asked.processes:
        return Finding("FAIL", what, f"{shown}, but {asked.processes} processes were asked for", "see the launcher")
    if asked.gpus_per_node and row["device"] == "cpu":
        return Finding("FAIL", what, f"{shown}, but GPUs were asked for", "does torch see the GPUs of the node?")
    return Finding("ok", what, f"{shown}; all sums right")


def await_job(job_id: str, folder: Path, wait_s: float) -> str:
    """Wait for the job's end; why it has no result, if it has none. What waits or runs for too long is cancelled."""
    try:
        return _await(job_id, folder, wait_s)
    finally:  # Ctrl-C, too; one that has ended is no longer there to be cancelled
        subprocess.run(["scancel", job_id], capture_output=True, timeout=CLIENT_TIMEOUT_S, check=False)


def _await(job_id: str, folder: Path, wait_s: float) -> str:
    begin, started = time.monotonic(), 0.0
    while True:
        state = job_states([job_id])[job_id]
        if state.is_over:
            if not (folder / RESULT_NAME).exists():
                time.sleep(POLL_S)  # a shared folder may show the file later than Slurm the end
            return f"job {job_id} ended: {state.state} {state.reason}".strip()
        now = time.monotonic()
        started = started or (now if state.state == "RUNNING" else 0.0)
        limit_s = 60.0 * (TIMEOUT_MIN + 1) if started else wait_s
        if now - (started or begin) > limit_s:
            return f"job {job_id} was {state.state} ({state.reason or 'no reason'}) for {limit_s / 60:.0f} minutes"
        time.sleep(POLL_S)
