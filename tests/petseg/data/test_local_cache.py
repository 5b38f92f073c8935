"""The cache folder: whose it may be, and what goes first when it is full."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock, Timeout

from petseg.data import local_cache
from petseg.data.local_cache import cache_folder, locked, make_room, touch
from shards.cause import Cause, cause_of

KB = 1e-6  # in GB


def put(path: Path, num_bytes: int, age_s: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(num_bytes))
    when = time.time() - age_s
    os.utime(path, (when, when))
    return path


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_configured_folder_is_made_private(tmp_path: Path) -> None:
    folder = cache_folder(str(tmp_path / "scratch" / "cache"))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder(str(folder)) == folder


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PETSEG_CACHE": "a", "SLURM_TMPDIR": "b", "TMPDIR": "c"}, "a"),
        ({"SLURM_TMPDIR": "b", "TMPDIR": "c"}, f"b/petseg-cache-{os.getuid()}"),
        ({"TMPDIR": "c"}, f"c/petseg-cache-{os.getuid()}"),
    ],
)
def test_the_default_folder_is_the_nodes_temporary_one(
    variables: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PETSEG_CACHE", "SLURM_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert cache_folder() == tmp_path / expected


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o770)
    with pytest.raises(ValueError, match="chmod 700"):
        cache_folder(str(folder))


def test_a_planted_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "theirs")
    with pytest.raises(ValueError, match="symbolic link"):
        cache_folder(str(tmp_path / "cache"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    with pytest.raises(ValueError, match="belongs to user 65534"):
        cache_folder(str(folder))


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(ValueError, match=r"data\.cache_dir"):
        cache_folder(str(tmp_path / "cache"))


def test_the_least_recently_used_goes_first_and_only_as_much_as_needed(tmp_path: Path) -> None:
    old = put(tmp_path / "shards" / "old", 3000, age_s=300)
    older = put(tmp_path / "decoded" / "older", 3000, age_s=400)
    recent = put(tmp_path / "recent", 3000, age_s=100)
    make_room(tmp_path, 1000, 10 * KB)
    assert old.exists()
    assert older.exists()
    touch(older)
    make_room(tmp_path, 3000, 10 * KB)
    assert [path.exists() for path in (old, older, recent)] == [False, True, True]
    make_room(tmp_path, 10_000, 10 * KB)
    assert total(tmp_path) == 0


def test_locks_stay_asides_count_and_those_of_the_dead_go(tmp_path: Path) -> None:
    lock = put(tmp_path / "shards" / "a.tar.lock", 10, age_s=10**6)
    writing = put(tmp_path / ".a.tar.1.part", 6000, age_s=3600)
    dead = put(tmp_path / ".b.tar.2.part", 6000, age_s=2 * 24 * 3600)
    make_room(tmp_path, 4000, 10 * KB)
    assert [path.exists() for path in (lock, writing, dead)] == [True, True, False]
    with pytest.raises(OSError, match=r"others are writing 6e-06 GB .* raise data\.cache_gb"):
        make_room(tmp_path, 5000, 10 * KB)


def test_an_oversized_request_evicts_nothing(tmp_path: Path) -> None:
    kept = put(tmp_path / "kept", 3000)
    with pytest.raises(ValueError, match=r"cannot take 1.1e-05 GB more: .*data\.cache_gb") as error:
        make_room(tmp_path, 11_000, 10 * KB)
    assert kept.exists()
    assert cause_of(error.value) == Cause.DISK_FULL  # by which a sweep tells it from a wrong value


def test_a_disk_without_space_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"GB free; choose another with data\.cache_dir") as error:
        make_room(tmp_path, 10**17, 10**9)
    assert error.value.errno == errno.ENOSPC


def test_an_evicted_file_stays_readable_where_it_is_open(tmp_path: Path) -> None:
    with put(tmp_path / "a", 5000).open("rb") as file:
        make_room(tmp_path, 10_000, 10 * KB)
        assert not (tmp_path / "a").exists()
        assert len(file.read()) == 5000


FILL = """
import sys
from pathlib import Path
from filelock import FileLock
from petseg.data.local_cache import make_room

