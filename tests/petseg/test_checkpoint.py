import errno
import json
import logging
import os
import re
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from petseg.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_rank_buffers,
    load_weights,
    newest_loadable,
    save_checkpoint,
)
from petseg.config import ModelConfig, OptimConfig
from petseg.models import build_model
from petseg.optim import build_optimizer
from petseg.run_folder import append_metrics, read_metrics
from shards.command import Failure


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


def test_no_pickle_is_in_it(tmp_path: Path) -> None:
    save(tmp_path, 1, best=1)
    (folder,) = tmp_path.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]


def test_another_format_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1, best=1)
    path = tmp_path / "step-00000001" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 9}))
    with pytest.raises(ValueError, match="step-00000001 has checkpoint format 9, not 3"):
        list_checkpoints(tmp_path)


def test_the_best_of_the_one_before_is_kept_too(tmp_path: Path) -> None:
    """Should the newest be damaged, the one before it has what it names."""
    for number, best in ((1, 1), (2, 1), (3, 1), (4, 4)):
        save(tmp_path, number, best)
    assert steps_in(tmp_path) == [1, 3, 4]
    save(tmp_path, 5, best=4)
    assert steps_in(tmp_path) == [4, 5]


def test_the_same_step_again_stands_beside_the_old_one_until_it_is_whole(tmp_path: Path) -> None:
    for _ in range(3):
        save(tmp_path, 7, best=7)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007.2"]
    assert steps_in(tmp_path) == [7]


def test_files_are_as_readable_as_the_folder(tmp_path: Path) -> None:
    save(tmp_path, 1, best=1)
    (folder,) = tmp_path.iterdir()
    expected = folder.stat().st_mode & 0o666
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("model.safetensors", "optimizer.safetensors", "state.json"), expected
    )


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_a_loaded_checkpoint_is_not_held_open(tmp_path: Path) -> None:
    """On NFS a file in use cannot be deleted, and a deleted one that is mapped kills its reader."""
    save(tmp_path, 1, best=1)
    model, optimizer = build(0)
    load_checkpoint(list_checkpoints(tmp_path)[-1], model, optimizer)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = [(cut, r"bytes of \d+"), (flip, "do not match their CRC-32"), (Path.unlink, "it is missing")]


@pytest.mark.parametrize(("damage", "why"), DAMAGE)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "buffers.safetensors"])
def test_damage_is_named_and_the_one_before_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None], why: str
) -> None:
    buffers = torch.ones(2, 3)
    for number in (1, 2, 3):
        state = {"epoch": number, "best": {"step": 1}, "scaler": None}
        save_checkpoint(tmp_path, number, *build(1), state, buffers)
    newest = list_checkpoints(tmp_path)[-1]
    damage(newest.folder / name)

    def load_all() -> None:
        load_checkpoint(newest, *build(0))
        load_rank_buffers(newest.folder)

    with pytest.raises(Failure, match=f"step-00000003/{re.escape(name)} is damaged .*{why}"):
        load_all()
    found = newest_loadable(tmp_path)
    assert found is not None
    assert found.step == 2
    assert "cannot go on from step-00000003" in caplog.text
    assert name in caplog.text
    load_checkpoint(found, *build(0))


def no_json(path: Path) -> None:
    path.write_text('{"format_version": 3, "st')


def other_number(path: Path) -> None:
    path.write_text(path.read_text().replace('"epoch": 3', '"epoch": 2'))


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [no_json, other_number, zeros, cut])
def test_a_damaged_state_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    for number in (1, 2, 3):
        save(tmp_path, number, best=1)
    damage(tmp_path / "step-00000003" / "state.json")
    assert steps_in(tmp_path) == [1, 2]
    assert "step-00000003/state.json is damaged" in caplog.text
    found = newest_loadable(tmp_path)
    assert found is not None
    assert found.step == 2
    with pytest.raises(Failure, match=r"step-00000003/state\.json is damaged"):
        load_weights(tmp_path / "step-00000003", build(0)[0])


