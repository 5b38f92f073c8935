"""The parts of benchmarks.gpu, each run as `python -m benchmarks.gpu_parts NAME SETTINGS`: rows as JSON, one a line."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu import REPOSITORY, Row
from benchmarks.gpu_settings import Settings, here, say
from benchmarks.gpu_steps import compiled, fused, step_shapes, steps
from petseg.footprint.forecast import forecast_on_gpu
from petseg.footprint.hardware import find_gpu
from petseg.footprint.memory import footprint
from petseg.run_folder.layout import load_result, read_metrics
from petseg.training.probe import probe_step

GIB = 2**30


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
