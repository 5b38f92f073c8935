"""What petseg.estimate predicts, against real steps whose every tensor is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from petseg.config import ModelConfig, RunConfig
from petseg.config.values import with_values
from petseg.data.store import open_store
from petseg.estimate import main
from petseg.footprint import memory
from petseg.footprint.hardware import GPUS, find_gpu
from petseg.footprint.memory import Footprint, footprint, grown_batch, largest_batch, measure_footprint
from petseg.footprint.operations import OpCounter
from petseg.footprint.utilization import flops_per_image, mfu_row, model_flops_utilization
from petseg.inference.weights_file import load_model
from petseg.inference.winner import write_winner
from petseg.models.build import build_model
from petseg.run.batches import take_step, train_batches
from petseg.run.parts import build_parts
from petseg.run.run import new_run
from petseg.training.given_weights import load_teacher
from petseg.training.loop import train
from petseg.training.step import train_step
from shards.command import run_command

Tiny = Callable[..., RunConfig]
KIB = 2**10
MOBILE = "tu-mobilenetv3_small_050"


def config_of(**changes: Any) -> RunConfig:
    values = {"data.image_size_px": 64, "model.width": 8}
    return with_values(RunConfig(), values | {name.replace("__", "."): v for name, v in changes.items()})


# --- counting


@pytest.mark.parametrize("arch", ["unet", "resnet34_unet"])
def test_flops_are_those_of_torchs_counter(arch: str) -> None:
    config = config_of(model__arch=arch, train__grad_checkpointing=True)
    model = build_model(config.model)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, 64, 64)).sum().backward()
    assert flops_per_image(config) == counter.get_total_flops() / 2
    assert 1.2 < footprint(config, 2, "cpu").flops_per_sample / flops_per_image(config) < 1.4


# --- prediction against measurement

CASES = [
    {},
    {"train__mixed_precision": "bf16"},
    {"train__mixed_precision": "bf16", "train__grad_checkpointing": True},
    {"data__image_size_px": 128, "train__ema_decay": 0.99, "train__accumulation_steps": 2, "optim__name": "adamw"},
    {"model__arch": "resnet34_unet", "model__up": "transposed"},
    {"model__arch": "resnet34_unet", "train__mixed_precision": "bf16", "data__image_size_px": 128},
    {"model__arch": "resnet34_unet", "optim__name": "muon", "train__loss": "lovasz", "train__channels_last": False},
    pytest.param(
        {"model__arch": "fpn", "model__encoder": MOBILE, "train__mixed_precision": "bf16"}, marks=pytest.mark.slow
    ),
    pytest.param({"model__arch": "fpn", "model__encoder": MOBILE}, marks=pytest.mark.slow),
    pytest.param(
        {"model__arch": "segformer", "model__encoder": "mit_b0", "train__grad_checkpointing": True},
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("changes", CASES, ids=lambda changes: " ".join(map(str, changes.values())))
def test_a_real_step_takes_what_is_predicted(tiny: Tiny, changes: dict[str, Any], tmp_path: Path) -> None:
    """The step of petseg.training.step itself, on real pictures; its tensors are counted from the weights on."""
    config = tiny(**{"model__width": 8} | changes)
    check_a_step(config, tmp_path)


@pytest.mark.parametrize("size", [pytest.param(16, marks=pytest.mark.slow), 2])
def test_a_teacher_is_predicted_too(tiny: Tiny, size: int, tmp_path: Path) -> None:
    """The passes of a large teacher count; a small one adds its weights alone."""
    train(tiny(model__width=size, train__epochs=1), tmp_path / "teacher")
    path = tmp_path / "teacher.safetensors"
    write_winner([tmp_path / "teacher"], path, "best", average=False, measurement=None)
    config = tiny(model__width=4, distill__teacher=str(path), train__mixed_precision="bf16")
    check_a_step(config, tmp_path / "run")
    with_it, without = (footprint(one, 4, "cpu") for one in (config, with_values(config, {"distill.teacher": ""})))
    assert with_it.teacher_bytes == sum(t.nbytes for t in load_model(path)[1].state_dict().values())
    assert without.teacher_bytes == 0
    assert with_it.peak_bytes > without.peak_bytes
    assert flops_per_image(config) == flops_per_image(with_values(config, {"distill.teacher": ""}))


def check_a_step(config: RunConfig, tmp_path: Path) -> None:
    parts = build_parts(config, open_store(config.data.shards), tmp_path, splits=("train",))
    run = new_run(parts, load_teacher(parts))
    parts.model.train()
    batches = train_batches(parts, 1)
    sums = torch.zeros(4, dtype=torch.float64)
    train_step(run, 1, 0, take_step(batches), sums)  # which makes the optimizer's state
    states = [v for s in parts.optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    kept = [*parts.bare_model.parameters(), *parts.bare_model.buffers(), *states]
    kept += [*run.teacher.parameters(), *run.teacher.buffers()] if run.teacher else []
    kept += parts.ema.tensors.values() if parts.ema else []
    micro_batches = take_step(batches)
    with OpCounter(kept) as counter:
        train_step(run, 1, 1, micro_batches, sums)
    parts.close()
    # 15 % is what is promised; the counter is exact, and so is the prediction but for metrics and the like
    predicted = footprint(config, len(micro_batches[0].plan.ids), "cpu").peak_bytes
    assert predicted == pytest.approx(counter.peak_bytes, rel=0.05)


def test_the_parts_add_up() -> None:
    config = config_of(train__ema_decay=0.9, model__arch="resnet34_unet")
    found = footprint(config, 4, "cuda")
    model = build_model(config.model)
    count = sum(p.numel() for p in model.parameters())
    assert found.parameters == count
    assert found.encoder_parameters == sum(p.numel() for p in model.encoder.parameters())
    assert found.gradient_bytes == 4 * count
    assert found.optimizer_bytes == pytest.approx(8 * count, rel=0.01)  # and a step count of each tensor
    assert found.weights_bytes == pytest.approx(found.ema_bytes, rel=0.01)
    kept = found.weights_bytes + found.optimizer_bytes + found.ema_bytes + found.activation_bytes
    assert found.peak_bytes > kept  # gradients and temporaries
    assert found.eval_peak_bytes < found.peak_bytes


@pytest.mark.slow
def test_gradients_that_outlive_a_pass_are_in_the_peak() -> None:
    config = config_of(train__cuda_graphs=False)
    alone, several = (footprint(config, 2, "cuda", world_size=n).peak_bytes for n in (1, 2))
    assert several > alone
    assert footprint(config_of(train__accumulation_steps=2), 2, "cuda").peak_bytes == several


def test_graphs_of_several_processes_exchange_gradients_in_memory_of_their_own() -> None:
    plain, graphs = (footprint(config_of(train__cuda_graphs=on), 2, "cuda", world_size=2) for on in (False, True))
    assert graphs.peak_bytes == plain.peak_bytes + plain.gradient_bytes
    alone = [footprint(config_of(train__cuda_graphs=on), 2, "cuda").peak_bytes for on in (False, True)]
    assert alone[0] == alone[1]


def test_checkpointing_trades_memory_for_arithmetic() -> None:
    plain, again = (footprint(config_of(train__grad_checkpointing=c), 8, "cuda") for c in (False, True))
    assert again.activation_bytes < plain.activation_bytes / 2
    assert again.peak_bytes < 0.8 * plain.peak_bytes


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "encoder"), [("unet", ""), ("fpn", MOBILE), ("segformer", "mit_b0")])
def test_autocast_keeps_what_it_would_keep_on_a_gpu(arch: str, encoder: str) -> None:
    """Torch's own dispatch for the device cuda, which needs no GPU for the shapes of a forward pass."""
    config = config_of(model__arch=arch, model__encoder=encoder, train__mixed_precision="bf16")
    with torch.device("meta"):
        model = build_model(config.model, image_size_px=64)
    with FakeTensorMode():
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    layout = torch.channels_last if p.ndim == 4 else torch.contiguous_format
                    tensor = torch.empty(p.shape, device="cuda").contiguous(memory_format=layout)
                    module._parameters[name] = nn.Parameter(tensor, requires_grad=p.requires_grad)
            for name, b in module._buffers.items():
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype, device="cuda")
        image = torch.empty(4, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)
        with OpCounter([image, *model.parameters(), *model.buffers()]) as counter:
            before = counter.live_bytes
            torch.set_autocast_enabled("cuda", True)  # torch.autocast refuses where there is no GPU
            torch.set_autocast_dtype("cuda", torch.bfloat16)
            try:
                logits = model(image)
            finally:
                torch.set_autocast_enabled("cuda", False)
                torch.clear_autocast_cache()
            kept = counter.live_bytes - before
        del logits
    batch = 4 * 64 * 64 * (3 * 4 + 8 + 2 * 4)  # picture, target, and logits in float32, which are not in the one above
    assert footprint(config, 4, "cuda").activation_bytes - batch == pytest.approx(kept, rel=0.1)


