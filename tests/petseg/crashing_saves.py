"""Saves that die at every point, and what a fresh process finds then. Prints JSON; torch is imported once.

python tests/petseg/crashing_saves.py WORK_FOLDER small|unet before,half,after VARIANT ...
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from syscall_kills import Change, Kill, run, why_not

from petseg.config import ModelConfig, TrackingConfig
from petseg.config.training import OptimConfig
from petseg.models.build import build_model
from petseg.optim import build_optimizer
from petseg.run_folder import checkpoint
from petseg.run_folder.checkpoint import Checkpoint, Learner, list_checkpoints, newest_loadable
from petseg.run_folder.layout import CHECKPOINTS_NAME, read_metrics
from petseg.run_folder.restore import load_checkpoint, load_rank_buffers
from petseg.tracking.naming import RunName
from petseg.tracking.tracker import Tracker

Trained = tuple[torch.nn.Module, torch.optim.Optimizer]
real_save = checkpoint.save_checkpoint


@dataclass(frozen=True)
class Phase:
    """One save, and the attempt that it is part of."""

    name: str
    step: int
    trained: int  # optimizer steps: what is in the tensors
    buffers: bool = False
    leftover: bool = False  # an earlier attempt died within this very save, and within a deletion
    row: bool = True  # the epoch is not yet in metrics.jsonl


PHASES = (
    Phase("first", 1, 1), Phase("second", 2, 2), Phase("third", 3, 3), Phase("one goes", 4, 4),
    Phase("same step again", 4, 5, row=False), Phase("leftovers, buffers", 5, 6, buffers=True, leftover=True),
)  # fmt: skip


def state_first_in_place(folder: Path, *args: Any) -> None:
    """The files under their final name from the start, state.json first."""
    scratch = folder.parent.parent / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    real_save(scratch, *args)
    (source,) = scratch.iterdir()
    target = folder / source.name
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir(), reverse=True):
        shutil.copyfile(path, target / path.name)
    checkpoint._prune(folder, args[0])


def old_first(folder: Path, step: int, *args: Any) -> None:
    """The old checkpoints go to make room for the new one."""
    for old in list_checkpoints(folder):
        shutil.rmtree(old.folder)
    real_save(folder, step, *args)


def same_step_first(folder: Path, step: int, *args: Any) -> None:
    """An earlier attempt's checkpoint of the same step goes before the new one stands."""
    shutil.rmtree(folder / f"step-{step:08d}", ignore_errors=True)
    real_save(folder, step, *args)


def deleted_in_sight(folder: Path, *args: Any) -> None:
    """Old checkpoints are deleted under their own name, state.json last."""

    def delete(path: Path) -> None:
        for file in sorted(path.iterdir()):
            file.unlink()
        path.rmdir()

    checkpoint._delete = delete  # type: ignore[assignment]  # in a forked child
    real_save(folder, *args)


@dataclass(frozen=True)
class Variant:
    """A way to save, and where to kill it: in these phases, at every change or at these calls."""

    save: Callable[..., None]
    phases: tuple[str, ...]
    calls: tuple[str, ...] = ()


VARIANTS = {
    # the second and the third do nothing that the fourth does not
    "ours": Variant(real_save, ("first", "one goes", "same step again", "leftovers, buffers")),
    "state_first_in_place": Variant(state_first_in_place, ("second",), ("sendfile", "copy_file_range")),
    "old_first": Variant(old_first, ("third",), ("mkdir",)),
    "same_step_first": Variant(same_step_first, ("same step again",), ("mkdir", "rename")),
    "deleted_in_sight": Variant(deleted_in_sight, ("one goes",), ("unlink",)),
}


def build(arch: str) -> Trained:
    """A U-Net, or one that is saved ten times as quickly: two convolutions with BatchNorm between them."""
    torch.manual_seed(0)
    if arch == "unet":
        model = build_model(ModelConfig(width=2))
    else:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    model = model.to(memory_format=torch.channels_last)
    return model, build_optimizer(OptimConfig(name="adamw", weight_decay=0.1), model)


def train_copies(arch: str, steps: int) -> list[Trained]:
    """Model and optimizer after 0, 1, ... optimizer steps."""
    model, optimizer = build(arch)
    copies = [copy.deepcopy((model, optimizer))]
    x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        copies.append(copy.deepcopy((model, optimizer)))
    return copies


