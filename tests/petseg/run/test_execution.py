"""torch.compile: when, for which batches, and that names and numbers stay."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.data.plan import Batching, EpochOrder, train_plan
from petseg.models.resnet34_unet import ResNet34UNet
from petseg.models.unet import UNet
from petseg.run.execution import WORTHWHILE_STEPS, compile_forward, compile_wanted, full_pass_sizes, why_not_compile

Tiny = Callable[..., RunConfig]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 6))
def test_the_sizes_are_those_of_the_plan(batch_size: int, passes: int, world_size: int) -> None:
    order = EpochOrder([batch_size], 1, 0, 1)
    for rank in range(min(world_size, batch_size)):
        planned = {
            len(p.ids) for p in train_plan(order, Batching(batch_size, passes, rank, world_size)) if not p.filler
        }
        sizes = full_pass_sizes(batch_size, passes, rank, world_size)
        assert planned == sizes
        assert len(sizes) <= 2


def test_auto_waits_for_a_long_run_on_a_gpu(tiny: Tiny) -> None:
    auto = tiny(train__compile="auto")
    assert not compile_wanted(tiny(), GPU, 10**9)
    assert not compile_wanted(auto, CPU, 10**9)
    assert not compile_wanted(auto, GPU, WORTHWHILE_STEPS - 1)
    assert compile_wanted(auto, GPU, WORTHWHILE_STEPS) == (why_not_compile(GPU) is None)
    grows = {"augment.mode": "add", "augment.policy": "flip"}
    assert not compile_wanted(with_values(auto, grows), GPU, 10**9)
    with pytest.raises(ValueError, match=r"augment.mode = add makes batches of any size"):
        compile_wanted(with_values(tiny(train__compile="always"), grows), CPU, 1)


def test_a_missing_compiler_is_named(tiny: Tiny, tmp_path: Path) -> None:
    message = r"train.compile = always: there is no C\+\+ compiler here.*install g\+\+"
    nowhere = {"cpp.cxx": (str(tmp_path / "g++"),)}
    with torch._inductor.config.patch(nowhere), pytest.raises(ValueError, match=message):
        compile_wanted(tiny(train__compile="always"), CPU, 1)


def test_compilation_and_checkpointing_exclude_each_other(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"train.compile = 'auto': leave it out with train.grad_checkpointing"):
        tiny(train__compile="auto", train__grad_checkpointing=True)


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
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(("build", "graphs"), [(UNet, 9), (ResNet34UNet, 13)])
def test_blocks_of_one_kind_and_shape_are_compiled_once(
    build: Callable[..., nn.Module], graphs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tracer alone, which says what would be compiled: 9 of 9 blocks of a UNet, 13 of 22 of a ResNet34UNet."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("petseg.run.execution.torch.compile", functools.partial(torch.compile, backend="aot_eager"))
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
