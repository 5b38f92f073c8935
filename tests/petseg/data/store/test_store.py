"""Shard sets in a folder and behind a real server on loopback, in fair weather and foul."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from petseg.config.sizes import Fit, ImageSize
from petseg.data.remote import remotes
from petseg.data.store import LocalStore, Store, enlarged_line, is_remote, open_store, read_manifest
from shards.command import Failure
from shards.index import index_name
from shards.manifest import MANIFEST_NAME, load_manifest, save_manifest
from shards.pack import pack
from tests.petseg.data.store.staged import assert_same, content, first, staged
from tests.petseg.shard_server import ALWAYS, Fault, ShardServer, serve
from tests.scenes import Scenes

# the local folder


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_local_folder_is_read_in_place(prefix: str, pet_shards: Path, opened: Callable[..., Store]) -> None:
    store = opened(f"{prefix}{pet_shards}")
    assert isinstance(store, LocalStore)
    store.prefetch([first(pet_shards)])
    assert_same(store, pet_shards)
    assert read_manifest(f"{prefix}{pet_shards}") == store.manifest


def test_an_altered_index_is_named(pet_shards: Path, tmp_path: Path, opened: Callable[..., Store]) -> None:
    folder = Path(shutil.copytree(pet_shards, tmp_path / "set"))
    path = folder / index_name(first(folder))
    path.write_text(path.read_text().replace("[512,", "[513,", 1).replace(",512,", ",513,", 1))
    with pytest.raises(Failure, match=rf"{path.name} is altered .*python -m shards.verify"):
        opened(str(folder)).index(first(folder))


def test_a_missing_file_is_named(pet_shards: Path, tmp_path: Path, opened: Callable[..., Store]) -> None:
    folder = Path(shutil.copytree(pet_shards, tmp_path / "set"))
    store, shard = opened(str(folder)), first(folder)
    (folder / shard).unlink()
    (folder / index_name(shard)).unlink()
    with pytest.raises(ValueError, match=rf"{shard} is missing"):
        store.open(shard)
    with pytest.raises(ValueError, match=r"index.json is missing"):
        store.index(shard)


def test_the_manifest_of_a_staged_set_with_a_class_table_can_be_read(
    tmp_path: Path, opened: Callable[..., Store]
) -> None:
    scenes = Scenes(tmp_path / "scenes")
    scenes.add_many()
    packed = pack(scenes.config(tmp_path / "set")).manifest
    with serve(tmp_path / "set") as server:
        opened(server.url)
    (note,) = (tmp_path / "cache").rglob(MANIFEST_NAME)
    assert load_manifest(note.parent) == packed


def test_remote_and_local_locations() -> None:
    assert not any(map(is_remote, ("data/shards", "/data/shards", "file:///data/shards", "a:b")))
    assert all(map(is_remote, ("http://host/x", "https://host/x", "s3://b/x", "gs://b/x", "pipe:cat {}")))
    with pytest.raises(ValueError, match=r"a shard set is a folder, http://"):
        open_store("ftp://host/pets")
    with pytest.raises(ValueError, match=r"file:///absolute/path"):
        open_store("file://host/pets")
    with pytest.raises(ValueError, match="names no host or bucket"):
        open_store("http:///pets")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_missing_package_is_named(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = remotes.PACKAGES[scheme]
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    fsspec_registry = import_module("fsspec.registry")
    monkeypatch.delitem(fsspec_registry._registry, scheme, raising=False)  # it may have been used in this process
    with pytest.raises(ValueError, match=rf"{scheme}:// needs {package}: pip install 'petseg\[remote\]'"):
        open_store(f"{scheme}://bucket/pets")


def test_stores_are_imported_without_torch() -> None:
    code = "import sys, petseg.data.store; print([m for m in ('torch', 'fsspec', 'aiohttp') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# over HTTP


def test_a_set_behind_http_is_staged_once(pet_shards: Path, server: ShardServer, opened: Callable[..., Store]) -> None:
    assert_same(opened(f"{server.url}/"), pet_shards)
    assert_same(opened(server.url), pet_shards)
    num_files = 1 + 2 * len(load_manifest(pet_shards).shards)
    assert len(server.asked) == num_files
    assert server.asked.pop("manifest.json") == 2  # always asked anew
    assert set(server.asked.values()) == {1}


def test_staged_files_are_on_disk_before_they_are_renamed(
    pet_shards: Path, server: ShardServer, opened: Callable[..., Store], synced: list[str]
) -> None:
    store = opened(server.url)
    content(store, first(pet_shards))
    assert [name for name in synced if name.startswith(f".{first(pet_shards)}.")]


def test_the_staged_folder_is_a_shard_set(
    pet_shards: Path, tmp_path: Path, server: ShardServer, opened: Callable[..., Store]
) -> None:
    store = opened(server.url, str(tmp_path / "cache"))
    assert_same(store, pet_shards)
    folder = tmp_path / "cache" / "shards" / store.manifest.hash[:16]
    assert load_manifest(folder) == store.manifest
    assert (folder.stat().st_mode | (tmp_path / "cache").stat().st_mode) & 0o022 == 0


@pytest.mark.parametrize(
    "fault",
    [
        Fault(times=4, status=500),
        Fault(times=4, status=503),
        Fault(times=4, status=429),
        Fault(times=4, drop_after=8192),
        Fault(times=4, drop_after=0),
        Fault(times=4, truncate_to=5000),
        Fault(times=1, flip=True),
    ],
    ids=["500", "503", "429", "dropped midway", "dropped at once", "short", "a wrong byte"],
)
def test_transient_failures_are_retried(
    fault: Fault, pet_shards: Path, tmp_path: Path, server: ShardServer, opened: Callable[..., Store]
) -> None:
    shard = first(pet_shards)
    server.faults[shard] = fault
    assert content(opened(server.url), shard) == (pet_shards / shard).read_bytes()
    assert server.asked[shard] == fault.times + 1
    assert staged(tmp_path) == [shard]


@pytest.mark.parametrize(
    ("fault", "kind", "match", "asked"),
    [
        (Fault(ALWAYS, status=503), OSError, "5 tries failed.*503", 5),
        (Fault(ALWAYS, drop_after=8192), OSError, "5 tries failed", 5),
        (Fault(ALWAYS, truncate_to=5000), OSError, "5 tries failed: it ended after 5000 of", 5),
        (Fault(ALWAYS, status=404), ValueError, "cannot fetch", 1),
        (Fault(ALWAYS, status=403), ValueError, "cannot fetch.*403", 1),
        (
            Fault(ALWAYS, flip=True),
            Failure,
            "sha256 is [0-9a-f]{64}, the manifest says [0-9a-f]{64};.*upload it again",
            2,
        ),
        (Fault(ALWAYS, redirect="file:///etc/passwd"), ValueError, "cannot fetch", 1),
    ],
    ids=["503", "dropped", "short", "404", "403", "a wrong byte", "a redirect to a file"],
)
def test_permanent_failures_name_the_file(
    fault: Fault,
    kind: type[Exception],
    match: str,
    asked: int,
    pet_shards: Path,
    tmp_path: Path,
    server: ShardServer,
    opened: Callable[..., Store],
) -> None:
    shard = first(pet_shards)
    server.faults[shard] = fault
    store = opened(server.url)
    with pytest.raises(kind, match=match) as caught:
        store.open(shard)
    assert f"{shard} at {server.url}" in str(caught.value)
    assert server.asked[shard] == asked
    assert staged(tmp_path) == []


def test_a_redirect_within_http_is_followed(
    pet_shards: Path, server: ShardServer, opened: Callable[..., Store]
) -> None:
    shard = first(pet_shards)
    server.faults[shard] = Fault(1, redirect=f"{server.url}/{shard}")
    assert content(opened(server.url), shard) == (pet_shards / shard).read_bytes()


def test_a_stall_ends(
    pet_shards: Path, server: ShardServer, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remotes, "STALL_S", 0.5)
    shard = first(pet_shards)
    server.faults[shard] = Fault(times=1, stall_after=8192)
    assert content(opened(server.url), shard) == (pet_shards / shard).read_bytes()


def test_a_slow_server_is_no_stall(
    pet_shards: Path, server: ShardServer, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remotes, "STALL_S", 0.5)
    shard = first(pet_shards)
    server.faults[shard] = Fault(times=1, pause_s=0.03)
    assert content(opened(server.url), shard) == (pet_shards / shard).read_bytes()
    assert server.asked[shard] == 1


def test_a_missing_server_is_named(server: ShardServer) -> None:
    with pytest.raises(OSError, match=r"manifest.json at http://127.0.0.1:9/pets was not fetched, 5 tries failed"):
        open_store("http://127.0.0.1:9/pets")


def test_secrets_reach_the_server_and_no_message(
    pet_shards: Path, server: ShardServer, opened: Callable[..., Store], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="petseg")
    shard = first(pet_shards)
    server.faults[shard] = Fault(3, status=503)
    server.faults[index_name(shard)] = Fault(ALWAYS, status=403)
    store = opened(f"http://me:hunter2@127.0.0.1:{server.port}/pets?sig=s3cr3t")
    content(store, shard)
    with pytest.raises(ValueError, match="cannot fetch") as caught:
        store.index(shard)
    assert server.targets[-1] == f"/pets/{index_name(shard)}?sig=s3cr3t"
    assert server.headers[-1]["Authorization"].startswith("Basic ")
    for text in (store.location, str(caught.value), caplog.text):
        assert server.url in text
        assert "hunter2" not in text
        assert "s3cr3t" not in text
    assert caught.value.__suppress_context__  # a traceback would show them


def test_a_damaged_manifest_is_asked_for_again(
    pet_shards: Path, tmp_path: Path, server: ShardServer, opened: Callable[..., Store]
) -> None:
    server.faults["manifest.json"] = Fault(1, flip=True)
    assert opened(server.url).manifest == load_manifest(pet_shards)
    server.faults["manifest.json"] = Fault(ALWAYS, flip=True)
    with pytest.raises(ValueError, match=rf"{server.url}/manifest.json"):
        open_store(server.url)
    server.faults["manifest.json"] = Fault(ALWAYS, status=404)
    with pytest.raises(ValueError, match=rf"manifest.json at {server.url}.*data\.shards"):
        read_manifest(server.url)


def test_a_name_that_leads_out_of_the_cache_is_refused(pet_shards: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    manifest = load_manifest(pet_shards)
    planted = replace(manifest.shards[0], name="../../planted.tar")
    (tmp_path / "set").mkdir()
    save_manifest(replace(manifest, shards=(planted,)), tmp_path / "set")
    with pytest.raises(ValueError, match=r"a shard is named '\.\./\.\./planted.tar'"):
        open_store(f"pipe:cat {tmp_path}/set/{{}}")


@pytest.mark.parametrize(
    ("packed_px", "wanted_px", "fit", "said"),
    [
        (0, 512, "squash", ""),
        (0, 512, "crop", ""),
        (64, 64, "squash", ""),
        (64, "32x64", "squash", ""),
        (64, 96, "squash", "packed at 64 px, and are enlarged to data.image_size_px = 96"),
        (64, "64x96", "squash", "packed at 64 px, and are enlarged to data.image_size_px = 64x96"),
        (64, 64, "letterbox", "squashed to 64 px when they were packed, and data.fit = letterbox cannot undo that"),
        (64, 32, "crop", "squashed to 64 px when they were packed, and data.fit = crop cannot undo that"),
    ],
)
def test_what_packing_took_from_the_pictures_is_said(
    pet_shards: Path, packed_px: int, wanted_px: ImageSize, fit: Fit, said: str
) -> None:
    manifest = replace(load_manifest(pet_shards), packer={"image_size_px": packed_px})
    line = enlarged_line(manifest, "https://user:secret@host/set", wanted_px, fit)
    assert said in line
    assert bool(line) == bool(said)
    assert "secret" not in line
