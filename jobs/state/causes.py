"""Why trials end: the causes, what to do about each, and by which words they are known."""

from __future__ import annotations

import re
from typing import Literal

Cause = Literal[
    "gpu_memory", "host_memory", "node_failure", "preempted", "timeout", "nan", "data", "disk_full",
    "launch", "unseen_folder", "unplaceable", "code", "cancelled", "stopped", "killed", "never_began", "unknown",
]  # fmt: skip
RETRYABLE: dict[Cause, bool] = {
    "gpu_memory": True,
    "host_memory": True,
    "node_failure": True,
    "preempted": True,
    "timeout": True,
    "nan": False,
    "data": False,
    "disk_full": True,
    "launch": True,
    "unseen_folder": False,
    "unplaceable": False,
    "code": False,
    "cancelled": True,
    "stopped": True,
    "killed": True,
    "never_began": True,
    "unknown": True,
}
# the trial itself is sound: the same again goes on where it stopped
INTERRUPTIONS = frozenset(
    {"node_failure", "preempted", "timeout", "cancelled", "stopped", "killed", "never_began", "unknown"}
)

UNPLACEABLE = "no node has all that it asks for"
WHAT_IS_ASKED = (
    "--constraint, --gpus, --cpus-per-task or --mem-gb (`python jobs/doctor.py --only partition` compares them with "
    "the partition)"
)

ADVICE: dict[Cause, str] = {
    "gpu_memory": "the GPU has too little memory: twice train.accumulation_steps halves what a pass holds, and the "
    "batch stays what it is; fewer --trials-at-once help too, where it shared the GPU",
    "host_memory": "the node's memory did not suffice: ask for more with --mem-gb, or for fewer CPUs' worth of loading",
    "node_failure": "{host} failed, not the trial: should it fail again, leave it out with --exclude {host}",
    "preempted": "a job of higher priority took its place, and Slurm did not requeue it: submit it again to go on",
    "timeout": "its time was up",
    "nan": "the loss became NaN or infinite, and would again: try a lower optim.lr, optim.grad_clip 1 or "
    "train.mixed_precision no; not_finite.json in its folder names the batches",
    "data": "the data are damaged or missing: `python -m shards.verify FOLDER` finds all damage",
    "disk_full": "the disk or your quota is full: make room ({clean} shows what finished trials hold), "
    "then submit it again; its checkpoints are whole",
    "launch": "it died before the trial began: see that the node has the environment, the code and the network",
    "unseen_folder": "{host} could not even open the job's log in {folder}: nodes do not see that folder, or may not "
    "write there. Run the sweep with --runs-dir on a file system that all nodes share",
    "unplaceable": f"{UNPLACEABLE}, and Slurm ended it: run the sweep again with another {WHAT_IS_ASKED}",
    "code": "the code raised an error, and would again: mend it first",
    "cancelled": "somebody ended it: submit it again to go on",
    "stopped": "it was stopped with the sweep on this machine (Ctrl-C): the same command goes on from what is saved",
    "killed": "it was killed without a word (by hand, by a power cut, or for its memory): see the node's log",
    "never_began": "its job ended before its turn came: see the job's log, and run the sweep again",
    "unknown": "nothing says why it ended: see its log",
}

# What exceptions say, most telling first: the first match of any rank counts.
ERRORS: tuple[tuple[Cause, re.Pattern[str]], ...] = (
    ("gpu_memory", re.compile(r"CUDA out of memory|HIP out of memory|CUDA error: out of memory|_STATUS_ALLOC_FAILED")),
    (
        "host_memory",
        re.compile(
            r"^MemoryError|\.?_ArrayMemoryError|Cannot allocate memory|DefaultCPUAllocator: can't allocate|"
            r"killed by signal: (Killed|Bus error)|insufficient shared memory",
            re.MULTILINE,
        ),
    ),
    (
        "disk_full",
        re.compile(
            r"Errno (28|122)\]|No space left on device|[Dd]isk quota exceeded|code: (28|122)\b|"
            r"no room for .* in the cache folder"
        ),
    ),
    ("nan", re.compile(r"loss is not finite")),
    (
        "node_failure",
        re.compile(
            r"uncorrectable ECC|Errno (5|116)\]|Input/output error|[Ss]tale file handle|No CUDA GPUs are available|"
            r"CUDA driver initialization failed|CUDA-capable device\(s\) is/are busy|GPU is lost|GPU has fallen off"
        ),
    ),
    ("killed", re.compile(r"was started \d+ times at step \d+ and came no further")),
    (
        "launch",
        re.compile(
            r"^(\w+\.)*(ModuleNotFoundError|ImportError|UnpicklingError)\b|could not find submitted jobs|"
            r"[Aa]ddress already in use|EADDRINUSE|DistStoreError|DistNetworkError|rank 0 did not write|[Rr]endezvous",
            re.MULTILINE,
        ),
    ),
    (
        "data",
        re.compile(
            r"shards\.command\.Failure|cannot be read \(|the ledger of|shards\.verify|pack the set again|"
            r"no shard set in|is not the file of the manifest|cannot be fetched"
        ),
    ),
)
DAEMON_WORDS = ("slurmstepd", "srun:", "slurm_script:", "/")  # /usr/bin/python: No module named submitit
REFUSED = "the job cannot be requeued"  # jobs.node.task, when Slurm refuses
# What Slurm's daemons write into the log. A STEP is also cancelled because another rank has died.
DAEMONS: tuple[tuple[Cause, re.Pattern[str]], ...] = (
    (
        "host_memory",
        re.compile(
            r"^(slurmstepd\S*|srun): .*(oom[-_ ]?kill|Out Of Memory|exceeded (job )?memory limit)",
            re.MULTILINE | re.IGNORECASE,
        ),
    ),
    ("node_failure", re.compile(r"DUE TO NODE FAILURE|^srun: error: Node failure on", re.MULTILINE)),
    ("preempted", re.compile(r"DUE TO PREEMPTION")),
    ("timeout", re.compile(rf"DUE TO TIME LIMIT|{REFUSED}")),
    ("cancelled", re.compile(r"\*\*\* JOB \S+ .*CANCELLED AT \S+ \*\*\*")),
    (
        "launch",
        re.compile(
            r"^(srun|slurmstepd\S*): .*(launch failed|Unable to create step|execve|couldn't chdir)|"
            r"No module named submitit|(python3?|bash): .*(No such file|not found)",
            re.MULTILINE,
        ),
    ),
    ("killed", re.compile(r"^srun: error: .*: Killed$", re.MULTILINE)),
)
SLURM_STATES: dict[str, Cause] = {
    "OUT_OF_MEMORY": "host_memory",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "PREEMPTED": "preempted",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "CANCELLED": "cancelled",
}
# a rank that only lost another one: why is said elsewhere
PEER = re.compile(
    r"DistBackendError|Connection (closed|reset) by peer|Broken pipe|NCCL|Socket closed|heartbeat timeout|"
    r"ProcessGroup\w* .*timed? ?out|waitRecv timed out"
)
