"""The decoded cache: the same samples as the tars, built once, never from a damaged set."""

import errno
import multiprocessing
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.data import cache as cache_module
from petseg.data.cache import (
    Choice,
    DeviceCache,
    NodeCache,
    Room,
    choose_cache,
    decoded_bytes,
    open_node_cache,
    room_here,
)
from petseg.data.loader import load_batches
from petseg.data.plan import Batching, EpochOrder, eval_plan, train_plan
from petseg.data.split import open_splits
from petseg.data.store import open_store
from petseg.data.tars import TarReader

SIZE = 64
GB = 10**9


def open_cache(shards: Path, folder: Path) -> tuple[TarReader, object]:
    tars = TarReader(open_store(str(shards)), "train", SIZE)
    return tars, open_node_cache(tars, str(folder), cache_gb=1)


def test_cached_batches_are_the_batches_of_the_tars(pet_shards: Path, tmp_path: Path) -> None:
    tars, node = open_cache(pet_shards, tmp_path)
    assert node is not None
    device = DeviceCache(node, torch.device("cpu"))
    plan = list(eval_plan(27, 8, 0, 1))
    from_device, from_node = device.batches(plan), load_batches(node, plan, threads=0)
    for ours, cached, resident in zip(load_batches(tars, plan, threads=2), from_node, from_device, strict=True):
        for other in (cached, resident):
            assert torch.equal(ours.image, other.image)
            assert torch.equal(ours.labels, other.labels)
            assert torch.equal(ours.weight, other.weight)
            assert np.array_equal(ours.hashes, other.hashes)
    assert node.key(5) == tars.key(5)
    tars.close()


def test_a_filler_weighs_nothing_wherever_its_pixels_come_from(pet_shards: Path, tmp_path: Path) -> None:
    """27 samples in batches of 13 over 2 ranks: the last batch has one sample, and rank 1 has none of it."""
    tars, node = open_cache(pet_shards, tmp_path)
    assert node is not None
    plan = list(train_plan(EpochOrder(tars.shard_sizes, 1, 0, 1), Batching(13, 1, rank=1, world_size=2)))
    assert [part.filler for part in plan] == [False, False, True]
    loaders = (load_batches(tars, plan, threads=2), load_batches(node, plan, threads=0))
    for batches in (*loaders, DeviceCache(node, torch.device("cpu")).batches(plan)):
        assert [batch.weight.tolist() for batch in batches] == [[1.0] * 6, [1.0] * 6, [0.0]]
    tars.close()


