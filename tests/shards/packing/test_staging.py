"""The hidden folder of a set: who may build in it, what is kept in it, and what moves out of it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.manifest import MANIFEST_NAME, load_manifest
from shards.near_duplicates.note import NEAR_DUPLICATES_NAME
from shards.packing import publish
from shards.packing.publish import LOCK, RESUME_NAME, STAGING, is_complete, locked, shard_files, staging_folder

TAR, INDEX = "train-000000.tar", "train-000000.index.json"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def enter(out: Path) -> None:
    with locked(out):
        pass


def test_one_pack_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "set"
    with locked(out) as staging:
        assert staging == out / STAGING
        message = rf"^another pack is writing into {out}: wait for it, or choose another --out$"
        with pytest.raises(ValueError, match=message):
            enter(out)
        enter(tmp_path / "other")
    enter(out)


def test_a_lock_that_was_removed_meanwhile_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another pack ended between the opening of the file and its lock, and took the folder away or made a new one."""
    for again in (False, True):
        lock = publish.fcntl.flock

        def late(file: object, kind: int, lock: Callable[..., None] = lock, again: bool = again) -> None:
            (tmp_path / STAGING / LOCK).rename(tmp_path / "removed")
            if again:
                (tmp_path / STAGING / LOCK).touch()
            lock(file, kind)

        monkeypatch.setattr(publish.fcntl, "flock", late)
        with pytest.raises(ValueError, match="another pack is writing into"):
            enter(tmp_path)
        monkeypatch.setattr(publish.fcntl, "flock", lock)
        enter(tmp_path)


def test_a_link_in_the_place_of_the_hidden_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / STAGING).symlink_to(tmp_path / "theirs")
    message = rf"^{tmp_path / STAGING} is a symbolic link: remove it, or choose another --out$"
    with pytest.raises(ValueError, match=message):
        enter(tmp_path)
    assert names(tmp_path / "theirs") == set()


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_is_no_lock_file_is_refused(tmp_path: Path, kind: str) -> None:
    lock = tmp_path / STAGING / LOCK
    lock.parent.mkdir()
    if kind == "link":
        lock.symlink_to(tmp_path / "theirs")
    else:
        lock.mkdir()
    message = rf"^{lock} is not a lock file of a pack: remove {lock.parent}, or choose another --out$"
    with pytest.raises(ValueError, match=message):
        enter(tmp_path)
    assert not (tmp_path / "theirs").exists()


def test_a_disk_that_cannot_be_written_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(publish.os, "open", refuse)
    with pytest.raises(OSError, match=r"^\[Errno 30\] Read-only file system$"):
        enter(tmp_path)


def test_emptied_to_the_lock_and_what_is_kept(tmp_path: Path) -> None:
    staging, theirs = tmp_path / STAGING, tmp_path / "theirs"
    for folder in (staging / "drawn" / "deep", theirs):
        folder.mkdir(parents=True)
    for name in (LOCK, "kept", "gone"):
        (staging / name).touch()
    (theirs / "thesis.tex").touch()
    (staging / "link").symlink_to(theirs)
    publish.empty(staging, frozenset(["kept"]))
    assert names(staging) == {LOCK, "kept"}
    assert names(theirs) == {"thesis.tex"}
    publish.empty(staging)
    assert names(staging) == {LOCK}


@pytest.mark.parametrize(
    ("staged", "kept"),
    [
        ([RESUME_NAME, TAR, INDEX, "val-000003.tar", "notes.tar", "notes.index.json"], [RESUME_NAME, TAR, INDEX]),
        ([TAR, INDEX], []),  # of which pack?
        ([RESUME_NAME, INDEX], []),
        ([RESUME_NAME, "notes.tar", "notes.index.json"], []),
        ([RESUME_NAME, TAR, INDEX, MANIFEST_NAME], []),  # all is done
    ],
)
def test_what_is_worth_keeping(tmp_path: Path, staged: list[str], kept: list[str]) -> None:
    for name in staged:
        (tmp_path / name).touch()
    assert publish._worth_keeping(tmp_path) == set(kept)


