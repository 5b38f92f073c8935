"""A run that sends its numbers to wandb, and what a recording server got of it."""

from __future__ import annotations

from petseg.config import TrackingConfig
from petseg.tracking.naming import RunName
from tests.wandb_server import SentRun, WandbServer

NAME = RunName(
    "lab-0123456789",
    "lab",
    tags=("unet", "none"),
    label="unet none seed 0",
    program="jobs/sweep.py",
    resend="`python jobs/sync.py runs/lab` sends it later",
)
OFF = "wandb is off for this run"


def online(wait_s: float = 60.0) -> TrackingConfig:
    return TrackingConfig(wandb="online", wandb_wait_s=wait_s)


def row(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "step": 10 * epoch, "val/dice": 0.1 * epoch}


def the_run(server: WandbServer) -> SentRun:
    (run,) = server.runs.values()
    return run
