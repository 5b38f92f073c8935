"""Staged shard sets: the bound of their cache, what is fetched ahead, and processes that share it or end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from petseg.data.store import Store, open_store, read_manifest
from shards.index import index_name, load_index
from shards.manifest import load_manifest
from tests.petseg.data.store.staged import assert_same, content, first, staged
from tests.petseg.shard_server import ALWAYS, Fault, ShardServer

GB = 1e9
Wait = Callable[[Callable[[], object]], None]


# the cache's bound


def test_a_shard_larger_than_the_cache_is_refused(server: ShardServer) -> None:
    for read in (open_store, read_manifest):
        with pytest.raises(ValueError, match=r"more than data\.cache_gb = 1e-05"):
            read(server.url, "", 1e-5)


def test_the_cache_stays_below_its_limit_and_readers_keep_their_files(
    pet_shards: Path, tmp_path: Path, server: ShardServer, opened: Callable[..., Store]
) -> None:
    manifest = load_manifest(pet_shards)
    shards = manifest.shards
    limit_gb = 2.1 * max(shard.num_bytes for shard in shards) / GB
    store = opened(server.url, cache_gb=limit_gb)
    descriptor = store.open(shards[0].name)
    try:
        for shard in shards[1:]:
            assert content(store, shard.name) == (pet_shards / shard.name).read_bytes()
            files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
            assert sum(path.stat().st_size for path in files) <= limit_gb * GB
        assert shards[0].name not in staged(tmp_path)
        assert shards[-1].name in staged(tmp_path)
        assert os.pread(descriptor, shards[0].num_bytes, 0) == (pet_shards / shards[0].name).read_bytes()
    finally:
        os.close(descriptor)
    assert content(store, shards[0].name) == (pet_shards / shards[0].name).read_bytes()
    assert server.asked[shards[0].name] == 2


def test_opening_a_shard_counts_as_use(
    pet_shards: Path, tmp_path: Path, server: ShardServer, opened: Callable[..., Store]
) -> None:
    shards = load_manifest(pet_shards).shards
    one, two, three = (shard.name for shard in shards[:3])
    store = opened(server.url, cache_gb=(sum(shard.num_bytes for shard in shards[:3]) - 1) / GB)
    for name in (one, two, one, three):
        content(store, name)
    assert one in staged(tmp_path)
    assert two not in staged(tmp_path)


def test_a_staged_index_that_the_disk_altered_is_fetched_again(
    pet_shards: Path, tmp_path: Path, server: ShardServer, opened: Callable[..., Store]
) -> None:
    shard, store = first(pet_shards), opened(server.url)
    store.index(shard)
    (path,) = (tmp_path / "cache").rglob(index_name(shard))
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert store.index(shard) == load_index(pet_shards, shard)


# ahead of the reader


def test_prefetch_stages_in_order_before_anyone_asks(
    pet_shards: Path, tmp_path: Path, server: ShardServer, opened: Callable[..., Store], wait_for: Wait
) -> None:
    names = [shard.name for shard in load_manifest(pet_shards).shards]
    store = opened(server.url)
    store.prefetch(names[::-1])
    wait_for(lambda: staged(tmp_path) == sorted(names))
    assert list(server.asked)[1] in names[-2:]  # after the manifest; two threads start with the first two
    assert_same(store, pet_shards)
    assert {name: server.asked[name] for name in names} == dict.fromkeys(names, 1)


def test_prefetch_stages_no_more_than_the_reader_can_keep(
    pet_shards: Path, tmp_path: Path, server: ShardServer, opened: Callable[..., Store], wait_for: Wait
) -> None:
    shards = load_manifest(pet_shards).shards
    names = [shard.name for shard in shards]
    store = opened(server.url, cache_gb=2.1 * max(shard.num_bytes for shard in shards) / GB)
    store.prefetch(names)
    for name in names:
        wait_for(lambda name=name: server.asked[name] == 1)
        time.sleep(0.05)  # enough to stage all the rest, and evict this one, if nothing held it back
        content(store, name)
    assert all(server.asked[name] == 1 for name in names)


def test_prefetch_stages_a_shard_of_more_than_half_the_cache(
    pet_shards: Path, server: ShardServer, opened: Callable[..., Store], wait_for: Wait
) -> None:
    shards = load_manifest(pet_shards).shards
    largest = max(shards, key=lambda shard: shard.num_bytes)
    store = opened(server.url, cache_gb=1.5 * largest.num_bytes / GB)
    store.prefetch([largest.name])
    wait_for(lambda: server.asked[largest.name] == 1)


def test_a_failed_prefetch_is_the_readers_to_report(
    pet_shards: Path, server: ShardServer, opened: Callable[..., Store], wait_for: Wait
) -> None:
    shard = first(pet_shards)
    server.faults[shard] = Fault(1, status=404)
    store = opened(server.url)
    store.prefetch([shard])
    wait_for(lambda: server.asked[shard] == 1)
    assert content(store, shard) == (pet_shards / shard).read_bytes()


def test_a_later_prefetch_replaces_the_queue_and_close_ends_all(
    pet_shards: Path, tmp_path: Path, server: ShardServer, opened: Callable[..., Store], wait_for: Wait
) -> None:
    names = [shard.name for shard in load_manifest(pet_shards).shards]
    server.faults |= {name: Fault(ALWAYS, pause_s=0.1) for name in names[:2]}
    store = opened(server.url)
    store.prefetch(names)
    wait_for(lambda: server.asked[names[0]] and server.asked[names[1]])
    store.prefetch([])
    store.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    assert [name for name in names if server.asked[name]] == names[:2]
    assert staged(tmp_path) == []


# many processes, and their ends

OPEN_ONE = """
import os, sys
from petseg.data.store import open_store
store = open_store(sys.argv[1])
os.write(1, b"opened\\n")
os.close(store.open(sys.argv[2]))
store.close()
"""


def start(url: str, shard: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-W", "error", "-c", OPEN_ONE, url, shard], stdout=subprocess.PIPE)


def test_only_one_of_two_processes_downloads(pet_shards: Path, tmp_path: Path, server: ShardServer) -> None:
    shard = first(pet_shards)
    server.faults[shard] = Fault(ALWAYS, pause_s=0.02)
    processes = [start(server.url, shard) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert server.asked[shard] == 1
    assert server.asked["manifest.json"] == 2
    assert staged(tmp_path) == [shard]


def test_a_killed_download_leaves_nothing_that_counts(
    pet_shards: Path, tmp_path: Path, server: ShardServer, opened: Callable[..., Store], wait_for: Wait
) -> None:
    shard = first(pet_shards)
    server.faults[shard] = Fault(times=1, stall_after=8192)
    process = start(server.url, shard)
    wait_for(lambda: [name for name in staged(tmp_path) if name.endswith(".part")])
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    (aside,) = staged(tmp_path)
    assert aside.startswith(f".{shard}.")
    assert content(opened(server.url), shard) == (pet_shards / shard).read_bytes()
    assert staged(tmp_path) == [shard]


def test_a_process_that_forgets_to_close_ends_all_the_same(pet_shards: Path, server: ShardServer) -> None:
    shard = first(pet_shards)
    server.faults[shard] = Fault(ALWAYS, stall_after=8192)
    code = f"from petseg.data.store import open_store; open_store({server.url!r}).prefetch([{shard!r}])"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], timeout=20, check=False).returncode == 0