folder, number = Path(sys.argv[1]), sys.argv[2]
for turn in range(20):
    with FileLock(folder / "test.lock"):  # room and write as one, so that the bound is exact
        make_room(folder, 1000, 1e-5)
        (folder / f"{number}-{turn}").write_bytes(bytes(1000))
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 10_000
"""


def test_processes_that_fill_it_at_once_keep_it_below_the_limit(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", FILL, str(tmp_path), str(number)] for number in range(2)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert total(tmp_path) == 10_000


def test_touching_an_evicted_file_is_no_error(tmp_path: Path) -> None:
    touch(tmp_path / "gone")


@pytest.mark.parametrize(("mode", "trusted"), [(0o700, True), (0o755, True), (0o720, False), (0o702, False)])
def test_others_may_read_the_folder_and_not_write_to_it(tmp_path: Path, mode: int, trusted: bool) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    if trusted:
        assert cache_folder(str(folder)) == folder
        return
    said = f"others may write to the cache folder {folder} (mode {mode:o}): `chmod 700 {folder}`"
    with pytest.raises(ValueError, match=rf"^{re.escape(said)}$"):
        cache_folder(str(folder))


def test_without_any_word_the_folder_is_in_tmp_and_names_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PETSEG_CACHE", "SLURM_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    assert local_cache._configured_path("") == Path(f"/tmp/petseg-cache-{os.getuid()}")
    monkeypatch.setenv("HOME", "/home/me")
    assert local_cache._configured_path("~/cache") == Path("/home/me/cache")
    assert local_cache._configured_path("cache") == Path.cwd() / "cache"
    monkeypatch.setenv("PETSEG_CACHE", "/elsewhere")
    assert local_cache._configured_path("/here") == Path("/here")  # what the user chose for the run


def test_a_folder_that_cannot_be_made_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    said = f"cannot make the cache folder {folder}: Not a directory; choose one with data.cache_dir"
    with pytest.raises(ValueError, match=rf"^{re.escape(said)}$"):
        cache_folder(str(folder))


def test_room_is_made_under_a_lock_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes would otherwise count, and delete, the same files."""
    scan, held = local_cache._scan, list[bool]()

    def noted(folder: Path) -> object:
        try:
            FileLock(folder / local_cache.ROOM_LOCK).acquire(timeout=0)
        except Timeout:
            held.append(True)
        return scan(folder)

    monkeypatch.setattr(local_cache, "_scan", noted)
    make_room(tmp_path, 1, KB)
    assert held == [True]


def test_what_fills_the_limit_to_the_byte_fits(tmp_path: Path) -> None:
    kept = put(tmp_path / "kept", 3000)
    make_room(tmp_path, 7000, 10 * KB)
    assert kept.exists()
    make_room(tmp_path, 7001, 10 * KB)
    assert not kept.exists()
    make_room(tmp_path, 10_000, 10 * KB)
    with pytest.raises(ValueError, match="allows"):
        make_room(tmp_path, 10_001, 10 * KB)


def test_the_disk_counts_beside_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file that goes leaves its bytes to the disk, until there is room."""
    oldest, old, recent = (put(tmp_path / str(age), 3000, age_s=age) for age in (300, 200, 100))

    def usage(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=10_000 - total(tmp_path))

    monkeypatch.setattr(local_cache.shutil, "disk_usage", usage)
    make_room(tmp_path, 4000, 1000 * KB)
    assert [path.exists() for path in (oldest, old, recent)] == [False, True, True]
    with pytest.raises(OSError, match="GB free") as error:
        make_room(tmp_path, 10_001, 1000 * KB)
    assert error.value.errno == errno.ENOSPC
    assert error.value.strerror == (
        f"the cache folder {tmp_path} cannot take 1e-05 GB more: its disk has 1e-05 GB free; choose another with "
        "data.cache_dir"
    )


def test_a_link_in_the_folder_is_no_file_of_the_cache(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside", 9000)
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    old = put(folder / "old", 3000)
    make_room(folder, 7000, 10 * KB)
    assert old.exists()
    make_room(folder, 10_000, 10 * KB)
    assert [path.exists() for path in (outside, folder / "link", old)] == [True, True, False]


def test_a_use_is_noted_to_the_nanosecond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a", 10, age_s=500)
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123_456_789)
    touch(path)
    assert path.stat().st_mtime_ns == 1_700_000_000_123_456_789


def test_only_a_lock_that_another_holds_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="petseg.data.local_cache")
    path = tmp_path / "decoded.u8"
    with locked(path) as lock:
        assert lock.lock_file == str(tmp_path / "decoded.u8.lock")
        assert caplog.messages == []
        assert not locked(path).is_locked
        assert caplog.messages == [f"another process is decoding into {path}: waiting for it"]


def test_a_lock_is_free_until_it_is_taken_and_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "decoded.u8"
    lock = locked(path)
    assert not lock.is_locked
    with lock:
        assert lock.is_locked
    FileLock(f"{path}.lock").acquire(timeout=0).lock.release()


def test_what_is_evicted_is_noted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="petseg.data.local_cache")
    old = put(tmp_path / "old", 3000)
    make_room(tmp_path, 9000, 10 * KB)
    assert caplog.messages == [f"evicted {old}, 3e-06 GB"]
