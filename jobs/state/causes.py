"""What to do about each cause of a trial's end, and which messages of other programs reveal it.

A trial's own error names its cause, which its job writes into state.json. The expressions here are for what CUDA,
torch, Python, Slurm and submitit write, and match no message of ours (tests/jobs/state/test_causes.py).
"""

from __future__ import annotations

import re

from shards.cause import Cause

RETRYABLE: dict[Cause, bool] = {
    Cause.GPU_MEMORY: True,
    Cause.HOST_MEMORY: True,
    Cause.NODE_FAILURE: True,
    Cause.PREEMPTED: True,
    Cause.TIMEOUT: True,
    Cause.NAN: False,
    Cause.DATA: False,
    Cause.DISK_FULL: True,
    Cause.LAUNCH: True,
    Cause.UNSEEN_FOLDER: False,
    Cause.UNPLACEABLE: False,
    Cause.CODE: False,
    Cause.CANCELLED: True,
    Cause.STOPPED: True,
    Cause.KILLED: True,
    Cause.NEVER_BEGAN: True,
    Cause.UNKNOWN: True,
}
# the trial itself is sound: submitted again, it resumes where it stopped
INTERRUPTIONS = frozenset(
    {
        Cause.NODE_FAILURE, Cause.PREEMPTED, Cause.TIMEOUT, Cause.CANCELLED, Cause.STOPPED, Cause.KILLED,
        Cause.NEVER_BEGAN, Cause.UNKNOWN,
    }
)  # fmt: skip

UNPLACEABLE = "no node has all that it asks for"
WHAT_IS_ASKED = (
    "--constraint, --gpus, --cpus-per-task or --mem-gb (`python jobs/doctor.py --only partition` compares them with "
    "the partition)"
)

ADVICE: dict[Cause, str] = {
    Cause.GPU_MEMORY: "the GPU has too little memory: twice train.accumulation_steps halves what a pass holds, and the "
    "batch stays what it is; fewer --trials-at-once help too, where it shared the GPU",
    Cause.HOST_MEMORY: "the node's memory did not suffice: ask for more with --mem-gb, or for fewer CPUs' worth of "
    "loading",
    Cause.NODE_FAILURE: "{host} failed, not the trial: should it fail again, leave it out with --exclude {host}",
    Cause.PREEMPTED: "a job of higher priority took its place, and Slurm did not requeue it: submit it again to go on",
    Cause.TIMEOUT: "its time was up",
    Cause.NAN: "the loss became NaN or infinite, and would again: try a lower optim.lr, optim.grad_clip 1 or "
    "train.mixed_precision no; not_finite.json in its folder names the batches",
    Cause.DATA: "the data are damaged or missing: `python -m shards.verify FOLDER` finds all damage",
    Cause.DISK_FULL: "the disk or your quota is full: make room ({clean} shows what finished trials hold), "
    "then submit it again; its checkpoints are whole",
    Cause.LAUNCH: "it died before the trial began: see that the node has the environment, the code and the network",
    Cause.UNSEEN_FOLDER: "{host} could not even open the job's log in {folder}: nodes do not see that folder, or may "
    "not write there. Run the sweep with --runs-dir on a file system that all nodes share",
    Cause.UNPLACEABLE: f"{UNPLACEABLE}, and Slurm ended it: run the sweep again with another {WHAT_IS_ASKED}",
    Cause.CODE: "the code raised an error, and would again: fix it first",
    Cause.CANCELLED: "somebody ended it: submit it again to go on",
    Cause.STOPPED: "it was stopped with the sweep on this machine (Ctrl-C): the same command goes on from what is "
    "saved",
    Cause.KILLED: "it was killed without a word (by hand, by a power cut, or for its memory): see the node's log",
    Cause.NEVER_BEGAN: "its job ended before its turn came: see the job's log, and run the sweep again",
    Cause.UNKNOWN: "nothing says why it ended: see its log",
}