def test_what_is_set_aside_takes_no_new_ones_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (2, 4, 6):
        save(tmp_path, number, best=2)
    cut(tmp_path / "step-00000006" / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        found = newest_loadable(tmp_path, set_aside=True)
    assert found is not None
    assert found.step == 4
    assert "step-00000006 is set aside as unusable-step-00000006" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000002", "step-00000004", "unusable-step-00000006",
    ]  # fmt: skip
    save(tmp_path, 5, best=5)
    assert steps_in(tmp_path) == [2, 4, 5]


def test_one_whose_best_is_damaged_is_not_gone_on_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run would end without its best weights; from further back it finds them again."""
    for number, best in ((1, 1), (2, 1), (3, 3), (4, 3)):
        save(tmp_path, number, best)
    flip(tmp_path / "step-00000003" / "model.safetensors")
    assert newest_loadable(tmp_path) is None  # step 1 and 2 were deleted when 3 and 4 stood
    assert "cannot go on from step-00000004" in caplog.text
    assert newest_loadable(tmp_path, set_aside=True) is None
    save(tmp_path, 1, best=1)
    assert steps_in(tmp_path) == [1]


def test_no_epoch_measured_yet_needs_no_best(tmp_path: Path) -> None:
    save(tmp_path, 3, best=0)
    found = newest_loadable(tmp_path)
    assert found is not None
    assert found.step == 3
    assert newest_loadable(tmp_path / "nothing") is None


def test_checkpoints_come_and_go_while_others_read(tmp_path: Path) -> None:
    trained = build(1)
    state = {"best": {"step": 0}}
    save_checkpoint(tmp_path, 1, *trained, state)

    def train() -> None:
        for number in range(2, 21):
            save_checkpoint(tmp_path, number, *trained, state)

    trainer = threading.Thread(target=train)
    trainer.start()
    seen = [1]
    while trainer.is_alive():
        seen.append(list_checkpoints(tmp_path)[-1].step)
    trainer.join()
    assert seen == sorted(seen)
    assert steps_in(tmp_path) == [19, 20]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many bytes."""
    mounted: list[Path] = []

    def mount(num_bytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted ({done.stderr.strip()}); the limit of file sizes is tested")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], timeout=30, check=True)


def num_bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("more", [0.1, 0.6, 0.98])  # of a checkpoint: no room for the model, the optimizer, state.json
def test_a_full_disk_costs_no_old_checkpoint(tmp_path: Path, small_disk: Callable[[int], Path], more: float) -> None:
    save(tmp_path / "probe", 1, best=1)
    size = num_bytes_of(tmp_path / "probe")
    run = small_disk(int(size * (2 + more))) / "run"
    save(run / "checkpoints", 1, best=1)
    save(run / "checkpoints", 2, best=2)
    with pytest.raises(
        OSError, match=r"No space left on device: a checkpoint of [\d,]+ bytes does not fit into"
    ) as error:
        save(run / "checkpoints", 3, best=3)
    assert error.value.errno == errno.ENOSPC
    assert str(run / "checkpoints") in str(error.value)
    needed = int(str(error.value).split(" bytes ")[0].split()[-1].replace(",", ""))
    assert 0.9 * size < needed <= size
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    found = newest_loadable(run / "checkpoints")
    assert found is not None
    assert found.step == 2


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """A limit of the shell, for every user; as on a full disk, a write stops in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [100_000, 400_000])  # the model has 280 kB, the optimizer 560 kB
def test_a_file_that_may_not_grow_costs_no_old_checkpoint(
    tmp_path: Path, file_size_limit: Callable[[int], None], limit: int
) -> None:
    save(tmp_path, 1, best=1)
    file_size_limit(limit)
    with pytest.raises(OSError, match="File too large: a checkpoint of"):
        save(tmp_path, 2, best=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_row_that_does_not_fit_leaves_no_half_a_line(tmp_path: Path, file_size_limit: Callable[[int], None]) -> None:
    append_metrics({"epoch": 1}, tmp_path)
    content = (tmp_path / "metrics.jsonl").read_bytes()
    file_size_limit(len(content) + 5)
    with pytest.raises(OSError, match=r"File too large: '.*metrics\.jsonl'"):
        append_metrics({"epoch": 2}, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == content
    file_size_limit(1 << 20)
    append_metrics({"epoch": 2}, tmp_path)
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2]
