"""Compiled forward passes: for which batches, and that names and numbers stay."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from petseg.models.layers import DoubleConv
from petseg.models.resnet34_unet import ResNet34UNet
from petseg.models.unet import UNet
from petseg.run.compiling.artifacts import SharedArtifacts
from petseg.run.compiling.forward import compile_forward, why_not_compile
from tests.petseg.tensors import assert_same_tensors

CPU = torch.device("cpu")


def trace_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace what would be compiled, and run it without Inductor."""
    tracer = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr("petseg.run.compiling.forward.torch.compile", tracer)


def test_what_is_compiled_runs_for_the_given_shapes_in_training_and_while_it_is_enabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[int, ...]] = []

    def stand_in(plain: Callable[..., torch.Tensor], dynamic: bool) -> Callable[..., torch.Tensor]:
        assert not dynamic
        return lambda x: ran.append(tuple(x.shape)) or plain(x)

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr("petseg.run.compiling.forward.torch.compile", stand_in)
    full, last = (4, 3, 8, 8), (2, 3, 8, 8)
    model = DoubleConv(3, 2).train()
    compiled = compile_forward(model, {full, last}, str(tmp_path))
    for shape in (full, (3, 3, 8, 8), (4, 3, 6, 6), last):
        model(torch.zeros(shape))
    assert ran == [full, last]
    assert not compiled.running
    model.eval()(torch.zeros(full))
    compiled.enabled = False
    model.train()(torch.zeros(full))
    assert ran == [full, last]


@pytest.mark.slow
def test_only_full_batches_in_training_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why := why_not_compile(CPU):
        pytest.skip(why)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).train()
    names, image = list(model.state_dict()), torch.randn(4, 3, 8, 8)
    plain = model.forward
    expected = plain(image)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_forward(model, {(4, 3, 8, 8), (3, 3, 8, 8)}, str(tmp_path / "cache"))
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(image), expected)
    for size in (3, 2, 1, 4, 2):
        model(image[:size]).sum().backward()
    model(image[..., :6, :6]).sum().backward()  # as in progressive resizing
    model.eval()(image)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert any((tmp_path / "cache" / "inductor").iterdir())


# torch hides this warning of its own, unless warnings are errors
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(("build", "graphs"), [(UNet, 9), (ResNet34UNet, 13)])
def test_blocks_of_one_kind_and_shape_are_compiled_once(
    build: Callable[..., nn.Module], graphs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tracer alone, which says what would be compiled: 9 of 9 blocks of a UNet, 13 of 22 of a ResNet34UNet."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    trace_alone(monkeypatch)
    torch.manual_seed(0)
    model = build(width=4).train()
    names, image = list(model.state_dict()), torch.randn(3, 3, 32, 32)
    plain = copy.deepcopy(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_forward(model, {(3, 3, 32, 32)}, str(tmp_path))
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(image), plain(image))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    model.train()(image[:2])
    model.eval()(image)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.slow
def test_a_warm_up_compiles_and_leaves_the_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    trace_alone(monkeypatch)
    torch.manual_seed(0)
    model = UNet(width=4).eval()
    before = copy.deepcopy(model.state_dict())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = compile_forward(model, {(2, 3, 32, 32)}, str(tmp_path), enabled=False)
    image = torch.randn(2, 3, 32, 32)
    model.train()(image)
    assert not torch._dynamo.utils.counters["stats"]  # not enabled, so nothing is compiled
    model.load_state_dict(before)
    model.eval()
    assert compiled.warm_up(SharedArtifacts((), CPU)) > 0
    assert not model.training
    assert not compiled.enabled
    assert all(p.grad is None for p in model.parameters())
    assert_same_tensors(dict(model.state_dict()), dict(before))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 1
    compiled.enabled = True
    model.train()(image).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
