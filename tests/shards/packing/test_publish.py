"""A set comes into place as a whole: whatever kills a pack, no manifest stands without its shards."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.manifest import MANIFEST_NAME, load_manifest
from shards.pack import PackConfig, pack
from shards.packing import publish
from shards.verify import verify

REPOSITORY = Path(__file__).parents[3]
SLOW_PACK = """
import sys, time
from pathlib import Path
from shards.archive import ShardWriter
from shards.pack import PackConfig, pack
add = ShardWriter.add
ShardWriter.add = lambda *args: (time.sleep(0.2), add(*args))
pack(PackConfig(out=Path(sys.argv[1]), source=Path(sys.argv[2]), samples_per_shard=10, workers=2))
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_killed_pack_leaves_nothing_half_written(packed: Path, drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    child = subprocess.Popen([sys.executable, "-c", SLOW_PACK, out, drawn], cwd=REPOSITORY)
    wait_for(lambda: list(out.glob(".packing/*.tar")))
    with pytest.raises(ValueError, match="another pack is writing"):
        pack(PackConfig(out=out, source=drawn))
    workers = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=60)
    assert [path.name for path in out.iterdir()] == [".packing"]
    wait_for(lambda: not any(is_running(pid) for pid in workers))  # no orphans
    pack(PackConfig(out=out, source=drawn, samples_per_shard=10, workers=1))
    assert files_of(out) == files_of(packed)


def wait_for(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("waited in vain for 30 s")


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_killed_between_the_moves(packed: Path, drawn: Path, shard_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each number of moves: never a manifest without its shards, and packing again completes the set."""
    again = PackConfig(out=shard_set, source=drawn, samples_per_shard=10, workers=1)
    for moves in range(14):
        staging = shard_set / publish.STAGING
        staging.mkdir()
        for name, content in files_of(packed).items():
            (staging / name).write_bytes(content)
        stop_after(moves, monkeypatch)
        with pytest.raises(RuntimeError, match="killed"):
            publish.publish(staging, shard_set)
        monkeypatch.undo()
        assert not (shard_set / MANIFEST_NAME).exists()
        with publish.staging_folder(shard_set):
            pass
        assert files_of(shard_set) == files_of(packed)
    assert pack(again).was_there


def test_the_shards_names_are_on_the_disk_before_the_manifest_has_its_own(
    packed: Path, shard_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = shard_set / publish.STAGING
    staging.mkdir()
    for name, content in files_of(packed).items():
        (staging / name).write_bytes(content)
    at_each_sync, fsync = [], publish.fsync

    def noted(folder: Path) -> None:
        at_each_sync.append((folder.name, (shard_set / MANIFEST_NAME).exists(), len(list(shard_set.glob("*.tar")))))
        fsync(folder)

    monkeypatch.setattr(publish, "fsync", noted)
    publish.publish(staging, shard_set)
    shards = len(load_manifest(packed).shards)
    assert at_each_sync == [(shard_set.name, False, shards), (shard_set.name, True, shards)]


def stop_after(moves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, left = Path.replace, [moves]

    def counted(self: Path, target: Path) -> Path:
        if not left[0]:
            raise RuntimeError("killed")
        left[0] -= 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", counted)


def test_a_full_disk_between_the_moves_can_be_continued(drawn: Path, tmp_path: Path, monkeypatch) -> None:
    config = PackConfig(out=tmp_path / "set", source=drawn, workers=1)
    original = publish.publish

    def fails(staging: Path, out: Path):
        stop_after(2, monkeypatch)
        return original(staging, out)

    monkeypatch.setattr(publish, "publish", fails)
    with pytest.raises(RuntimeError, match="killed"):
        pack(config)
    monkeypatch.undo()
    assert pack(config).was_there  # it was staged whole, and moved by the second pack before it packed
    assert verify(tmp_path / "set") == []
