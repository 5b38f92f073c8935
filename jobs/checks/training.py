"""Checks of training, cut down to a few real samples: one batch is learnt, BatchNorm counts, a resume is exact."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from jobs.checks.setup import SMALL_BATCH, Finding, Setup, one_thread
from petseg.config import RunConfig
from petseg.data.store import open_store
from petseg.metrics.pixels import count_pixels, picture_dice
from petseg.run.batches import eval_inputs, train_batches
from petseg.run.parts import Parts, build_parts
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import CHECKPOINTS_NAME, read_metrics
from petseg.training import interrupt
from petseg.training.loop import train
from shards.command import Interrupted
from shards.manifest import load_manifest

FIT_STEPS, FIT_BATCH, FIT_WIDTH, FIT_MODELS = 100, 4, 16, 3
SURE_RATE = 3e-3  # at which both lab models halve each loss on four pictures in 6 to 21 steps (width 16, 64 px)
INTERRUPT_AT = 2  # the step of each attempt after which it is interrupted
SUBPROCESS_TIMEOUT_S = 300
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Fit:
    """How one batch was learnt."""

    steps: int
    losses: tuple[float, float]  # first and last
    dices: tuple[float, float]

    @property
    def learnt(self) -> bool:
        """The loss at least halved, and it is the loss of better masks."""
        first, last = self.losses
        return last < first / 2 and self.dices[1] > self.dices[0]

    def __str__(self) -> str:
        (first, last), (before, after) = self.losses, self.dices
        return f"loss {first:.3f} -> {last:.3f}, Dice {before:.2f} -> {after:.2f} in {self.steps} steps"


def check_overfit(setup: Setup) -> Finding:
    """Each model of the sweep overfits one batch of real samples: the loss halves, and the Dice rises."""
    what, details, slow = "overfit", [], []
    configs = setup.distinct(lambda config: (config.model, config.train.loss, config.data.border, config.data.target))
    for config in configs[:FIT_MODELS]:
        name = f"{config.model.arch}, {config.train.loss}"
        # with one over the width goes Adam's best rate (Yang et al. 2022): the narrow model takes so much more
        fit = fit_one_batch(setup, config, config.optim.lr * max(1.0, config.model.width / FIT_WIDTH))
        if not fit.learnt:
            sure = fit_one_batch(setup, config, SURE_RATE)
            if not sure.learnt:
                detail = f"{name} does not learn one batch: {fit}; with lr {SURE_RATE}, {sure}"
                return Finding("FAIL", what, detail, "look at the loss, data.border, and the masks of the shard set")
            slow.append(f"{name}: {fit}; with lr {SURE_RATE}, {sure}")
        details.append(f"{name}: {fit}")
    if slow:
        return Finding("warn", what, "; ".join(slow), f"is optim.lr = {configs[0].optim.lr:g} right?")
    untried = len(configs) - FIT_MODELS
    return Finding("ok", what, "; ".join(details) + (f"; {untried} more models not tried" if untried > 0 else ""))


def fit_one_batch(setup: Setup, config: RunConfig, rate: float) -> Fit:
    """Train a narrow model on one batch until its loss has halved, FIT_STEPS at most, without augmentation."""
    small = setup.small(
        config, model__width=min(config.model.width, FIT_WIDTH), train__batch_size=FIT_BATCH,
        train__accumulation_steps=1, augment__policy="none", optim__lr=rate,
    )  # fmt: skip
    parts = build_parts(small, open_store(small.data.shards), setup.folder, splits=("train",))
    try:
        batch = next(train_batches(parts, 1))
        if batch.lost:
            raise ValueError(f"{batch.lost[0]}: see the check of the shards, with --deep")
        with one_thread():
            return _fit(parts, *eval_inputs(parts, batch))
    finally:
        parts.close()


def _fit(parts: Parts, image: torch.Tensor, target: torch.Tensor) -> Fit:
    parts.model.train()
    losses, dices = [], []
    for _ in range(FIT_STEPS):
        logits = parts.model(image)  # (B, K, H, W)
        loss = parts.loss(logits, target).mean()
        losses.append(loss.item())
        counts = count_pixels(logits.detach(), target, parts.target.counted)
        dices.append(picture_dice(counts).mean().item())
        fit = Fit(len(losses) - 1, (losses[0], losses[-1]), (dices[0], dices[-1]))
        if fit.learnt or not math.isfinite(losses[-1]):
            break
        parts.accelerator.backward(loss)
        if parts.config.optim.grad_clip:
            parts.accelerator.clip_grad_norm_(parts.model.parameters(), parts.config.optim.grad_clip)
        parts.optimizer.step()
        parts.optimizer.zero_grad()
    return fit


def check_batchnorm(setup: Setup) -> Finding:
    """BatchNorm counts each training micro-batch of two epochs, and none of their validations."""
    what = "batchnorm"
    folder, _ = setup.straight
    config = setup.small(setup.augmented)
    num_samples = load_manifest(setup.small_set).splits["train"].num_samples
    sizes = [min(SMALL_BATCH, num_samples - first) for first in range(0, num_samples, SMALL_BATCH)]
    micro_batches = sum(min(config.train.accumulation_steps, size) for size in sizes)
    for checkpoint in list_checkpoints(folder / CHECKPOINTS_NAME):
        epoch, weights = checkpoint.state["epoch"], load_file(checkpoint.folder / "model.safetensors")
        counts = {int(value) for name, value in weights.items() if name.endswith(COUNTER)}
        if not counts:
            return Finding("ok", what, f"{config.model.arch} has no BatchNorm that counts")
        if counts != {epoch * micro_batches}:
            counted = " or ".join(map(str, sorted(counts)))
            why = (
                "evaluation moves it"
                if max(counts) > epoch * micro_batches
                else "training leaves it in evaluation mode"
            )
            detail = f"after {epoch} epochs of {micro_batches} micro-batches it has counted {counted}: {why}"
            return Finding("FAIL", what, detail, "look at where the model's train() and eval() are called")
    return Finding("ok", what, f"{micro_batches} micro-batches an epoch counted, those of validation not")


def check_resume(setup: Setup) -> Finding:
    """A run that was stopped twice ends with the weights, optimizer and numbers of one that was not, bit for bit."""
    what = "resume"
    if torch.cuda.is_available():  # whose sums change from run to run: the CPU's do not
        return _resume_on_cpu(setup)
    straight, _ = setup.straight
    stopped, attempts = setup.folder / "stopped", 1
    config = setup.small(setup.augmented)
    for _ in range(2):
        try:
            with one_thread(), interrupted_soon():
                train(config, stopped)
            break
        except Interrupted:
            attempts += 1
    if attempts == 1:
        return Finding("FAIL", what, "a run ignores the signal to stop", "look at petseg.training.interrupt")
    with one_thread():
        train(config, stopped)
    if different := _differences(straight, stopped):
        detail = f"stopped {attempts - 1} times and resumed, it has another {' and '.join(different)}"
        return Finding("FAIL", what, detail, "look at what a checkpoint holds, and at what resume() restores")
    cell = f"{config.model.arch}, {config.augment.policy}"
    return Finding("ok", what, f"{cell}: stopped {attempts - 1} times within 2 epochs, same weights bit for bit")


@contextmanager
def interrupted_soon() -> Iterator[None]:
    """Within the block, training stops after a few steps, as if by a signal."""
    asked, before = 0, interrupt.requested

    def requested() -> bool:
        nonlocal asked
        asked += 1
        return asked >= INTERRUPT_AT

    interrupt.requested = requested
    try:
        yield
    finally:
        interrupt.requested = before


def _differences(ours: Path, theirs: Path) -> list[str]:
    """What differs between the ends of two runs."""
    newest = [list_checkpoints(folder / CHECKPOINTS_NAME)[-1].folder for folder in (ours, theirs)]
    different = []
    for name in ("model", "optimizer"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in newest)
        if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
            different.append(f"final {name}")
    rows = [
        [{name: v for name, v in row.items() if not name.startswith("perf/")} for row in read_metrics(folder)]
        for folder in (ours, theirs)
    ]
    return [*different, "metrics.jsonl"] if rows[0] != rows[1] else different


def _resume_on_cpu(setup: Setup) -> Finding:
    """Repeat the check in a process that sees no GPU."""
    command = [sys.executable, "-m", "jobs.doctor", *setup.argv, "--only", "resume", "--skip", "", "--json"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SUBPROCESS_TIMEOUT_S, check=False)
    try:
        (finding,) = json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-300:]}") from None
    return Finding(**finding)
