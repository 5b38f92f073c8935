"""What the tests of stores look at: the bytes of a shard, and what is staged."""

from __future__ import annotations

import os
from pathlib import Path

from petseg.data.store import Store
from shards.index import load_index
from shards.manifest import load_manifest


def content(store: Store, shard: str) -> bytes:
    descriptor = store.open(shard)
    try:
        return os.pread(descriptor, os.fstat(descriptor).st_size + 1, 0)
    finally:
        os.close(descriptor)


def first(folder: Path) -> str:
    return load_manifest(folder).shards[0].name


def staged(tmp_path: Path) -> list[str]:
    names = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    return sorted(name for name in names if not name.endswith(".lock") and name != "manifest.json")


def assert_same(store: Store, folder: Path) -> None:
    assert store.manifest == load_manifest(folder)
    for shard in store.manifest.shards:
        assert store.index(shard.name) == load_index(folder, shard.name)
        assert content(store, shard.name) == (folder / shard.name).read_bytes()
