"""Shard sets in a folder and behind real servers and commands on loopback, in fair weather and foul."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from petseg.data import staging
from petseg.data.store import LocalStore, Store, is_remote, open_store, read_manifest
from shards.command import Failure
from shards.manifest import index_name, load_index, load_manifest, save_manifest
from tests.petseg.shard_server import ALWAYS, Fault, ShardServer, serve

GB = 1e9
Wait = Callable[[Callable[[], object]], None]


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


# the local folder


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_folder_is_read_where_it_lies(prefix: str, pet_shards: Path, opened: Callable[..., Store]) -> None:
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


def test_locations_are_told_apart() -> None:
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
    package = staging.PACKAGES[scheme]
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    with pytest.raises(ValueError, match=rf"{scheme}:// needs {package}: pip install 'petseg\[remote\]'"):
        open_store(f"{scheme}://bucket/pets")


def test_login_nodes_import_it_without_torch() -> None:
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


def test_what_is_staged_is_a_shard_set(
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
        Fault(times=4, status=503),
        Fault(times=4, status=429),
        Fault(times=4, drop_after=8192),
        Fault(times=4, drop_after=0),
        Fault(times=4, truncate_to=5000),
        Fault(times=1, flip=True),
    ],
    ids=["503", "429", "dropped midway", "dropped at once", "short", "a wrong byte"],
)
def test_what_passes_is_tried_again(
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
def test_what_does_not_pass_names_the_file(
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
    monkeypatch.setattr(staging, "STALL_S", 0.5)
    shard = first(pet_shards)
    server.faults[shard] = Fault(times=1, stall_after=8192)
    assert content(opened(server.url), shard) == (pet_shards / shard).read_bytes()


def test_a_slow_server_is_no_stall(
    pet_shards: Path, server: ShardServer, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "STALL_S", 0.5)
    shard = first(pet_shards)
    server.faults[shard] = Fault(times=1, pause_s=0.03)
    assert content(opened(server.url), shard) == (pet_shards / shard).read_bytes()
    assert server.asked[shard] == 1


def test_without_a_server_it_says_so(server: ShardServer) -> None:
    with pytest.raises(OSError, match=r"manifest.json at http://127.0.0.1:9/pets cannot be fetched, 5 tries failed"):
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
    with pytest.raises(ValueError, match=r"names a shard '\.\./\.\./planted.tar'"):
        open_store(f"pipe:cat {tmp_path}/set/{{}}")


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


def test_what_is_opened_again_is_not_the_least_recently_used(
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
    assert all(server.asked[name] == 1 for name in names)


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


def test_a_failed_prefetch_is_the_readers_to_report(
    pet_shards: Path, server: ShardServer, opened: Callable[..., Store], wait_for: Wait
) -> None:
    shard = first(pet_shards)
    server.faults[shard] = Fault(1, status=404)
    store = opened(server.url)
    store.prefetch([shard])
    wait_for(lambda: server.asked[shard] == 1)
    assert content(store, shard) == (pet_shards / shard).read_bytes()


def test_a_later_prefetch_replaces_the_queue_and_close_ends_what_is_under_way(
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


def test_of_two_processes_one_downloads(pet_shards: Path, tmp_path: Path, server: ShardServer) -> None:
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


# from a command


def test_a_command_is_a_place_too(pet_shards: Path, opened: Callable[..., Store]) -> None:
    assert_same(opened(f"pipe:cat '{pet_shards}/{{}}'"), pet_shards)


def test_a_command_is_read_by_no_shell(pet_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"exit code 1: cat: .*No such file"):
        open_store(f"pipe:cat {pet_shards}/{{}} ; touch {tmp_path}/planted")
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    ("location", "kind", "match"),
    [
        ("pipe:cat manifest.json", ValueError, r"pipe: needs \{\} where the file's name goes"),
        ("pipe:cat '{}", ValueError, "No closing quotation"),
        ("pipe:no-such-program {}", ValueError, r"no-such-program.*data\.shards"),
        ("pipe:false {}", OSError, "5 tries failed: OSError: exit code 1"),
        ("pipe:sleep 100 {}", OSError, "exit code 1: .*sleep"),
    ],
)
def test_a_command_that_fails_is_told(location: str, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        open_store(location)


def test_a_command_that_stalls_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(staging, "STALL_S", 0.1)
    script = f"import os, time; open('{tmp_path}/pids', 'a').write(str(os.getpid()) + chr(10)); time.sleep(1000)"
    with pytest.raises(OSError, match=r"5 tries failed: TimeoutError: no byte for 0.1 s"):
        open_store(f'pipe:{sys.executable} -S -c "{script}" {{}}')
    for pid in (tmp_path / "pids").read_text().split():
        assert not Path("/proc", pid).exists()


def test_a_commands_other_arguments_are_not_shown(pet_shards: Path, opened: Callable[..., Store]) -> None:
    script = "import sys; sys.stdout.buffer.write(open(sys.argv[3], 'rb').read())"
    store = opened(f'pipe:{sys.executable} -S -c "{script}" --token s3cr3t {pet_shards}/{{}}')
    assert store.location == f"pipe:{sys.executable} ... {pet_shards}/{{}}"


def test_a_process_that_forgets_to_close_ends_all_the_same(pet_shards: Path, server: ShardServer) -> None:
    shard = first(pet_shards)
    server.faults[shard] = Fault(ALWAYS, stall_after=8192)
    code = f"from petseg.data.store import open_store; open_store({server.url!r}).prefetch([{shard!r}])"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], timeout=20, check=False).returncode == 0


# from an object store


S3_ACCESS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3_endpoint(pet_shards: Path) -> Iterator[str]:
    """moto's S3 server on loopback, with the set in its bucket `pets`."""
    missing = [name for name in ("s3fs", "moto", "flask") if importlib.util.find_spec(name) is None]
    if missing:
        message = f"no {', '.join(missing)}: pip install 'petseg[dev]'"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        upload = fsspec.filesystem("s3", key="x", secret="x", endpoint_url=url, skip_instance_cache=True)
        upload.mkdir("pets")
        upload.put(str(pet_shards), "pets/set", recursive=True)
        yield url
    finally:
        server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {**S3_ACCESS, "AWS_ENDPOINT_URL": s3_endpoint}.items():
        monkeypatch.setenv(name, value)
    return "s3://pets/set"


def test_a_set_in_a_bucket_is_staged(
    bucket: str, pet_shards: Path, opened: Callable[..., Store], wait_for: Wait, tmp_path: Path
) -> None:
    store = opened(bucket)
    names = [shard.name for shard in store.manifest.shards]
    store.prefetch(names)
    wait_for(lambda: staged(tmp_path) == sorted(names))
    assert_same(store, pet_shards)
    assert read_manifest(f"{bucket}/") == store.manifest


def test_what_a_bucket_lacks_is_told_at_once(
    bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="petseg")
    for location in (f"{bucket}/none", "s3://no-such-bucket/set"):
        with pytest.raises(ValueError, match=rf"manifest.json at {location} \(FileNotFoundError.*data\.shards"):
            open_store(location)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ValueError, match=r"NoCredentialsError|PermissionError"):
        open_store(bucket)
    assert "trying again" not in caplog.text


def test_a_bucket_that_cannot_be_reached_is_tried_again(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="5 tries failed"):
        open_store(bucket)