def build(shards: Path, folder: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    """Each build is noted, and takes so long that another process which does not wait for it begins its own."""
    really_build = cache_module._build

    def noted(path: Path, *rest: object) -> bool:
        (folder / f"{os.getpid()}.built").touch()
        time.sleep(1)
        return really_build(path, *rest)

    cache_module._build = noted
    barrier.wait()
    tars, node = open_cache(shards, folder)
    assert node is not None
    tars.close()


@pytest.mark.slow
def test_processes_that_start_together_build_one_file(pet_shards: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    children = [context.Process(target=build, args=(pet_shards, tmp_path, barrier)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert len(list(tmp_path.glob("*.built"))) == 1
    files = [path for path in (tmp_path / "decoded").iterdir() if path.suffix != ".lock"]
    assert [path.stat().st_size for path in files] == [decoded_bytes(27, SIZE)]
    made = files[0].stat()
    tars, _ = open_cache(pet_shards, tmp_path)
    assert files[0].stat().st_ino == made.st_ino
    tars.close()


def test_waiting_for_another_process_is_logged(
    pet_shards: Path, tmp_path: Path, wait_for: Callable[[Callable[[], object]], None], caplog: pytest.LogCaptureFixture
) -> None:
    tars, _ = open_cache(pet_shards, tmp_path)
    (path,) = (p for p in (tmp_path / "decoded").iterdir() if p.suffix != ".lock")
    path.unlink()
    caplog.set_level("INFO")
    with ThreadPoolExecutor(1) as pool, FileLock(path.with_name(f"{path.name}.lock")) as lock:
        try:
            opened = pool.submit(open_cache, pet_shards, tmp_path)
            wait_for(lambda: f"another process is decoding into {path}: waiting for it" in caplog.text)
            assert not path.exists()
        finally:
            lock.release()
        again, node = opened.result()
    assert node is not None
    for reader in (tars, again):
        reader.close()


def test_a_damaged_split_is_not_cached(pet_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = Path(shutil.copytree(pet_shards, tmp_path / "broken"))
    os.truncate(broken / "train-000001.tar", 1000)
    tars, node = open_cache(broken, tmp_path / "cache")
    assert node is None
    assert "train is not cached: 14 samples cannot be read, such as" in caplog.text
    assert [path for path in (tmp_path / "cache" / "decoded").iterdir() if path.suffix != ".lock"] == []
    tars.close()


def test_decoded_samples_are_on_the_disk_before_they_have_their_name(
    pet_shards: Path, tmp_path: Path, synced: list[str]
) -> None:
    tars, node = open_cache(pet_shards, tmp_path)
    assert node is not None
    (path,) = (p for p in (tmp_path / "decoded").iterdir() if p.suffix != ".lock")
    assert [name for name in synced if path.name in name]
    tars.close()


def test_a_file_of_another_size_is_built_anew(pet_shards: Path, tmp_path: Path) -> None:
    tars, _ = open_cache(pet_shards, tmp_path)
    (path,) = (p for p in (tmp_path / "decoded").iterdir() if p.suffix != ".lock")
    os.truncate(path, 10)
    _, again = open_cache(pet_shards, tmp_path)
    assert again is not None
    assert path.stat().st_size == decoded_bytes(27, SIZE)
    tars.close()


@pytest.mark.parametrize(
    ("wanted", "num_bytes", "room", "place", "why"),
    [
        ("auto", GB, Room(0, 8 * GB, 50 * GB), "node", "shared by all processes of this node"),
        ("auto", GB, Room(20 * GB, 8 * GB, 50 * GB), "device", "a quarter of the GPU's memory"),
        ("auto", 9 * GB, Room(2 * GB, 20 * GB, 50 * GB), "node", "decoded once"),
        ("auto", 9 * GB, Room(20 * GB, 8 * GB, 50 * GB), "none", "half of the memory"),
        ("auto", 9 * GB, Room(20 * GB, 8 * GB, 5 * GB), "none", "data.cache_gb and the disk"),
        ("node", 9 * GB, Room(0, GB, GB), "node", "data.cache = node"),
        ("none", 1, Room(GB, GB, GB), "none", "data.cache = none"),
    ],
)
def test_the_cache_is_chosen_by_size_with_a_reason(
    wanted: str, num_bytes: int, room: Room, place: str, why: str
) -> None:
    choice = choose_cache(wanted, num_bytes, room)  # type: ignore[arg-type]
    assert choice.cache == place
    assert why in choice.why


def test_a_cache_that_was_asked_for_and_has_no_room_is_an_error(pet_shards: Path, tmp_path: Path) -> None:
    values = {"data.image_size_px": 64, "data.cache_dir": str(tmp_path), "data.cache_gb": 1e-5}
    store = open_store(str(pet_shards))
    config = with_values(RunConfig(), values | {"data.cache": "node"})
    with pytest.raises(ValueError, match=r"data\.cache_gb"):
        open_splits(config, store, ["train"], torch.device("cpu"))
    config = with_values(RunConfig(), values)
    (split,) = open_splits(config, store, ["train"], torch.device("cpu")).values()
    assert split.source is split.tars


def test_room_is_made_and_kept_for_the_whole_file(
    pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, float]] = []
    monkeypatch.setattr(cache_module, "make_room", lambda folder, size, limit_gb: asked.append((size, limit_gb)))
    monkeypatch.setattr(cache_module, "_allocate", lambda file, size, path: asked.append((size, 0.0)))
    open_cache(pet_shards, tmp_path)
    num_bytes = decoded_bytes(27, SIZE)
    assert num_bytes == 27 * (4 * SIZE * SIZE + 8)
    assert asked == [(num_bytes, 1), (num_bytes, 0.0)]


def only_file(folder: Path) -> Path:
    (path,) = (p for p in (folder / "decoded").iterdir() if p.suffix != ".lock")
    return path


@pytest.mark.parametrize("chunk", [1, 5, 26, 27])
def test_chunks_of_any_length_fill_the_whole_file(
    pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(cache_module, "CHUNK", chunk)
    tars, node = open_cache(pet_shards, tmp_path)
    assert isinstance(node, NodeCache)
    (whole,) = load_batches(tars, eval_plan(27, 27, 0, 1), threads=0)
    assert np.array_equal(node.image, whole.image.numpy())
    assert np.array_equal(node.labels, whole.labels.numpy())
    assert np.array_equal(node.hashes, whole.hashes)
    assert len(node) == len(DeviceCache(node, torch.device("cpu"))) == 27
    tars.close()


def test_each_split_size_and_fit_has_a_file_of_its_own(pet_shards: Path, tmp_path: Path) -> None:
    store = open_store(str(pet_shards))
    for split, size, fit in (("val", 32, "squash"), ("val", "32x64", "letterbox"), ("test", "32x64", "squash")):
        assert open_node_cache(TarReader(store, split, size, fit), str(tmp_path), cache_gb=1) is not None
    prefix = store.manifest.hash[:16]
    assert sorted(path.name for path in (tmp_path / "decoded").glob("*.u8")) == [
        f"{prefix}-test-32x64-v1.u8", f"{prefix}-val-32-v1.u8", f"{prefix}-val-32x64-letterbox-v1.u8",
    ]  # fmt: skip


def test_opening_a_cache_counts_as_use(pet_shards: Path, tmp_path: Path) -> None:
    open_cache(pet_shards, tmp_path)
    os.utime(only_file(tmp_path), (1e9, 1e9))
    open_cache(pet_shards, tmp_path)
    assert only_file(tmp_path).stat().st_mtime > 1.1e9


def test_a_disk_without_room_for_the_file_is_named_and_keeps_none(
    pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"-train-64-v1\.u8") as error:
        open_cache(pet_shards, tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert list((tmp_path / "decoded").glob("*.u8*.part")) == list((tmp_path / "decoded").glob("*.u8")) == []


def test_room_is_a_share_of_each_memory_and_the_lower_of_limit_and_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * GB))
    gpu = SimpleNamespace(total_memory=80 * GB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    assert room_here(tmp_path, 2.0, torch.device("cpu")) == Room(device=0, memory=2_048_000, disk=2 * GB)
    assert room_here(tmp_path, 5.0, torch.device("cuda", 0)) == Room(device=20 * GB, memory=2_048_000, disk=3 * GB)


@pytest.mark.parametrize(
    ("room", "place", "why"),
    [
        (Room(0, GB, GB - 1), "none", " do not fit in the 1.00 GB of data.cache_gb and the disk"),
        (Room(0, GB - 1, GB), "none", " are more than half of the memory: the kernel could not keep them"),
        (Room(GB - 1, GB, GB), "node", ", decoded once and shared by all processes of this node"),
        (Room(GB, GB, GB), "device", ", within a quarter of the GPU's memory"),
    ],
)
def test_a_set_that_fills_the_room_to_the_byte_fits(room: Room, place: str, why: str) -> None:
    assert choose_cache("auto", GB, room) == Choice(place, f"1.00 GB decoded{why}")
    assert choose_cache("device", GB, Room(0, 0, 0)) == Choice("device", "1.00 GB decoded; data.cache = device")


def test_decoding_says_how_far_it_is(
    pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "LOG_EVERY_S", -1.0)
    monkeypatch.setattr(cache_module, "CHUNK", 10)
    caplog.set_level("INFO", logger="petseg.data.cache")
    open_cache(pet_shards, tmp_path)
    *progress, done = caplog.messages
    assert len(progress) == 3
    assert progress[-1] == "decoding train: 27 of 27, 0 s left"
    assert re.fullmatch(rf"decoded 27 pictures of train in \d+\.\d s into {tmp_path}/decoded", done)
