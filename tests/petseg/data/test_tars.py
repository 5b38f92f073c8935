"""Reading by offset: what stock tools see, and each kind of damage named by shard, sample and place."""

import errno
import gc
import io
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from petseg.data import tars as tars_module
from petseg.data.loader import PREFETCH_BATCHES, load_batches
from petseg.data.plan import MicroBatch, eval_plan
from petseg.data.store import LocalStore, Store, open_store
from petseg.data.tars import Loaded, TarReader
from shards import verify
from shards.command import OK, run_command
from shards.index import load_index
from shards.manifest import key_hash
from shards.pack import PackConfig, pack

SIZE = 64


@pytest.fixture
def copied(pet_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pet_shards, tmp_path / "shards"))


def read(reader: TarReader, *positions: int) -> tuple[np.ndarray, np.ndarray, Loaded]:
    image = np.full((len(positions), SIZE, SIZE, 3), 99, np.uint8)
    trimap = np.full((len(positions), SIZE, SIZE), 99, np.uint8)
    return image, trimap, reader.load(np.array(positions), image, trimap)


def lost_at(folder: Path, position: int = 3) -> str:
    reader = TarReader(open_store(str(folder)), "train", SIZE)
    image, trimap, loaded = read(reader, 0, position, 20)
    reader.close()
    assert [lost.key for lost in loaded.lost] in ([""], [reader_key(folder, position)])
    assert loaded.hashes[0] != 0
    assert loaded.hashes[1] == 0
    assert loaded.hashes[2] != 0
    assert (image[1] == 0).all()
    assert (trimap[1] == 2).all()
    return str(loaded.lost[0])


def reader_key(folder: Path, position: int) -> str:
    return load_index(folder, "train-000000.tar")[position].key