def test_only_a_pack_that_resumes_finds_what_an_earlier_one_left(tmp_path: Path) -> None:
    staging = tmp_path / "set" / STAGING
    for resume, found in ((True, {LOCK, RESUME_NAME, TAR, INDEX}), (False, {LOCK})):
        staging.mkdir(parents=True)
        for name in (RESUME_NAME, TAR, INDEX, "half.tar"):
            (staging / name).touch()
        with staging_folder(tmp_path / "set", resume=resume):
            assert names(staging) == found
        assert not staging.exists()


def test_an_empty_folder_goes_and_one_with_other_files_stays(tmp_path: Path) -> None:
    out = tmp_path / "set"
    with staging_folder(out):
        pass
    assert not out.exists()
    out.mkdir()
    (out / "notes").touch()
    with staging_folder(out):
        pass
    assert names(out) == {"notes"}


def test_a_set_that_was_staged_whole_outlives_an_interruption(
    packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted() -> None:
        with staging_folder(tmp_path / "set") as staging:
            shutil.copytree(packed, staging, dirs_exist_ok=True)
            (staging / RESUME_NAME).touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(packed) < names(tmp_path / "set" / STAGING)
    assert caplog.messages == []  # nothing to resume
    with staging_folder(tmp_path / "set"):
        pass
    assert names(tmp_path / "set") == names(packed)


def test_another_set_takes_the_place_of_the_one_that_was_there(packed: Path, tmp_path: Path) -> None:
    """Its shards go, and what is not a pack's stays."""
    staging, out = tmp_path / "staging", tmp_path / "out"
    shutil.copytree(packed, staging)
    out.mkdir()
    for name in (MANIFEST_NAME, NEAR_DUPLICATES_NAME, TAR, "test-000999.tar", "test-000999.index.json", "notes.tar"):
        (out / name).write_text("old")
    manifest = publish.publish(staging, out)
    assert manifest == load_manifest(packed)
    assert names(out) == {*names(packed), "notes.tar"}
    assert (out / "notes.tar").read_text() == "old"
    for name in names(packed):
        assert (out / name).read_bytes() == (packed / name).read_bytes()
    assert names(staging) == set()


def test_nothing_moves_where_a_folder_is_in_the_way(packed: Path, shard_set: Path, tmp_path: Path) -> None:
    staging = Path(shutil.copytree(packed, tmp_path / "staging"))
    (shard_set / "val-000000.tar").unlink()
    (shard_set / "val-000000.tar").mkdir()
    before = names(shard_set)
    message = f"^{shard_set}/val-000000.tar is a folder, where a shard's file is to go: move it away, or choose another"
    with pytest.raises(ValueError, match=message):
        publish.publish(staging, shard_set)
    assert (names(shard_set), names(staging)) == (before, names(packed))
    (shard_set / "val-000000.tar").rmdir()
    (shard_set / "val-000000.tar").symlink_to(tmp_path)  # a link can be replaced
    publish.publish(staging, shard_set)
    assert (shard_set / "val-000000.tar").is_file()


def test_the_names_that_a_pack_would_use(tmp_path: Path) -> None:
    ours = ["test-000000.tar", "train-000001.index.json", "train-123456.tar", "val-000000.tar"]
    others = [
        "train-1.tar",
        "train-0000001.tar",
        "train-000000.tar.part",
        "dev-000000.tar",
        "my-train-000000.tar",
        ".tar",
    ]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    assert [path.name for path in shard_files(tmp_path)] == ours


def test_a_set_is_complete_by_its_files_and_their_sizes(shard_set: Path) -> None:
    manifest = load_manifest(shard_set)
    tar, index = shard_set / TAR, shard_set / INDEX
    content, index_content = tar.read_bytes(), index.read_bytes()
    assert is_complete(shard_set, manifest)
    tar.write_bytes(content + b"\0")
    assert not is_complete(shard_set, manifest)
    tar.unlink()
    assert not is_complete(shard_set, manifest)
    (shard_set / "elsewhere").write_bytes(content)
    tar.symlink_to("elsewhere")
    assert not is_complete(shard_set, manifest)
    tar.unlink()
    tar.write_bytes(content)
    index.unlink()
    assert not is_complete(shard_set, manifest)
    index.write_bytes(index_content)
    assert is_complete(shard_set, manifest)
