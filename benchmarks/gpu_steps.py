"""The parts of benchmarks.gpu that time steps and layers alone: ours and those of others."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.gpu import Row
from benchmarks.gpu_settings import Settings, here, say
from petseg.models.build import build_model
from petseg.models.norm_relu_pad import composed, norm_relu_pad, why_composed
from petseg.training.probe import probe_step, timed


class PlainUNet(nn.Module):
    """nnU-Net's plain 2D network without its deep supervision: two 3x3 convolutions with InstanceNorm and LeakyReLU on
    each of six stages, strided convolutions down, transposed ones up."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()

        def stage(channels: int, out: int, stride: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for into, step in ((channels, stride), (out, 1)):
                norm = nn.InstanceNorm2d(out, affine=True)
                layers += [nn.Conv2d(into, out, 3, step, 1), norm, nn.LeakyReLU(0.01, inplace=True)]
            return nn.Sequential(*layers)

        pairs = list(itertools.pairwise(widths))
        self.downs = nn.ModuleList([stage(3, widths[0], 1), *(stage(a, b, 2) for a, b in pairs)])
        self.ups = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.merges = nn.ModuleList(stage(2 * a, a, 1) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = []
        for down in self.downs:
            x = down(x)
            maps.append(x)
        maps.pop()
        for up, merge in zip(self.ups, self.merges, strict=True):
            x = merge(torch.cat([up(x), maps.pop()], dim=1))
        return self.head(x)


def library_step(model: nn.Module, settings: Settings, batch: int, compiled: bool) -> Callable[[], None]:
    """A step as a user of a public library writes it: bf16, channels_last, fused Adam, cudnn.benchmark."""
    device, size = here(), settings.image_size_px
    torch.backends.cudnn.benchmark = True
    model = model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    forward = torch.compile(model) if compiled else model
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(batch, 3, size, size, generator=draw).to(device).contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, 2, (batch, size, size), generator=draw).to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(forward(image).float(), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def steps(settings: Settings) -> None:
    """The bare step: ours with and without graphs, and those of others, eager."""
    for arch, batch in step_shapes(settings):
        for graphs in (True, False) if here().type == "cuda" else (False,):
            probe = probe_step(settings.config(arch, batch, train__cuda_graphs=graphs), batch, here(), settings.step_s)
            what = f"{arch}, batch {batch}, {'one launch a pass' if graphs else 'eager'}"
            say(Row("steps", what, batch / probe.step_s, "images/s", f"{1e3 * probe.step_s:.1f} ms"))
            torch.cuda.empty_cache()
    for name, build, batches in others(settings):
        for batch in batches:
            _, step_s = timed(library_step(build(), settings, batch, compiled=False), here(), settings.step_s)
            say(Row("steps", f"{name}, batch {batch}, eager", batch / step_s, "images/s", f"{1e3 * step_s:.1f} ms"))
            torch.cuda.empty_cache()


def step_shapes(settings: Settings) -> list[tuple[str, int]]:
    first, *larger = settings.batch_sizes
    return [("resnet34_unet", first), ("unet", first), *(("resnet34_unet", batch) for batch in larger)]


def others(settings: Settings) -> list[tuple[str, Callable[[], nn.Module], list[int]]]:
    width = settings.width // 2
    widths = tuple(min(width * 2**stage, 8 * settings.width) for stage in range(6))
    found: list[tuple[str, Callable[[], nn.Module], list[int]]] = [
        ("nnU-Net-like plain UNet", lambda: PlainUNet(widths), settings.batch_sizes[:1])
    ]
    try:
        config = settings.config("smp_unet", settings.batch_sizes[0]).model
        build_model(config)
    except ValueError as error:
        say(Row("steps", "segmentation-models-pytorch", str(error)))
        return found
    smp = ("smp Unet-resnet34", lambda: build_model(config), settings.batch_sizes)
    return [smp, *found]


def compiled(settings: Settings) -> None:
    """torch.compile: ours with and without graphs, and the library's, with the seconds of the first step."""
    for arch, batch in step_shapes(settings):
        for graphs in (True, False) if here().type == "cuda" else (False,):
            config = settings.config(arch, batch, train__compile="always", train__cuda_graphs=graphs)
            probe = probe_step(config, batch, here(), settings.step_s)
            what = f"{arch}, batch {batch}, compiled{', one launch a pass' if graphs else ''}"
            beside = f"first step {probe.first_s:.1f} s, then {1e3 * probe.step_s:.1f} ms"
            say(Row("compiled", what, batch / probe.step_s, "images/s", beside))
            torch.compiler.reset()
            torch.cuda.empty_cache()
        for name, build, batches in others(settings):
            if arch == "resnet34_unet" and batch in batches and name.startswith("smp"):
                say_compiled(f"{name}, batch {batch}, compiled", build(), settings, batch)


def say_compiled(what: str, model: nn.Module, settings: Settings, batch: int) -> None:
    step = library_step(model, settings, batch, compiled=True)
    first_s, step_s = timed(step, here(), settings.step_s)
    say(Row("compiled", what, batch / step_s, "images/s", f"first step {first_s:.1f} s, then {1e3 * step_s:.1f} ms"))
    torch.compiler.reset()
    torch.cuda.empty_cache()


def fused(settings: Settings) -> None:
    """BatchNorm, ReLU and reflect padding, forward and backward: one operator beside the layers, eager and compiled."""
    batch, size = settings.batch_sizes[0], settings.image_size_px
    for channels, side, with_residual in ((64, size // 4, True), (32, size // 2, False), (64, size, False)):
        x, residual = (bf16_map(batch, channels, side) for _ in range(2))
        beside = residual if with_residual else None
        norm = nn.BatchNorm2d(channels).to(here())
        grad = bf16_map(batch, channels, side + 2).detach()
        ways: dict[str, Callable[..., torch.Tensor]] = {"one operator": norm_relu_pad, "layers": composed}
        if here().type == "cuda":  # a CPU's compiler takes minutes
            ways["layers, compiled"] = torch.compile(composed)
        if (why := why_composed(x, norm, 1)) is not None:
            say(Row("fused", "one operator", why))
            del ways["one operator"]
        for name, way in ways.items():
            step = partial(pass_of, way, (x, norm, 1, beside), grad)
            _, seconds = timed(step, here(), settings.step_s / 3)
            rate = 2 * x.numel() * x.element_size() / seconds / 1e9
            what = f"{channels} channels of {side} px, batch {batch}{', residual' if with_residual else ''}: {name}"
            say(Row("fused", what, 1e3 * seconds, "ms", f"{rate:.0f} GB/s if each value were read and written once"))
        torch.compiler.reset()


def bf16_map(batch: int, channels: int, side: int) -> torch.Tensor:
    x = torch.randn(batch, channels, side, side).to(here(), torch.bfloat16)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def pass_of(way: Callable[..., torch.Tensor], arguments: tuple[Any, ...], grad: torch.Tensor) -> None:
    for tensor in (arguments[0], arguments[3]):
        if tensor is not None:
            tensor.grad = None
    way(*arguments).backward(grad)
