"""Gradient checkpointing changes memory, and no bit of a number."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from petseg.config import ModelConfig, RunConfig
from petseg.models.build import build_model
from petseg.models.checkpointing import checkpoint_stages
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import read_metrics
from petseg.training.loop import train
from tests.petseg.tensors import assert_same_tensors

Tiny = Callable[..., RunConfig]
MOBILE = "tu-mobilenetv3_small_050"


def kept_bytes(model: nn.Module, image: torch.Tensor) -> int:
    """What autograd keeps of a forward and backward pass."""
    seen: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(image)
        kept = sum(seen.values())
        logits.float().square().mean().backward()
    return kept


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [
        ("unet", ""),
        ("resnet34_unet", ""),
        ("fpn", MOBILE),
        ("segformer", "mit_b0"),
        pytest.param("linknet", "densenet121", marks=pytest.mark.slow),  # adds to a list that it has handed over
        pytest.param("upernet", "tu-resnetv2_50", marks=pytest.mark.slow),
        pytest.param("fpn", "tu-swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
        pytest.param("dpt", "vit_tiny_patch16_224", marks=pytest.mark.slow),
        pytest.param("unetplusplus", "efficientnet-b0", marks=pytest.mark.slow),
    ],
)
def test_gradients_and_statistics_are_the_same_to_the_bit(arch: str, encoder: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(arch=arch, encoder=encoder, width=64 if encoder else 8)  # type: ignore[arg-type]
    plain = build_model(config, image_size_px=64).train()
    again = copy.deepcopy(plain)
    names = checkpoint_stages(again)
    assert names
    for _ in range(2):
        image = torch.randn(2, 3, 64, 64)
        assert kept_bytes(again, image) < 0.5 * kept_bytes(plain, image)
    assert list(plain.state_dict()) == list(again.state_dict())
    ours, theirs = again.state_dict(), plain.state_dict()
    assert_same_tensors(ours, theirs)
    counts = [int(value) for name, value in ours.items() if name.endswith("num_batches_tracked")]
    assert set(counts) <= {2}
    for p, q in zip(again.parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)


def test_stages_are_neither_single_layers_nor_the_whole() -> None:
    names = checkpoint_stages(build_model(ModelConfig(arch="resnet34_unet", width=4)))
    assert names[:3] == ["encoder.stages.0", "encoder.stages.1.0", "encoder.stages.1.1"]
    assert names[-6:] == ["bridge", "decoder.0", "decoder.1", "decoder.2", "decoder.3", "decoder.4"]


def test_evaluation_is_as_before() -> None:
    model = build_model(ModelConfig(width=4))
    image = torch.randn(1, 3, 32, 32)
    before = model.eval()(image)
    checkpoint_stages(model)
    assert torch.equal(model(image), before)
    with torch.no_grad():
        model.train()(image)


class Overwriting(nn.Module):
    """Changes in place what it has given to a stage that keeps nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
        self.rest = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 1
        y = self.stage(x)
        x.add_(1)
        return y


def test_a_model_that_overwrites_a_stages_input_is_refused() -> None:
    model = Overwriting().train()
    assert checkpoint_stages(model) == ["stage"]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(torch.randn(1, 3, 4, 4)).sum().backward()


class Appending(nn.Module):
    """Gives a stage a list that it appends to afterwards, as DenseNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Joined()
        self.rest = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [x]
        first = self.stage(maps)
        maps.append(first)
        return self.stage(maps)


class Joined(nn.Module):
    """The sum of the maps in a list, through two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.layers(torch.stack(maps).sum(dim=0))


def test_a_list_that_a_network_appends_to_is_read_as_it_was() -> None:
    torch.manual_seed(0)
    plain = Appending().train()
    kept = copy.deepcopy(plain)
    assert checkpoint_stages(kept) == ["stage"]
    image = torch.randn(1, 3, 4, 4)
    for model in (plain, kept):
        model(image).square().sum().backward()
    for one, other in zip(plain.parameters(), kept.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_a_run_ends_with_the_same_numbers(tiny: Tiny, tmp_path: Path) -> None:
    ends = []
    for name, on in (("plain", False), ("again", True)):
        config = tiny(train__grad_checkpointing=on, train__accumulation_steps=2, train__mixed_precision="bf16")
        result = train(config, tmp_path / name)
        last = list_checkpoints(tmp_path / name / "checkpoints")[-1]
        rows = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(tmp_path / name)]
        ends.append((result.metrics, rows, load_file(last.folder / "model.safetensors")))
    (metrics, rows, weights), (metrics_again, rows_again, weights_again) = ends
    assert metrics == metrics_again
    assert rows == rows_again
    assert_same_tensors(weights_again, weights)


DDP = """
import copy, sys, torch, warnings
import torch.distributed as dist, torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel as DDP
from petseg.config import ModelConfig
from petseg.models.build import build_model
from petseg.models.checkpointing import checkpoint_stages

def work(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    torch.manual_seed(0)
    plain = build_model(ModelConfig(arch="resnet34_unet", width=4)).train()
    ends = []
    as_on_gpu, as_on_cpu = {"static_graph": True}, {"find_unused_parameters": True}
    for on, settings in ((False, {}), (True, {}), (True, as_on_gpu), (True, as_on_cpu)):
        bare = copy.deepcopy(plain)
        if on:
            checkpoint_stages(bare)
        model = DDP(bare, gradient_as_bucket_view=True, **settings)
        optimizer = torch.optim.SGD(bare.parameters(), 0.1)
        for step in range(3):
            image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2 * step + rank))
            model(image).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(bare.state_dict())
    for end in ends[1:]:
        for name in end:
            assert torch.equal(end[name], ends[0][name]), name
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_numbers(tmp_path: Path) -> None:
    """Under DDP as on CPUs and, with its static graph, as on GPUs."""
    script = tmp_path / "script.py"
    script.write_text(DDP)
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path / "meet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
