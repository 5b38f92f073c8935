"""How long a step will take: on a GPU by its operations and what the GPU can do, on this CPU by a short measurement."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from petseg.config import RunConfig
from petseg.footprint.hardware import Gpu
from petseg.footprint.memory import Footprint, build_teacher, measure_footprint, time_pass
from petseg.footprint.operations import roofline_s
from petseg.models.build import build_model

# What single kernels of torch reach of the best on a data sheet. Fitted to three steps of an H100 in bf16 at 256 px
# (resnet34_unet, batch 32 and 128: 22.6 and 73.2 ms; unet, batch 32: 41.5 ms), which they predict within 16 %: large
# convolutions reach some 60 % of the arithmetic, and strided bf16 maps a third to two fifths of the memory's rate.
MATH_SHARE = 0.65
BANDWIDTH_SHARE = 0.38
LAUNCH_S = 3e-6  # between two kernels of a CUDA graph, and the least that a kernel takes
PROBE_PASSES, PATIENCE_S = 3, 10.0
PROBE_SAMPLES = 2  # the fewest with which BatchNorm behind a global pooling can train


@dataclass(frozen=True)
class Forecast:
    """Seconds of one process's work, with data at hand and nothing exchanged between processes."""

    step_s: float  # of an optimizer step
    eval_s_per_sample: float
    known_by: str


def forecast_on_gpu(memory: Footprint, gpu: Gpu, micro_batches: int) -> Forecast:
    """Each operation is bound by arithmetic, by memory or by its launch."""
    rates = {
        "half_flops": gpu.half_tflops * 1e12 * MATH_SHARE,
        "full_flops": gpu.full_tflops * 1e12 * MATH_SHARE,
        "bytes_per_s": gpu.bandwidth_tb_s * 1e12 * BANDWIDTH_SHARE,
        "launch_s": LAUNCH_S,
    }
    step_s = micro_batches * roofline_s(memory.pass_ops, **rates) + roofline_s(memory.update_ops, **rates)
    eval_s = roofline_s(memory.eval_ops, **rates) / memory.micro_batch
    known_by = (
        f"each operation at {MATH_SHARE:.0%} of {gpu.name}'s arithmetic or {BANDWIDTH_SHARE:.0%} of its memory's rate"
    )
    return Forecast(step_s, eval_s, known_by)


def forecast_on_cpu(config: RunConfig, memory: Footprint, micro_batches: int) -> Forecast:
    """Time some passes over a few samples here; the quickest counts, since neighbours only slow one down."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(config.model, memory.num_classes, config.data.image_size_px, pretrained=False)
        teacher = build_teacher(config, memory.num_classes)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
        teacher = teacher and teacher.to(memory_format=torch.channels_last)
    samples = min(PROBE_SAMPLES, memory.micro_batch)
    measure_footprint(config, model, samples, teacher=teacher)  # the first pass allocates, and chooses kernels
    times = [time_pass(config, model, samples, teacher)]
    while len(times) < PROBE_PASSES and sum(map(sum, times)) < PATIENCE_S:
        times.append(time_pass(config, model, samples, teacher))
    pass_s, eval_s = (min(column) for column in zip(*times, strict=True))
    threads = torch.get_num_threads()
    known_by = f"a pass of {samples} samples on this CPU, {threads} thread{'s' if threads > 1 else ''}"
    return Forecast(micro_batches * pass_s * memory.micro_batch / samples, eval_s / samples, known_by)
