"""How long a training step takes on the device that is here: some steps are run on random pictures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from petseg.config import RunConfig
from petseg.data.inputs import normalise
from petseg.footprint.memory import build_teacher
from petseg.losses import build_loss, distillation
from petseg.models.build import build_model
from petseg.optim import build_optimizer
from petseg.run.compiling.forward import compile_forward
from petseg.run.determinism import set_arithmetic
from petseg.run.graphs import PassInputs, build_pass_graphs

PROBE_S = 5.0
FEWEST_TIMES = 3
CHUNK = 5  # steps between two looks at the clock, which wait for the device


@dataclass(frozen=True)
class Probe:
    """What was measured in one process."""

    first_s: float  # of the first step, in which kernels are compiled, chosen and captured
    step_s: float  # of an optimizer step without the wait for data, the median
    eval_s_per_sample: float
    peak_bytes: int  # allocated on the GPU, 0 on a CPU


def probe_step(
    config: RunConfig, micro_batch: int, device: torch.device, seconds: float = PROBE_S, num_classes: int = 2
) -> Probe:
    """Train a fresh model on one random micro-batch for so long, a pass a step, as a run would (petseg.training.step).

    Raises RuntimeError where the device's memory does not suffice.
    """
    set_arithmetic(config)
    with torch.random.fork_rng(devices=[]):
        model = build_model(config.model, num_classes, config.data.image_size_px, pretrained=False).to(device)
        teacher = build_teacher(config, num_classes)
    teacher = teacher and teacher.to(device)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
        teacher = teacher and teacher.to(memory_format=torch.channels_last)
    if config.train.compile == "always":
        compile_forward(model, {(micro_batch, 3, *config.data.size_px)}, config.data.cache_dir)
    optimizer, loss = build_optimizer(config.optim, model), build_loss(config.train)
    graphs = build_pass_graphs(config, model, device, world_size=1)
    inputs = _random_inputs(config, micro_batch, device)

    def forward(network: nn.Module = model) -> torch.Tensor:
        precision = config.train.mixed_precision
        half = torch.float16 if precision == "fp16" else torch.bfloat16
        with torch.autocast(device.type, half, enabled=precision != "no"):
            return network(inputs.image).float()

    def plain(inputs: PassInputs) -> torch.Tensor:
        with torch.no_grad():
            taught = forward(teacher) if teacher else None
        logits = forward()
        losses = loss(logits, inputs.target)
        if taught is not None:
            losses = losses + distillation(logits, taught, inputs.target, config.distill.temperature)
        ((losses * inputs.weight).sum() * inputs.scale).backward()
        return losses.detach().sum().expand(4).clone()

    def step() -> None:
        graphs.run(plain, inputs)
        optimizer.step()
        optimizer.zero_grad()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first_s, step_s = timed(step, device, seconds)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    model.eval()
    with torch.no_grad():
        _, eval_s = timed(forward, device, seconds / 5)
    return Probe(first_s, step_s, eval_s / micro_batch, peak)


def timed(work: Callable[[], object], device: torch.device, seconds: float) -> tuple[float, float]:
    """Seconds of the first call, and of the calls after it, which go on for so long: the median."""
    on_gpu = device.type == "cuda"
    calls = CHUNK if on_gpu else 1
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    began = time.perf_counter()
    work()
    wait()
    first_s = time.perf_counter() - began
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < FEWEST_TIMES or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        wait()
        times.append((time.perf_counter() - start) / calls)
    return first_s, statistics.median(times)


def _random_inputs(config: RunConfig, batch: int, device: torch.device) -> PassInputs:
    """Random pictures and targets: on zeros a GPU draws less power, and runs faster than on pictures."""
    height, width = config.data.size_px
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(batch, height, width, 3, generator=draw).mul_(255).to(device).permute(0, 3, 1, 2)
    target = torch.randint(0, 2, (batch, height, width), generator=draw).to(device)
    weight = torch.ones(batch, device=device)
    scale = torch.tensor(1 / batch, device=device)
    return PassInputs(normalise(image, config.train.channels_last), target, weight, scale)