def alter(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the garbage collector
def test_samples_are_the_ones_that_stock_webdataset_reads(pet_shards: Path) -> None:
    reader = TarReader(open_store(str(pet_shards)), "train", SIZE)
    urls = [str(pet_shards / shard.name) for shard in reader.shards]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(theirs) == len(reader) == 27
    for position, sample in enumerate(theirs):
        image, trimap, loaded = read(reader, position)
        assert reader.key(position) == sample["__key__"]
        assert loaded.hashes.tolist() == [key_hash(sample["__key__"])]
        assert np.array_equal(image[0], np.asarray(Image.open(io.BytesIO(sample["jpg"]))))
        assert np.array_equal(trimap[0], np.asarray(Image.open(io.BytesIO(sample["png"]))))
    reader.close()
    del theirs
    gc.collect()


def test_a_flipped_byte_of_a_picture_that_still_decodes(copied: Path) -> None:
    sample = load_index(copied, "train-000000.tar")[3]
    alter(copied / "train-000000.tar", sample.jpg.offset + sample.jpg.num_bytes - 40, b"\x55")
    message = lost_at(copied)
    assert message == (
        f"{sample.key} at byte {sample.jpg.offset} of train-000000.tar: the bytes of {sample.key}.jpg are altered: "
        "their CRC-32 does not match the index"
    )


def test_a_mask_that_is_missing(copied: Path) -> None:
    sample = load_index(copied, "train-000000.tar")[3]
    alter(copied / "train-000000.tar", sample.png.offset - 512, b"other.png\0" + bytes(90))
    assert f"'other.png' lies where {sample.key} should" in lost_at(copied)


def test_a_zeroed_header(copied: Path) -> None:
    sample = load_index(copied, "train-000000.tar")[3]
    alter(copied / "train-000000.tar", sample.jpg.offset - 512, bytes(512))
    assert f"'nothing' lies where {sample.key} should" in lost_at(copied)


def test_a_shard_that_is_cut_short(copied: Path) -> None:
    sample = load_index(copied, "train-000001.tar")[-1]
    os.truncate(copied / "train-000001.tar", sample.jpg.offset + 100)
    reader = TarReader(open_store(str(copied)), "train", SIZE)
    _, _, loaded = read(reader, 26)
    assert f"the shard ends at byte {sample.jpg.offset + 100}" in str(loaded.lost[0])
    reader.close()


def test_a_shard_that_is_gone(copied: Path) -> None:
    (copied / "train-000001.tar").unlink()
    reader = TarReader(open_store(str(copied)), "train", SIZE)
    _, _, loaded = read(reader, 0, 25)
    assert len(loaded.lost) == 1
    assert "train-000001.tar is missing: find all damage with" in str(loaded.lost[0])
    reader.close()


def test_an_index_that_was_altered(copied: Path) -> None:
    path = copied / "train-000001.index.json"
    path.write_text(path.read_text().replace("[", " [", 1))
    reader = TarReader(open_store(str(copied)), "train", SIZE)
    _, _, loaded = read(reader, 0, 25)
    assert [lost.shard for lost in loaded.lost] == ["train-000001.tar"]
    assert loaded.lost[0].key == ""
    reader.close()


class Flaky:
    """A store that fails to open a shard a few times: by default with a stale handle, as of a restarted file server."""

    def __init__(self, store: Store, failures: int, errno_: int = errno.ESTALE) -> None:
        self._store, self.failures, self.errno, self.opened = store, failures, errno_, 0
        self.location, self.manifest, self.index = store.location, store.manifest, store.index
        self.prefetch, self.close = store.prefetch, store.close

    def open(self, shard: str) -> int:
        self.opened += 1
        if self.opened <= self.failures:
            raise OSError(self.errno, os.strerror(self.errno))
        return self._store.open(shard)


@pytest.mark.parametrize(("failures", "lost"), [(3, 0), (4, 1)])
def test_a_stale_handle_is_opened_anew_a_few_times(
    pet_shards: Path, monkeypatch: pytest.MonkeyPatch, failures: int, lost: int
) -> None:
    monkeypatch.setattr(tars_module, "RETRY_AFTER_S", (0.0, 0.0, 0.0))
    reader = TarReader(Flaky(open_store(str(pet_shards)), failures), "train", SIZE)
    _, _, loaded = read(reader, 0)
    assert [str(sample)[-17:] for sample in loaded.lost] == ["Stale file handle"] * lost
    reader.close()


def test_a_shard_that_cannot_be_opened_is_not_tried_again_for_each_sample(pet_shards: Path) -> None:
    store = Flaky(open_store(str(pet_shards)), failures=1, errno_=errno.EACCES)
    reader = TarReader(store, "train", SIZE)
    _, _, loaded = read(reader, 0, 1, 2)
    assert [str(sample)[-17:] for sample in loaded.lost] == ["Permission denied"] * 3
    assert store.opened == 1
    reader.close()


def test_files_are_closed_when_the_last_thread_lets_go(pet_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars_module, "MAX_OPEN_SHARDS", 1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = TarReader(open_store(str(pet_shards)), "train", SIZE)
    barrier = threading.Barrier(4)
    found: list[int] = []

    def work(first: int) -> None:
        barrier.wait()
        for position in range(first, 27):
            _, _, loaded = read(reader, position)
            found.append(int(loaded.hashes[0]))

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 0, 13, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 27
    assert 0 not in found
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_shards_that_stock_webdataset_wrote_are_read_once_they_have_an_index(pet_shards: Path, tmp_path: Path) -> None:
    ours = TarReader(open_store(str(pet_shards)), "train", SIZE)
    folder = tmp_path / "foreign"
    folder.mkdir()
    long_path = "a/" * 60  # more than the header of a tar member holds
    for prefix, name in (("", "train-000000.tar"), (long_path, "train-000001.tar")):
        with webdataset.TarWriter(str(folder / name)) as writer:
            for sample in webdataset.WebDataset(str(pet_shards / name), shardshuffle=False):
                key = prefix + sample["__key__"]
                writer.write({"__key__": key, "jpg": sample["jpg"], "seg.png": sample["png"]})
    assert run_command(verify.main, [str(folder), "--index", "--mask-suffix", "seg.png"]) == OK
    theirs = TarReader(open_store(str(folder)), "train", SIZE)
    for position in range(27):
        for ours_array, theirs_array in zip(read(ours, position)[:2], read(theirs, position)[:2], strict=True):
            assert np.array_equal(ours_array, theirs_array)
        assert ours.key(position) == theirs.key(position)
    assert ours.facts(3)["key"] == ours.key(3)
    assert theirs.facts(3) == {}  # they have no KEY.json
    ours.close()
    theirs.close()
    gc.collect()


@pytest.mark.parametrize("threads", [1, 3, 20])
def test_batches_come_in_order_from_any_number_of_threads(pet_shards: Path, threads: int) -> None:
    reader = TarReader(open_store(str(pet_shards)), "train", SIZE)
    batches = list(load_batches(reader, eval_plan(27, 8, 0, 1), threads))
    assert [len(batch.image) for batch in batches] == [8, 8, 8, 3]
    hashes = np.concatenate([batch.hashes for batch in batches])
    assert hashes.tolist() == [key_hash(reader.key(position)) for position in range(27)]
    assert all(batch.weight.tolist() == [1.0] * len(batch.image) for batch in batches)
    reader.close()


def test_some_batches_are_decoded_ahead_and_not_all(pet_shards: Path) -> None:
    reader = TarReader(open_store(str(pet_shards)), "train", SIZE)
    planned: list[int] = []

    def noted() -> Iterator[MicroBatch]:
        for part in eval_plan(27, 3, 0, 1):
            planned.append(part.step)
            yield part

    batches = load_batches(reader, noted(), threads=1)
    next(batches)
    assert planned == list(range(PREFETCH_BATCHES + 1))  # of nine
    assert len(list(batches)) == 8
    reader.close()


def test_the_shard_that_was_used_longest_ago_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars_module, "MAX_OPEN_SHARDS", 2)
    pack(PackConfig(out=tmp_path, synthetic=20, image_size_px=SIZE, samples_per_shard=3, workers=1))
    store = open_store(str(tmp_path))
    opened: list[str] = []
    monkeypatch.setattr(store, "open", lambda shard: opened.append(shard) or type(store).open(store, shard))
    reader = TarReader(store, "test", SIZE)
    names = [shard.name for shard in reader.shards]
    for number in (0, 1, 0, 2, 0, 1):  # when 2 comes, 1 has not been used for longest
        read(reader, 3 * number)
    assert opened == [names[number] for number in (0, 1, 2, 1)]
    reader.close()


def test_a_batch_that_is_kept_is_not_written_over(pet_shards: Path) -> None:
    reader = TarReader(open_store(str(pet_shards)), "train", SIZE)
    kept = [batch.image[0] for batch in load_batches(reader, eval_plan(27, 1, 0, 1), 2)]
    for position, image in enumerate(kept):
        assert np.array_equal(image.numpy(), read(reader, position)[0][0])
    passing = {batch.image.data_ptr() for batch in load_batches(reader, eval_plan(27, 1, 0, 1), 2)}
    assert len(passing) < 10  # of 27
    reader.close()


def test_shards_of_a_run_of_positions(pet_shards: Path) -> None:
    reader = TarReader(open_store(str(pet_shards)), "train", SIZE)
    first = int(reader.shard_sizes[0])
    assert list(reader.shards_of(0, 27)) == [0, 1]
    assert list(reader.shards_of(first, first + 1)) == [1]
    assert list(reader.shards_of(0, first)) == [0]
    assert list(reader.shards_of(5, 5)) == []


def test_a_disk_without_room_to_stage_a_shard_loses_no_sample(
    pet_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard is as good as ever: the run stops with the word to make room, and not for lost samples."""

    def full(store: LocalStore, shard: str) -> int:
        raise OSError(errno.ENOSPC, f"no room for {shard}")

    monkeypatch.setattr(LocalStore, "open", full)
    reader = TarReader(LocalStore(str(pet_shards)), "train", 64)
    with pytest.raises(OSError, match="no room for train-"):
        reader.load(np.arange(1), np.empty((1, 64, 64, 3), np.uint8), np.empty((1, 64, 64), np.uint8))


def test_encoded_bytes_are_those_of_the_sample_at_that_place_of_its_shard(pet_shards: Path) -> None:
    reader = TarReader(open_store(str(pet_shards)), "train", SIZE)
    position = 0
    for name in ("train-000000.tar", "train-000001.tar"):
        whole, samples = (pet_shards / name).read_bytes(), load_index(pet_shards, name)
        for row in (0, len(samples) - 1):
            jpg, png = reader.encoded(position + row)
            for got, member in ((jpg, samples[row].jpg), (png, samples[row].png)):
                assert bytes(got) == whole[member.offset : member.offset + member.num_bytes]
        position += len(samples)
    reader.close()
