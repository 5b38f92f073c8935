"""The environment that sbatch is called in, and with it the jobs': no secrets, nothing of a surrounding job."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
NOT_SECRET_NAME = re.compile(r"^TOKENIZERS_|_(FILE|PATH|DIR)$")  # a setting, or where a secret lies, not the secret
# Left over when a job submits a job; they would contradict what the new one asks for.
INHERITED_NAME = re.compile(r"^(SLURM|SLURMD|SRUN|SUBMITIT|TORCHELASTIC)_")
KEPT_NAMES = frozenset({"SLURM_CONF", "SLURM_CLUSTERS", "SUBMITIT_PREEMPT_SIGNAL"})
DISTRIBUTED_NAMES = frozenset({"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"})


def sbatch_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment to call sbatch in: without secrets, and without what a surrounding job left in it.

    sbatch copies its whole environment into the job, slurmctld keeps it on disk, and some sites store it in
    the accounting database. `--export=NAMES` is no way out: srun inside the job obeys it too, and with a list of
    names sbatch loads the user's login environment on the node. There the wandb client reads ~/.netrc.
    """
    return {
        name: value
        for name, value in environ.items()
        if name in KEPT_NAMES or not (_is_secret(name) or INHERITED_NAME.match(name) or name in DISTRIBUTED_NAMES)
    }


def _is_secret(name: str) -> bool:
    return bool(SECRET_NAME.search(name)) and not NOT_SECRET_NAME.search(name)


@contextlib.contextmanager
def environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """os.environ as wanted inside the block, changed only where it differs: other threads may read it."""
    before = dict(os.environ)
    _change(before, wanted)
    try:
        yield
    finally:
        _change(dict(os.environ), before)


def _change(now: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    for name in now.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in wanted.items() if now.get(name) != value})
