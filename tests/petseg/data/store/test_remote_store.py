"""What a remote store asks its remote for, how much of it is kept, and what it closes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from petseg.data import store as store_module
from petseg.data.remote import remote_store
from petseg.data.remote.remote_store import RemoteStore, checked_shards
from petseg.data.remote.staging import Expected, fetch
from petseg.data.store import open_store, read_manifest
from shards.cause import ShardSetError
from shards.index import index_name
from shards.manifest import load_manifest

Wait = Callable[[Callable[[], object]], None]


class FolderRemote:
    """A folder that is read as if it were far away."""

    shown = "s3://bucket/set"

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.closed = folder, list[str](), 0

    def chunks(self, name: str) -> Generator[bytes, None, None]:
        self.asked.append(name)
        yield (self.folder / name).read_bytes()

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def remote(pet_shards: Path) -> FolderRemote:
    return FolderRemote(pet_shards)


@pytest.fixture
def store(remote: FolderRemote, tmp_path: Path) -> RemoteStore:
    return RemoteStore(remote, load_manifest(remote.folder), tmp_path / "kept", 1.0)


def test_each_file_is_fetched_with_what_the_manifest_says_of_it(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple[str, Path, Expected, threading.Event]] = []
    room: list[tuple[Path, int, float]] = []

    def noted(remote: FolderRemote, name: str, path: Path, expected: Expected, stopped: threading.Event) -> None:
        fetched.append((name, path, expected, stopped))
        fetch(remote, name, path, expected, stopped)

    monkeypatch.setattr(remote_store, "fetch", noted)
    monkeypatch.setattr(remote_store, "make_room", lambda *args: room.append(args))
    shard = store.manifest.shards[1]
    os.close(store.open(shard.name))
    assert len(store.index(shard.name)) == shard.num_samples
    folder = tmp_path / "kept" / "shards" / store.manifest.hash[:16]
    index, most = index_name(shard.name), 1024 * (shard.num_samples + 4)
    assert [call[:3] for call in fetched] == [
        (shard.name, folder / shard.name, Expected(shard.num_bytes, shard.num_bytes, shard.sha256)),
        (index, folder / index, Expected(most, None, shard.index_sha256)),
    ]
    assert room == [(tmp_path / "kept", shard.num_bytes, 1.0), (tmp_path / "kept", most, 1.0)]
    assert not any(call[3].is_set() for call in fetched)
    store.close()
    assert all(call[3].is_set() for call in fetched)  # what is fetched then, ends


def test_a_store_is_called_as_its_remote_is_and_closes_it(store: RemoteStore, remote: FolderRemote) -> None:
    assert store.location == "s3://bucket/set"
    store.close()
    assert remote.closed == 1


def test_a_staged_file_of_another_size_is_fetched_anew(store: RemoteStore, remote: FolderRemote) -> None:
    shard = store.manifest.shards[0]
    os.close(store.open(shard.name))
    (path,) = store._cache.rglob(shard.name)
    for length in (shard.num_bytes - 1, shard.num_bytes + 1, shard.num_bytes):
        os.truncate(path, length)
        os.close(store.open(shard.name))
        assert path.stat().st_size == shard.num_bytes
    assert remote.asked == [shard.name] * 3


@pytest.mark.parametrize("open_or_index", ["open", "index"])
def test_a_file_that_is_evicted_each_time_is_named(
    store: RemoteStore, remote: FolderRemote, monkeypatch: pytest.MonkeyPatch, open_or_index: str
) -> None:
    """Another process makes room for its own before this one has opened what it fetched."""
    monkeypatch.setattr(remote_store, "touch", lambda path: path.unlink())
    shard = store.manifest.shards[0].name
    name = shard if open_or_index == "open" else index_name(shard)
    with pytest.raises(OSError, match="is evicted") as error:
        getattr(store, open_or_index)(shard)
    assert str(error.value) == (
        f"{name} is evicted from {store._cache} again and again before it is read: raise data.cache_gb"
    )
    assert remote.asked == [name] * remote_store.EVICTED_TRIES


def test_parts_that_a_killed_process_left_go_and_those_of_other_files_stay(store: RemoteStore, tmp_path: Path) -> None:
    shard, other = (shard.name for shard in store.manifest.shards[:2])
    folder = tmp_path / "kept" / "shards" / store.manifest.hash[:16]
    left, foreign = folder / f".{shard}.0123456789ab.part", folder / f".{other}.0123456789ab.part"
    for path in (left, foreign):
        path.touch()
    os.close(store.open(shard))
    assert [path.exists() for path in (left, foreign)] == [False, True]


def test_what_was_opened_since_the_last_announcement_is_not_fetched_ahead(
    store: RemoteStore, remote: FolderRemote, wait_for: Wait
) -> None:
    one, two, three = (shard.name for shard in store.manifest.shards[:3])
    os.close(store.open(one))
    store._cache.joinpath("shards", store.manifest.hash[:16], one).unlink()  # evicted, and open all the same
    store.prefetch([one, two, two])
    wait_for(lambda: two in remote.asked)
    store.prefetch([three, one])  # a second time it may not be open any more
    wait_for(lambda: sorted(remote.asked) == sorted([one, two, three, one]))
    store.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_a_shard_larger_than_the_cache_is_named(remote: FolderRemote) -> None:
    manifest = load_manifest(remote.folder)
    largest = max(shard.num_bytes for shard in manifest.shards)
    assert list(checked_shards(remote, manifest, largest / 1e9)) == [shard.name for shard in manifest.shards]
    first = next(shard for shard in manifest.shards if shard.num_bytes == largest)
    with pytest.raises(ValueError, match=rf"^{first.name} at s3://bucket/set has .* GB, more than data\.cache_gb = "):
        checked_shards(remote, manifest, (largest - 1) / 1e9)


def test_a_remote_is_closed_whether_or_not_its_set_can_be_read(
    remote: FolderRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "open_remote", lambda location: remote)
    assert read_manifest("s3://bucket/set", str(tmp_path / "kept")) == load_manifest(remote.folder)
    assert remote.closed == 1
    assert not (tmp_path / "kept").exists()  # a login node may lack that disk
    with pytest.raises(ValueError, match="more than"):
        open_store("s3://bucket/set", str(tmp_path / "kept"), 1e-6)
    assert remote.closed == 2
    store = open_store("s3://bucket/set", str(tmp_path / "kept"), 0.5)
    assert remote.closed == 2
    assert isinstance(store, RemoteStore)
    assert (store._cache, store._cache_gb) == (tmp_path / "kept", 0.5)
    store.close()


def test_a_manifest_that_contradicts_itself_is_asked_for_twice_and_named_by_its_address(
    remote: FolderRemote, tmp_path: Path
) -> None:
    text = (remote.folder / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"num_samples": 27', '"num_samples": 28', 1))
    remote.folder = tmp_path
    with pytest.raises(ShardSetError, match=r"s3://bucket/set/manifest\.json") as error:
        remote_store.fetch_manifest(remote)
    assert "/petseg-" not in str(error.value)
    assert remote.asked == ["manifest.json"] * 2
