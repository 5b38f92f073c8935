"""The cache of pictures at their own sizes: how much it takes, what of it is trusted, and what is never kept."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from petseg.data.store import open_store
from petseg.data.tars import TarReader, Whole
from petseg.data.whole import whole_cache
from petseg.data.whole.whole_cache import WholeCache, open_whole_cache, surveyed_sizes, whole_bytes
from shards.index import load_index
from shards.pack import PackConfig, pack


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawn pictures of many sizes; the 12 of test lie in three shards."""
    out = tmp_path_factory.mktemp("own") / "shards"
    pack(PackConfig(out=out, synthetic=24, seed=1, synthetic_longer_side_px=60, samples_per_shard=4, workers=1))
    return out


def reader_of(shards: Path, split: str = "test") -> TarReader:
    return TarReader(open_store(str(shards)), split, 32, "crop")


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "decoded").iterdir() if path.suffix != ".lock")


def sizes_of(reader: TarReader) -> list[tuple[int, ...]]:
    wholes = [reader.whole(position) for position in range(len(reader))]
    return [whole.labels.shape for whole in wholes if isinstance(whole, Whole)]


def flip_picture(shards: Path, folder: Path, number: int, row: int, at: int) -> Path:
    """A copy of the set with a byte of one picture altered."""
    copy = Path(shutil.copytree(shards, folder / "damaged"))
    name = reader_of(copy).shards[number].name
    place = load_index(copy, name)[row].jpg.offset + at
    content = bytearray((copy / name).read_bytes())
    content[place] ^= 1
    (copy / name).write_bytes(content)
    return copy


def test_a_survey_of_all_pictures_tells_the_bytes_of_the_cache(shards: Path, tmp_path: Path) -> None:
    reader = reader_of(shards)
    assert surveyed_sizes(reader) == sizes_of(reader)
    assert len(set(sizes_of(reader))) > 3
    assert open_whole_cache(reader, str(tmp_path), 1.0) is not None
    (path,) = files_in(tmp_path)
    pixels = sum(height * width for height, width in sizes_of(reader))
    assert path.stat().st_size == whole_bytes(reader) == 4 * pixels + 4 * 8 * 12


@pytest.mark.parametrize(("most", "positions"), [((3, 3), [0, 4, 8]), ((6, 3), [0, 3, 4, 7, 8, 11]), ((2, 1), [0, 3])])
def test_a_survey_is_spread_over_a_few_shards(
    shards: Path, monkeypatch: pytest.MonkeyPatch, most: tuple[int, int], positions: list[int]
) -> None:
    for name, value in zip(("SURVEYED", "SURVEYED_SHARDS"), most, strict=True):
        monkeypatch.setattr(whole_cache, name, value)
    reader = reader_of(shards)
    sizes = sizes_of(reader)
    assert surveyed_sizes(reader) == [sizes[position] for position in positions]
    mean = np.mean([sizes[position][0] * sizes[position][1] for position in positions])
    assert whole_bytes(reader) == int(12 * (4 * mean + 32))


def test_a_survey_leaves_out_what_it_cannot_read(shards: Path, tmp_path: Path) -> None:
    reader = reader_of(flip_picture(shards, tmp_path, number=1, row=2, at=60))
    sizes = sizes_of(reader_of(shards))
    assert surveyed_sizes(reader) == sizes[:6] + sizes[7:]
    for shard in reader.shards:
        (Path(reader.store.location) / shard.name).unlink()
    gone = TarReader(open_store(reader.store.location), "test", 32, "crop")
    assert surveyed_sizes(gone) == []
    assert whole_bytes(gone) == 12 * 32


def test_a_split_with_a_lost_picture_is_not_kept(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = reader_of(flip_picture(shards, tmp_path, number=1, row=2, at=60))
    key = reader_of(shards).key(6)
    assert open_whole_cache(reader, str(tmp_path / "cache"), 1.0) is None
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"test is not cached: 1 samples cannot be read, such as {key} at byte ")
    assert files_in(tmp_path / "cache") == []


def test_a_cache_is_on_the_disk_before_it_has_its_name(shards: Path, tmp_path: Path, synced: list[str]) -> None:
    assert open_whole_cache(reader_of(shards), str(tmp_path), 1.0) is not None
    (path,) = files_in(tmp_path)
    (aside,) = synced
    assert aside.startswith(f".{path.name}.")
    assert aside.endswith(".part")


def test_room_is_made_for_the_whole_file_and_only_where_it_is_built(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, int, float]] = []
    monkeypatch.setattr(whole_cache, "make_room", lambda *args: asked.append(args))
    reader = reader_of(shards)
    for _ in range(2):
        assert open_whole_cache(reader, str(tmp_path), 0.25) is not None
    assert asked == [(tmp_path, whole_bytes(reader), 0.25)]


def test_a_limit_that_is_too_low_is_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.cache_gb = 1e-06 allows"):
        open_whole_cache(reader_of(shards), str(tmp_path), 1e-6)


def test_opening_a_cache_counts_as_use(shards: Path, tmp_path: Path) -> None:
    assert open_whole_cache(reader_of(shards), str(tmp_path), 1.0) is not None
    (path,) = files_in(tmp_path)
    os.utime(path, (1e9, 1e9))
    assert open_whole_cache(reader_of(shards), str(tmp_path), 1.0) is not None
    assert path.stat().st_mtime > 1.1e9


@pytest.mark.parametrize("length", [0, 12 * 32 - 1, 12 * 32, -1, 1], ids=str)
def test_a_file_of_another_length_than_its_table_says_is_built_anew(shards: Path, tmp_path: Path, length: int) -> None:
    reader = reader_of(shards)
    assert open_whole_cache(reader, str(tmp_path), 1.0) is not None
    (path,) = files_in(tmp_path)
    before = path.read_bytes()
    os.truncate(path, length if length > 1 or not length else len(before) + length)
    cache = open_whole_cache(reader, str(tmp_path), 1.0)
    assert cache is not None
    assert path.stat().st_size == len(before)
    for position in range(len(reader)):
        ours, theirs = cache.whole(position), reader.whole(position)
        assert isinstance(theirs, Whole)
        assert ours.hash == theirs.hash
        assert np.array_equal(ours.image, theirs.image)
        assert np.array_equal(ours.labels, theirs.labels)


def test_each_split_has_a_file_of_its_own(shards: Path, tmp_path: Path) -> None:
    caches = {
        split: open_whole_cache(reader_of(shards, split), str(tmp_path), 1.0) for split in ("test", "train", "val")
    }
    assert all(isinstance(cache, WholeCache) for cache in caches.values())
    prefix = reader_of(shards).store.manifest.hash[:16]
    assert [path.name for path in files_in(tmp_path)] == [f"{prefix}-{split}-whole-v1.u8" for split in sorted(caches)]


def test_a_disk_that_fills_is_named_and_leaves_nothing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    reader = reader_of(shards)
    with pytest.raises(OSError, match=f"{reader.store.manifest.hash[:16]}-test-whole-v1.u8") as error:
        open_whole_cache(reader, str(tmp_path), 1.0)
    assert error.value.errno == errno.ENOSPC
    assert files_in(tmp_path) == []