# --- what follows from it


@given(st.integers(0, 1000), st.integers(1, 50), st.integers(0, 100), st.integers(0, 20_000), st.integers(1, 500))
def test_the_largest_batch_fits_and_one_more_does_not(fixed: int, each: int, floor: int, room: int, most: int) -> None:
    def peak(n: int) -> int:
        return max(fixed + each * n, 10 * floor)

    found = largest_batch(peak, room, most)
    assert 0 <= found <= most
    assert found == 0 or peak(found) <= room
    assert found == most or peak(found + 1) > room


def test_copies_grow_a_batch() -> None:
    add = {"augment__mode": "add", "augment__policy": "flip"}
    assert grown_batch(config_of(), 32) == 32
    assert grown_batch(config_of(**add, augment__p=0.5), 32) == 32 + 25  # 16 + 3 * sqrt(8)
    assert grown_batch(config_of(**add, augment__p=1.0), 32) == 64
    assert grown_batch(config_of(augment__mode="add", augment__policy="strong"), 32) == 64
    assert grown_batch(config_of(augment__mode="add", augment__p=1.0), 32) == 32  # nothing to copy
    assert grown_batch(config_of(augment__policy="flip", augment__p=1.0), 32) == 32  # instead of the pictures


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM4 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla V100-SXM2-32GB", "V100 32GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("cpu, 2 threads", None),
    ],
)
def test_gpus_are_known_by_their_drivers_names(driver: str, name: str | None) -> None:
    gpu = find_gpu(driver)
    assert (gpu and gpu.name) == name


