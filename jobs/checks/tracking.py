"""Check of wandb, where a sweep sends there: a key that the jobs will have, and a server that answers."""

from __future__ import annotations

import os

from jobs.checks.setup import Finding, Setup
from jobs.wandb_sync.login import find_login, unreachable
from shards.command import without_secrets
from slurm.environment import sbatch_environment

TRAINS_ON = "training goes on without wandb in any case"


def check_wandb(setup: Setup) -> Finding:
    """Offline and disabled need nothing; online needs a key and a server. No key is ever printed."""
    what, mode = "wandb", setup.config.tracking.wandb
    if mode != "online":
        return Finding("ok", what, f"tracking.wandb = {mode}: nothing is sent")
    try:
        here = find_login()
        on_nodes = find_login(sbatch_environment(os.environ)) if setup.command.cluster == "slurm" else here
    except ValueError as error:
        return Finding("FAIL", what, str(error), TRAINS_ON)
    url = without_secrets(here.url)
    if not here.has_credentials:
        return Finding("FAIL", what, here.missing, here.advice)
    if problem := unreachable(here.url):
        advice = f"set --set tracking.wandb=offline and `python jobs/sync.py SWEEP` later; {TRAINS_ON}"
        return Finding("FAIL", what, f"{url} does not answer: {problem}", advice)
    if not on_nodes.has_credentials:
        detail = (
            f"{url} answers; the key is in the environment only, and keys in the environment are not passed to jobs"
        )
        return Finding("warn", what, detail, f"`{on_nodes.advice}` writes it to ~/.netrc, which the nodes must see")
    return Finding("ok", what, f"{url} answers from this host, and wandb's client finds a key for it (not tried)")
