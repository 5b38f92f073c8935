import errno
import json
from pathlib import Path

import pytest
import torch

from petseg import checkpoint
from petseg.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from petseg.config import ModelConfig, OptimConfig
from petseg.models import build_model
from petseg.optim import build_optimizer


def build(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = build_model(ModelConfig(width=4)).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(OptimConfig(name="adamw", weight_decay=0.1), model)
    step(model, optimizer, steps)
    return model, optimizer


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, times: int) -> None:
    x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    for _ in range(times):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def save(folder: Path, number: int, best: int, steps: int = 1) -> None:
    save_checkpoint(folder, number, *build(steps), {"epoch": number, "best": {"step": best}, "scaler": None})


def steps_in(folder: Path) -> list[int]:
    return [c.step for c in list_checkpoints(folder)]


def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, 2, best=2, steps=2)
    model, optimizer = build(0)
    load_checkpoint(list_checkpoints(tmp_path)[-1], model, optimizer)
    step(model, optimizer, 2)
    unbroken, _ = build(4)
    for (name, ours), theirs in zip(model.state_dict().items(), unbroken.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    moment = next(s["exp_avg"] for p, s in optimizer.state.items() if p.ndim == 4 and p.shape[1] > 1)
    assert moment.is_contiguous(memory_format=torch.channels_last)


def test_the_two_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for number, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        save(tmp_path, number, best)
    assert steps_in(tmp_path) == [2, 4, 5]


def test_a_half_written_folder_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1, best=1)
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / ".step-00000003.tmp").mkdir()
    assert steps_in(tmp_path) == [1]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_a_full_disk_costs_no_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    save(tmp_path, 1, best=1)
    save(tmp_path, 2, best=2)
    real = checkpoint.save_file

    def full(tensors: dict, path: Path) -> None:
        if path.name == file:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 3, best=3)
    assert steps_in(tmp_path) == [1, 2]
    assert not list(tmp_path.glob(".*"))


def test_no_pickle_is_in_it(tmp_path: Path) -> None:
    save(tmp_path, 1, best=1)
    (folder,) = tmp_path.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]


def test_another_format_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1, best=1)
    path = tmp_path / "step-00000001" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 9}))
    with pytest.raises(ValueError, match="step-00000001 has checkpoint format 9, not 2"):
        list_checkpoints(tmp_path)
