"""Shard sets that a command writes, and that lie in a real bucket on loopback."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from petseg.data.remote import remotes
from petseg.data.store import Store, open_store, read_manifest
from tests.petseg.data.store.staged import assert_same, staged

Wait = Callable[[Callable[[], object]], None]


# from a command


def test_a_command_can_be_a_remote(pet_shards: Path, opened: Callable[..., Store]) -> None:
    assert_same(opened(f"pipe:cat '{pet_shards}/{{}}'"), pet_shards)


def test_no_shell_interprets_a_command(pet_shards: Path, tmp_path: Path) -> None:
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
def test_a_failing_command_is_reported(location: str, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        open_store(location)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"", "exit code 1;"),
        (b"\n \n", "exit code 1;"),
        (b"first\nsecond\n\n", "exit code 1: second;"),
        (b"caf\xe9 is missing\n", "exit code 1: caf\ufffd is missing;"),  # not UTF-8
        ("\u20ac".encode() * 400 + b" end\n", "\u20ac end;"),  # the last 1000 bytes begin within a character
        (b"too early\n" + b"x" * 1000, f"exit code 1: {'x' * 1000};"),
    ],
)
def test_the_last_line_that_a_command_wrote_is_shown(tmp_path: Path, written: bytes, said: str) -> None:
    (tmp_path / "written").write_bytes(written)
    script = f"import sys; sys.stderr.buffer.write(open('{tmp_path}/written', 'rb').read()); sys.exit(1)"
    remote = remotes.PipeRemote(f'pipe:{sys.executable} -S -c "{script}" {{}}')
    with pytest.raises(OSError, match="exit code 1") as error:
        list(remote.chunks("manifest.json"))
    assert f"{error.value};".endswith(said)


def test_a_command_that_stalls_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remotes, "STALL_S", 0.1)
    script = f"import os, time; open('{tmp_path}/pids', 'a').write(str(os.getpid()) + chr(10)); time.sleep(1000)"
    with pytest.raises(OSError, match=r"5 tries failed: TimeoutError: no byte for 0.1 s"):
        open_store(f'pipe:{sys.executable} -S -c "{script}" {{}}')
    for pid in (tmp_path / "pids").read_text().split():
        assert not Path("/proc", pid).exists()


def test_a_command_that_does_not_end_is_ended_with_what_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wait_for: Wait
) -> None:
    """It closes its stdout, so that all bytes are there, and waits for a child of its own."""
    monkeypatch.setattr(remotes, "STALL_S", 0.2)
    script = f"exec >&-; sleep 1000 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(TimeoutError, match=r"no end within 0\.2 s of its last byte"):
        list(remotes.PipeRemote(f"pipe:sh -c '{script}' {{}}").chunks("manifest.json"))
    status = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    wait_for(lambda: not status.exists() or ") Z " in status.read_text())  # nobody may wait for an orphan


def test_a_commands_other_arguments_are_not_shown(pet_shards: Path, opened: Callable[..., Store]) -> None:
    script = "import sys; sys.stdout.buffer.write(open(sys.argv[3], 'rb').read())"
    store = opened(f'pipe:{sys.executable} -S -c "{script}" --token s3cr3t {pet_shards}/{{}}')
    assert store.location == f"pipe:{sys.executable} ... {pet_shards}/{{}}"


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


def test_a_file_missing_from_a_bucket_is_not_retried(
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


def test_a_location_is_shown_without_secrets_and_as_a_folder() -> None:
    assert remotes.FsspecRemote("https://user:secret@host/set/?token=secret").shown == "https://host/set"
    with pytest.raises(ValueError, match=r"^https:///set names no host or bucket"):
        remotes.FsspecRemote("https:///set/")


def test_a_bucket_that_cannot_be_reached_is_tried_again(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="5 tries failed"):
        open_store(bucket)
