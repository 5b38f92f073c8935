"""Stores on loopback, with a cache of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from petseg.data.remote import staging
from petseg.data.store import Store, open_store
from tests.petseg.shard_server import ShardServer, serve


@pytest.fixture(autouse=True)
def own_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy between us and loopback, no cache but the test's, and waits that a test can afford."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PETSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(staging, "BACKOFF_S", 0.01)


@pytest.fixture
def server(pet_shards: Path) -> Iterator[ShardServer]:
    with serve(pet_shards) as running:
        yield running


@pytest.fixture
def opened() -> Iterator[Callable[..., Store]]:
    stores = []

    def build(*args: object, **options: object) -> Store:
        stores.append(open_store(*args, **options))
        return stores[-1]

    yield build
    for store in stores:
        store.close()
