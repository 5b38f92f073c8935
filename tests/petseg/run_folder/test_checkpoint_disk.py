"""Checkpoints and rows for which the disk has no room."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from petseg.run_folder.checkpoint import newest_loadable
from petseg.run_folder.layout import append_metrics, read_metrics
from tests.petseg.small_checkpoints import save


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


@pytest.mark.parametrize(
    ("code", "is_space"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EFBIG, True), (errno.EIO, False), (errno.EROFS, False)],
)
def test_only_a_lack_of_room_is_called_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_space: bool
) -> None:
    def broken(path: Path) -> None:
        raise OSError(code, "the disk's own words", str(path))

    monkeypatch.setattr("petseg.run_folder.checkpoint.fsync", broken)
    with pytest.raises(OSError, match="a checkpoint of" if is_space else "the disk's own words") as error:
        save(tmp_path / "run", 1, best=1)
    assert error.value.errno == code
    assert list((tmp_path / "run").iterdir()) == []


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


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, synced: list[str]) -> None:
    save(tmp_path / "checkpoints", 1, best=1)
    *inside, aside, folder, parent = synced
    assert sorted(inside) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert aside.startswith(".step-00000001")
    assert [folder, parent] == ["checkpoints", tmp_path.name]
