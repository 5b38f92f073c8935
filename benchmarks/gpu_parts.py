"""The parts of benchmarks.gpu, each run as `python -m benchmarks.gpu_parts NAME SETTINGS`: rows as JSON, one a line."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu import REPOSITORY, Row
from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.footprint.forecast import forecast_on_gpu
from petseg.footprint.hardware import find_gpu
from petseg.footprint.memory import footprint
from petseg.models.build import build_model
from petseg.models.norm_relu_pad import composed, norm_relu_pad, why_composed
from petseg.run_folder.layout import load_result, read_metrics
from petseg.training.probe import probe_step, timed

GIB = 2**30


@dataclass(frozen=True)
class Settings:
    """What benchmarks.gpu hands to a part."""

    shards: str
    scratch: str
    minutes: float
    pictures: int
    image_size_px: int
    width: int
    batch_sizes: list[int]
    dice: list[float]
    recipe: str
    epochs: int
    step_s: float

    def config(self, arch: str, batch: int, **changes: Any) -> RunConfig:
        encoder = {"model.encoder": "resnet34"} if arch == "smp_unet" else {"model.width": self.width}
        values = {
            "data.image_size_px": self.image_size_px,
            "model.arch": arch,
            "train.batch_size": batch,
            "train.mixed_precision": "bf16",
            **encoder,
        }
        return with_values(RunConfig(), values | {name.replace("__", "."): value for name, value in changes.items()})


def say(row: Row) -> None:
    sys.stdout.write(json.dumps(asdict(row)) + "\n")
    sys.stdout.flush()


def here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def train_command(settings: Settings, out: Path, flags: list[str]) -> list[str]:
    fixed = ["--data.shards", settings.shards, "--data.image-size-px", str(settings.image_size_px), "--train.no-test"]
    width = ["--model.width", str(settings.width), "--tracking.overlays", "0"]
    return [sys.executable, "petseg/train.py", *flags, *fixed, *width, "--out", str(out)]


def train(settings: Settings, name: str, flags: list[str], **changes: str) -> Path:
    """A run as a user starts it. Raises RuntimeError with its last words where it fails."""
    out = Path(settings.scratch) / name
    done = subprocess.run(
        train_command(settings, out, flags), cwd=REPOSITORY, env=environment(settings) | changes,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{name}: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return out


def environment(settings: Settings) -> dict[str, str]:
    return os.environ | {"PETSEG_CACHE": str(Path(settings.scratch) / "cache")}


def loop(settings: Settings) -> None:
    """petseg/train.py beside the bare step, with strong augmentation, averages and clipping."""
    strong = ["--augment.policy", "strong", "--train.ema-decay", "0.995", "--optim.grad-clip", "1"]
    for arch, batch in step_shapes(settings):
        probe = probe_step(settings.config(arch, batch), batch, here(), settings.step_s)
        flags = ["--model.arch", arch, "--train.batch-size", str(batch), "--train.mixed-precision", "bf16"]
        out = train(settings, f"loop-{arch}-{batch}", [*flags, "--train.epochs", "4", *strong])
        rows = read_metrics(out)
        images_per_s = max(row["perf/images_per_s"] for row in rows[1:])
        bare, last = batch / probe.step_s, rows[-1]
        beside = f"bare step {bare:.4g}, ratio {images_per_s / bare:.3f}, data wait {last['perf/data_wait']:.1%}"
        beside += f", MFU {last['perf/mfu']:.1%}" if "perf/mfu" in last else ""
        say(Row("loop", f"{arch}, batch {batch}, strong", images_per_s, "images/s", beside))


def estimates(settings: Settings) -> None:
    """Time and memory as predicted without a GPU, beside what a probe measures."""
    gpu = find_gpu(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    for arch in ("resnet34_unet", "unet"):
        for batch in settings.batch_sizes:
            config = settings.config(arch, batch)
            predicted = footprint(config, batch, "cuda" if gpu else "cpu")
            probe = probe_step(config, batch, here(), settings.step_s)
            if gpu:
                step_s = forecast_on_gpu(predicted, gpu, 1).step_s
                beside = f"measured {1e3 * probe.step_s:.1f}, ratio {step_s / probe.step_s:.2f}"
                say(Row("estimates", f"{arch}, batch {batch}, time", 1e3 * step_s, "ms a step", beside))
            measured = probe.peak_bytes / GIB
            ratio = f", ratio {predicted.peak_bytes / probe.peak_bytes:.2f}" if probe.peak_bytes else ""
            beside = f"measured {measured:.2f}{ratio}"
            say(Row("estimates", f"{arch}, batch {batch}, memory", predicted.peak_bytes / GIB, "GiB", beside))
            torch.cuda.empty_cache()


def exact(settings: Settings) -> None:
    """Deterministic runs: twice, and one that is killed within an epoch and resumed; and what that costs."""
    batch = settings.batch_sizes[0]
    flags = [
        "--model.arch", "resnet34_unet", "--train.batch-size", str(batch), "--train.mixed-precision", "bf16",
        "--train.epochs", "3", "--augment.policy", "strong", "--train.log-every", "1", "--optim.grad-clip", "1",
    ]  # fmt: skip
    deterministic = [*flags, "--train.deterministic"]
    first = train(settings, "exact-1", deterministic)
    say(Row("exact", "deterministic, once", weights_hash(first)))
    say(Row("exact", "deterministic, again", weights_hash(train(settings, "exact-2", deterministic))))
    out = Path(settings.scratch) / "exact-3"
    kill_after_first_epoch(train_command(settings, out, deterministic), settings, out)
    say(Row("exact", "killed and resumed", weights_hash(train(settings, "exact-3", deterministic))))
    free = train(settings, "exact-free", flags)
    speeds = [max(row["perf/images_per_s"] for row in read_metrics(folder)[1:]) for folder in (first, free)]
    say(Row("exact", "cost of deterministic", 100 * (speeds[1] / speeds[0] - 1), "%", f"{speeds[0]:.0f} images/s"))


def kill_after_first_epoch(command: list[str], settings: Settings, out: Path) -> None:
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not read_metrics(out):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def weights_hash(out: Path) -> str:
    """sha256 over the files of the newest weights that a finished run keeps."""
    paths = sorted(path for path in out.rglob("*.safetensors"))
    if not paths:
        raise RuntimeError(f"{out} has no weights")
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def dice(settings: Settings) -> None:
    """Seconds of training and validation to values of val Dice, and the best."""
    epochs = ["--train.epochs", str(settings.epochs)] if settings.epochs else []
    out = Path(settings.scratch) / "dice"
    full_size = ["--train.start-size-px", "0"] if settings.image_size_px < 256 else []
    flags = ["--recipe", settings.recipe, *epochs, *full_size]
    began = time.perf_counter()
    process = subprocess.Popen(
        train_command(settings, out, flags), cwd=REPOSITORY, env=environment(settings),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    reached: set[float] = set()
    best, count, first_s = 0.0, 0, 0.0
    while True:
        ended = process.poll() is not None
        rows = read_metrics(out)
        for row in rows[count:]:
            first_s = first_s or time.perf_counter() - began
            best = max(best, row["val/dice"])
            for goal in settings.dice:
                if row["val/dice"] >= goal and goal not in reached:
                    reached.add(goal)
                    seconds = time.perf_counter() - began
                    say(Row("dice", f"val Dice {goal:g}", seconds, "s all in", f"after epoch {row['epoch']:.0f}"))
        count = len(rows)
        if ended:
            break
        time.sleep(0.1)
    assert process.stderr is not None
    if process.returncode:
        raise RuntimeError(process.stderr.read().decode(errors="replace").strip()[-300:])
    for goal in sorted(set(settings.dice) - reached):
        say(Row("dice", f"val Dice {goal:g}", "not reached"))
    result = load_result(out)
    seconds = time.perf_counter() - began
    say(Row("dice", f"best val Dice of recipe {settings.recipe}", best, "", f"{count} epochs, {seconds:.0f} s all in"))
    if result is not None:
        say(Row("dice", "to the first epoch's end", first_s, "s", f"{result.images_per_s:.0f} images/s"))


PARTS: dict[str, Callable[[Settings], None]] = {
    "steps": steps,
    "loop": loop,
    "estimates": estimates,
    "exact": exact,
    "dice": dice,
    "compiled": compiled,
    "fused": fused,
}

if __name__ == "__main__":
    try:
        PARTS[sys.argv[1]](Settings(**json.loads(Path(sys.argv[2]).read_text())))
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