# What exceptions of others say, most telling first: the first match of any rank counts.
ERRORS: tuple[tuple[Cause, re.Pattern[str]], ...] = (
    (
        Cause.GPU_MEMORY,
        re.compile(r"CUDA out of memory|HIP out of memory|CUDA error: out of memory|_STATUS_ALLOC_FAILED"),
    ),
    (
        Cause.HOST_MEMORY,
        re.compile(
            r"^MemoryError|\.?_ArrayMemoryError|Cannot allocate memory|DefaultCPUAllocator: can't allocate|"
            r"killed by signal: (Killed|Bus error)|insufficient shared memory",
            re.MULTILINE,
        ),
    ),
    (
        Cause.DISK_FULL,
        re.compile(r"Errno (28|122)\]|No space left on device|[Dd]isk quota exceeded|code: (28|122)\b"),
    ),
    (
        Cause.NODE_FAILURE,
        re.compile(
            r"uncorrectable ECC|Errno (5|116)\]|Input/output error|[Ss]tale file handle|No CUDA GPUs are available|"
            r"CUDA driver initialization failed|CUDA-capable device\(s\) is/are busy|GPU is lost|GPU has fallen off"
        ),
    ),
    (
        Cause.LAUNCH,
        re.compile(
            r"^(\w+\.)*(ModuleNotFoundError|ImportError|UnpicklingError)\b|could not find submitted jobs|"
            r"[Aa]ddress already in use|EADDRINUSE|DistStoreError|DistNetworkError|Rendezvous\w*Error|:// rendezvous",
            re.MULTILINE,
        ),
    ),
)
DAEMON_WORDS = ("slurmstepd", "srun:", "slurm_script:", "/")  # /usr/bin/python: No module named submitit
# What Slurm's daemons write into the log. A STEP is also cancelled because another rank has died.
DAEMONS: tuple[tuple[Cause, re.Pattern[str]], ...] = (
    (
        Cause.HOST_MEMORY,
        re.compile(
            r"^(slurmstepd\S*|srun): .*(oom[-_ ]?kill|Out Of Memory|exceeded (job )?memory limit)",
            re.MULTILINE | re.IGNORECASE,
        ),
    ),
    (Cause.NODE_FAILURE, re.compile(r"DUE TO NODE FAILURE|^srun: error: Node failure on", re.MULTILINE)),
    (Cause.PREEMPTED, re.compile(r"DUE TO PREEMPTION")),
    (Cause.TIMEOUT, re.compile(r"DUE TO TIME LIMIT")),
    (Cause.CANCELLED, re.compile(r"\*\*\* JOB \S+ .*CANCELLED AT \S+ \*\*\*")),
    (
        Cause.LAUNCH,
        re.compile(
            r"^(srun|slurmstepd\S*): .*(launch failed|Unable to create step|execve|couldn't chdir)|"
            r"No module named submitit|(python3?|bash): .*(No such file|not found)",
            re.MULTILINE,
        ),
    ),
    (Cause.KILLED, re.compile(r"^srun: error: .*: Killed$", re.MULTILINE)),
)
SLURM_STATES: dict[str, Cause] = {
    "OUT_OF_MEMORY": Cause.HOST_MEMORY,
    "NODE_FAIL": Cause.NODE_FAILURE,
    "BOOT_FAIL": Cause.NODE_FAILURE,
    "PREEMPTED": Cause.PREEMPTED,
    "TIMEOUT": Cause.TIMEOUT,
    "DEADLINE": Cause.TIMEOUT,
    "CANCELLED": Cause.CANCELLED,
}
# a rank that only lost another one: why is said elsewhere
PEER = re.compile(
    r"DistBackendError|Connection (closed|reset) by peer|Broken pipe|NCCL|Socket closed|heartbeat timeout|"
    r"ProcessGroup\w* .*timed? ?out|waitRecv timed out"
)