def test_every_gpu_is_found_by_its_own_name() -> None:
    assert [find_gpu(gpu.name) for gpu in GPUS] == list(GPUS)


def test_utilization_by_hand() -> None:
    train = config_of(train__mixed_precision="bf16").train
    # 989 images a second of a TFLOP each fill an H100; two of them are half filled
    assert model_flops_utilization(train, 1e12, 989, "NVIDIA H100 80GB HBM3", 1) == pytest.approx(1.0)
    assert model_flops_utilization(train, 1e12, 989, "NVIDIA H100 80GB HBM3", 2) == pytest.approx(0.5)
    assert model_flops_utilization(config_of().train, 1e12, 494, "NVIDIA H100 80GB HBM3", 1) == pytest.approx(1.0)
    assert model_flops_utilization(train, 1e12, 989, "cpu, 2 threads", 1) is None
    assert mfu_row(config_of(), 10.0, torch.device("cpu"), 1) == {}


# --- the command


@pytest.mark.slow
def test_the_command_answers(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data.image-size-px", "64", "--model.width", "8", "--device", "H100"]
    assert run_command(main, [*flags, "--gpu-gb", "2", "--train.batch-size", "8", "--world-size", "2"]) == 0
    out = capsys.readouterr().out
    for text in (
        "2 x H100, 2 GB",
        "0.27 M",
        "batch 8 in 1 micro-batches of 4 samples on each of 2",
        "fits in 2 GB",
        "MFU",
    ):
        assert text in out
    assert run_command(main, ["--device", "GTX 1080"]) == 2
    assert "choose cpu or one of B200" in capsys.readouterr().err


def test_the_command_measures_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["--data.image-size-px", "32", "--model.width", "4", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "a pass of 2 samples on this CPU, 1 thread" in out
    assert "MFU" not in out
    assert "fits" not in out


def test_a_measured_footprint_is_the_predicted_one() -> None:
    config = config_of(train__mixed_precision="bf16")
    model = build_model(ModelConfig(width=8)).to(memory_format=torch.channels_last)
    real, fake = measure_footprint(config, model, 3), footprint(config, 3, "cpu")
    assert isinstance(real, Footprint)
    assert real.peak_bytes == pytest.approx(fake.peak_bytes, rel=0.01)
    assert real.eval_peak_bytes == pytest.approx(fake.eval_peak_bytes, rel=0.01)
    assert real.flops_per_sample == fake.flops_per_sample


@pytest.mark.parametrize("channels_last", [True, False])
def test_weights_are_predicted_in_the_layout_that_they_will_have(
    monkeypatch: pytest.MonkeyPatch, channels_last: bool
) -> None:
    seen: list[nn.Module] = []
    measured = memory.measure_footprint

    def measure(config: RunConfig, model: nn.Module, *rest: Any) -> Footprint:
        seen.append(model)
        return measured(config, model, *rest)

    monkeypatch.setattr(memory, "measure_footprint", measure)
    footprint(config_of(train__channels_last=channels_last), 2, "cpu")
    (model,) = seen
    weights = [p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert weights
    assert {p.is_contiguous(memory_format=torch.channels_last) for p in weights} == {channels_last}
