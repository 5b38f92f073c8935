"""docs/operating.md, rows 8 and 9: disks that are full, and disks that cannot read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.data import tars as tars_module
from petseg.data.store import LocalStore
from petseg.run_folder import checkpoint_files
from petseg.run_folder.attempts import read_lives
from petseg.run_folder.checkpoint import list_checkpoints, newest_loadable
from petseg.training.loop import train
from shards.cause import Cause
from shards.command import Failure
from shards.manifest import load_manifest
from tests.jobs.disturbed_runs import rows_of

# --- 8: a disk that is full


def num_bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_ends_the_run_and_with_room_it_goes_on(
    tiny: RunConfig, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    """No epoch is trained again that was saved, and the numbers are those of a run that had room."""
    calm = train(tiny, tmp_path / "calm")
    size = num_bytes_of(list_checkpoints(tmp_path / "calm" / "checkpoints")[-1].folder)
    run = small_disk(int(1.6 * size)) / "run"
    with pytest.raises(OSError, match=r"does not fit into .*: make room, and run the same command to go on") as error:
        train(tiny, run)
    assert error.value.errno == errno.ENOSPC
    newest = newest_loadable(run / "checkpoints")
    assert newest is not None
    assert newest.state["epoch"] == 1
    small_disk(10 * size)
    assert train(tiny, run).metrics == calm.metrics
    assert rows_of(run) == rows_of(tmp_path / "calm")
    assert read_lives(run)[1].first_step == newest.step


# --- 9: a disk that cannot read


BROKEN_DISK = Path("/proc/self/mem")  # the kernel answers EIO where nothing is mapped, as for a bad sector
needs_broken_disk = pytest.mark.skipif(not BROKEN_DISK.exists(), reason="needs Linux's /proc")


@needs_broken_disk
def test_a_shard_that_the_disk_cannot_read_stops_training(
    tiny: RunConfig, pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars_module, "RETRY_AFTER_S", (0.0, 0.0, 0.0))
    name = load_manifest(pet_shards).of_split("train")[1].name
    open_shard = LocalStore.open

    def opened(store: LocalStore, shard: str) -> int:
        return os.open(BROKEN_DISK, os.O_RDONLY) if shard == name else open_shard(store, shard)

    monkeypatch.setattr(LocalStore, "open", opened)
    with pytest.raises(Failure, match=r"samples of split train are unreadable") as error:
        train(with_values(tiny, {"data.cache": "none"}), tmp_path / "run")
    assert f"of {name}: " in str(error.value)
    assert "Input/output error" in str(error.value)
    assert error.value.cause is Cause.NODE_FAILURE  # the data may be whole on another one


@needs_broken_disk
def test_a_checkpoint_that_the_disk_cannot_read_is_set_aside(
    tiny: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on from the one before it."""
    calm = train(tiny, tmp_path / "run")
    before, newest = list_checkpoints(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "result.json").unlink()
    read = checkpoint_files.read_regular

    def read_from_disk(path: Path, *, follow: bool) -> bytes:
        on_broken_disk = path == newest.folder / "model.safetensors"
        return BROKEN_DISK.read_bytes() if on_broken_disk else read(path, follow=follow)

    monkeypatch.setattr(checkpoint_files, "read_regular", read_from_disk)
    assert train(tiny, tmp_path / "run").metrics == calm.metrics
    assert "the disk cannot read it" in caplog.text
    assert f"is set aside as unusable-{newest.folder.name}" in caplog.text
    assert read_lives(tmp_path / "run")[-1].first_step == before.step
