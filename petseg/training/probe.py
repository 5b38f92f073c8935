"""How long a training step takes on the device that is here: some steps are run on random pictures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from petseg.config import RunConfig
from petseg.data.inputs import normalise
from petseg.losses import build_loss
from petseg.models.build import build_model
from petseg.optim import build_optimizer
from petseg.run.determinism import set_arithmetic
from petseg.run.graphs import PassInputs, build_pass_graphs

PROBE_S = 5.0
FEWEST_STEPS = 3
CHUNK = 5  # steps between two looks at the clock, which wait for the device


@dataclass(frozen=True)
class Probe:
    """What was measured in one process."""

    step_s: float  # of an optimizer step, data at hand; the median
    eval_s_per_sample: float
    peak_bytes: int  # allocated on the GPU, 0 on a CPU


def probe_step(config: RunConfig, micro_batch: int, device: torch.device, seconds: float = PROBE_S) -> Probe:
    """Train a fresh model on one random micro-batch for so long, a pass a step, as a run would (petseg.training.epoch).

    Raises RuntimeError where the device's memory does not suffice.
    """
    set_arithmetic(config)
    with torch.random.fork_rng(devices=[]):
        model = build_model(config.model, image_size_px=config.data.image_size_px, pretrained=False).to(device)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer, loss, graphs = (
        build_optimizer(config.optim, model),
        build_loss(config.train),
        build_pass_graphs(config, model, device, world_size=1),
    )
    inputs = _random_inputs(config, micro_batch, device)

    def forward() -> torch.Tensor:
        precision = config.train.mixed_precision
        half = torch.float16 if precision == "fp16" else torch.bfloat16
        with torch.autocast(device.type, half, enabled=precision != "no"):
            return model(inputs.image).float()

    def plain(inputs: PassInputs) -> torch.Tensor:
        losses = loss(forward(), inputs.target)
        ((losses * inputs.weight).sum() * inputs.scale).backward()
        return losses.detach().sum().expand(4).clone()

    def step() -> None:
        graphs.run(plain, inputs)
        optimizer.step()
        optimizer.zero_grad()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step_s = median_s(step, device, seconds)
    model.eval()
    with torch.no_grad():
        eval_s = median_s(lambda: forward(), device, seconds / 5)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return Probe(step_s, eval_s / micro_batch, peak)


def median_s(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median seconds of a call, in chunks that wait for the device once, after a first call that does not count."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    wait()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < FEWEST_STEPS or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        for _ in range(CHUNK if device.type == "cuda" else 1):
            work()
        wait()
        times.append((time.perf_counter() - start) / (CHUNK if device.type == "cuda" else 1))
    return statistics.median(times)


def _random_inputs(config: RunConfig, batch: int, device: torch.device) -> PassInputs:
    """Random pictures and targets: on zeros a GPU draws less power, and runs faster than on pictures."""
    size = config.data.image_size_px
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(batch, size, size, 3, generator=draw).mul_(255).to(device).permute(0, 3, 1, 2)
    target = torch.randint(0, 2, (batch, size, size), generator=draw).to(device)
    weight = torch.ones(batch, device=device)
    scale = torch.tensor(1 / batch, device=device)
    return PassInputs(normalise(image, config.train.channels_last), target, weight, scale)