def fingerprint(found: Checkpoint) -> str:
    """Load a checkpoint whole, into a model of other weights: a hash of all that was in it."""
    model, optimizer = FRESH
    load_checkpoint(found, Learner(model, optimizer))
    moments = {f"{i}.{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    buffers = load_rank_buffers(found.folder)
    tensors = {**model.state_dict(), **moments, **({} if buffers is None else {"buffers": buffers})}
    digest = hashlib.sha256(json.dumps(found.state, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return f"{found.step}:{digest.hexdigest()[:16]}"


def attempt(folder: Path, phase: Phase, save: Callable[..., None]) -> None:
    """What training does at its start and at the end of an epoch: a row of metrics.jsonl, then a checkpoint."""
    tracker = Tracker(folder, TrackingConfig(), RunName("x"), {}, resumed_epoch=phase.step - phase.row)
    if phase.row:
        tracker.log({"epoch": phase.step})
    buffers = torch.arange(6.0).view(2, 3) if phase.buffers else None
    state = {"epoch": phase.step, "best": {"step": 1}, "scaler": None}
    save(folder / CHECKPOINTS_NAME, phase.step, Learner(*TRAINED[phase.trained]), state, buffers)


def look(folder: Path, phase: Phase, allowed: list[str], listed_after: list[str]) -> str:
    """What a fresh process finds wrong in a folder in which a save died; empty if nothing."""
    checkpoints = folder / CHECKPOINTS_NAME
    try:
        found = [fingerprint(c) for c in list_checkpoints(checkpoints)]
    except Exception as error:
        return f"a listed checkpoint does not load: {type(error).__name__}: {error}"
    newest = found[-1] if found else "none"
    if newest not in allowed:
        return f"the newest is {newest}, not one of {allowed}"
    goes_on = newest_loadable(checkpoints)
    if (fingerprint(goes_on) if goes_on else "none") != newest:
        return f"training would go on from {goes_on}"
    epochs = [row["epoch"] for row in read_metrics(folder)]
    step = goes_on.step if goes_on else 0
    if epochs[:step] != list(range(1, step + 1)):
        return f"metrics.jsonl has epochs {epochs}, the checkpoint is of {step}"
    attempt(folder, phase, real_save)  # the next attempt
    if left := sorted(p.name for p in checkpoints.glob(".*")):
        return f"the next save leaves {left}"
    if (listed := [fingerprint(c) for c in list_checkpoints(checkpoints)]) != listed_after:
        return f"after the next save there are {listed}, not {listed_after}"
    return ""


def look_at_each(dead: Path, count: int, *args: Any) -> list[str]:
    return [look(dead / str(i), *args) for i in range(count)]


def in_fresh_process(question: Callable[..., Any], *args: Any) -> Any:
    """The answer of a process that has only the folder to go by."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        with os.fdopen(write, "w") as file:
            json.dump(question(*args), file)
            file.flush()
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        answer = json.load(file)
    os.waitpid(pid, 0)
    return answer


def leave_over(checkpoints: Path) -> None:
    """What kills of an earlier attempt left: a half-written checkpoint and a half-deleted one."""
    newest = list_checkpoints(checkpoints)[-1].folder
    for step in (2, 5):
        half = checkpoints / f".step-{step:08d}.tmp"
        half.mkdir()
        shutil.copy(newest / "model.safetensors", half)
        os.truncate(half / "model.safetensors", 1000)


def die_everywhere(work: Path, variant: Variant, moments: list[str]) -> list[dict[str, Any]]:
    """Each phase from the calm state before it, killed at each of its changes: where, and what was wrong then."""
    calm, points = work / "calm", []
    (calm / CHECKPOINTS_NAME).mkdir(parents=True)
    for phase in PHASES:
        if phase.leftover:
            leave_over(calm / CHECKPOINTS_NAME)
        following = Path(shutil.copytree(calm, work / "following"))
        before, after = in_fresh_process(live_calmly, following, phase)
        if phase.name in variant.phases:
            dead = work / "dead"
            deaths = die_in_phase(calm, dead, phase, variant, moments)
            allowed = [before[-1] if before else "none", after[-1]]
            wrong = in_fresh_process(look_at_each, dead, len(deaths), phase, allowed, after)
            points += [death | {"wrong": why} for death, why in zip(deaths, wrong, strict=True)]
            shutil.rmtree(dead)
        shutil.rmtree(calm)
        following.rename(calm)
    return points


def live_calmly(folder: Path, phase: Phase) -> list[list[str]]:
    """The checkpoints before a save and after it."""
    before = [fingerprint(c) for c in list_checkpoints(folder / CHECKPOINTS_NAME)]
    attempt(folder, phase, real_save)
    return [before, [fingerprint(c) for c in list_checkpoints(folder / CHECKPOINTS_NAME)]]


def die_in_phase(calm: Path, dead: Path, phase: Phase, variant: Variant, moments: list[str]) -> list[dict[str, str]]:
    """Die at each change of one save, each time in a copy of the folder: DEAD/0, 1, ..."""

    def begin(folder: Path, kill: Kill | None) -> tuple[list[Change], int]:
        shutil.copytree(calm, folder)
        return run(lambda: attempt(folder, phase, variant.save), folder, kill)

    changes, status = begin(dead / "none", None)
    assert status == 0, f"{phase}: an undisturbed save ended with {status}"
    kills = [
        Kill(number, moment)
        for number, change in enumerate(changes)
        for moment in moments
        if (moment != "half" or change.call == "write") and (not variant.calls or change.call in variant.calls)
    ]
    deaths = []
    for i, kill in enumerate(kills):
        begun, code = begin(dead / str(i), kill)
        assert code == -signal.SIGKILL, f"{phase} ended with {code}, not by {kill}"
        assert len(begun) == kill.number + 1
        assert begun[-1].call == changes[kill.number].call
        deaths.append({"phase": phase.name, "call": begun[-1].call, "file": begun[-1].file, "moment": kill.moment})
    return deaths


if __name__ == "__main__":
    work_folder, arch, moments, *names = sys.argv[1:]
    if reason := why_not():
        sys.stdout.write(json.dumps({"skip": reason}))
        sys.exit()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    TRAINED, FRESH = train_copies(arch, 6), build(arch)
    with torch.no_grad():
        for parameter in FRESH[0].parameters():
            parameter.fill_(7.0)
    gc.freeze()  # a collection in a forked child would touch, and so copy, all pages
    sys.stdout.write(
        json.dumps(
            {name: die_everywhere(Path(work_folder, name), VARIANTS[name], moments.split(",")) for name in names}
        )
    )
