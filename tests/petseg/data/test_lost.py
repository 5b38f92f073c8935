"""Samples that cannot be read: what stands for them, what is said of them, and what is tried before."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from petseg.data.store import LocalStore
from petseg.data.tars import RETRY_AFTER_S, Lost, TarReader, Whole
from shards.cause import Cause, ShardSetError
from shards.classes import IGNORE_VALUE
from shards.encoding import encode_png
from shards.index import Sample, load_index
from shards.manifest import load_manifest
from shards.pack import pack
from tests.scenes import Scenes

SIZE = 32


class FailingStore(LocalStore):
    """A shard set that fails to open its files a few times."""

    def __init__(self, folder: Path, error: int, times: int) -> None:
        super().__init__(str(folder))
        self.error, self.left = error, times

    def open(self, shard: str) -> int:
        self.left -= 1
        if self.left >= 0:
            raise OSError(self.error, os.strerror(self.error))
        return super().open(shard)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is waited, without waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with a class table, of pictures of 48 x 32 px."""
    made = Scenes(tmp_path_factory.mktemp("drawn") / "scenes")
    made.add_many()
    pack(made.config(made.root.parent / "set"))
    return made.root.parent / "set"


def load(reader: TarReader, *positions: int) -> tuple[np.ndarray, np.ndarray, list[Lost]]:
    image = np.full((len(positions), SIZE, SIZE, 3), 99, np.uint8)
    labels = np.full((len(positions), SIZE, SIZE), 99, np.uint8)
    return image, labels, reader.load(np.array(positions), image, labels).lost


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def damaged(shards: Path, folder: Path, split: str, place: Callable[[Sample], int]) -> tuple[Path, Sample]:
    """A copy of the set with a byte of the second sample of a split altered, and that sample."""
    copy = Path(shutil.copytree(shards, folder / "damaged"))
    shard = load_manifest(copy).of_split(split)[0].name
    sample = load_index(copy, shard)[1]
    at = place(sample)
    overwrite(copy / shard, at, bytes([(copy / shard).read_bytes()[at] ^ 1]))
    return copy, sample


def test_a_lost_sample_is_named_by_key_or_by_place() -> None:
    assert str(Lost("train-000001.tar", "a_1", 512, "it is gone")) == "a_1 at byte 512 of train-000001.tar: it is gone"
    assert str(Lost("train-000001.tar", "", 0, "it is gone")) == "a sample at byte 0 of train-000001.tar: it is gone"


def test_pixels_of_a_lost_sample_do_not_count_in_a_set_with_a_class_table(scenes: Path, tmp_path: Path) -> None:
    folder, sample = damaged(scenes, tmp_path, "train", lambda sample: sample.png.offset + 40)
    image, labels, lost = load(TarReader(LocalStore(str(folder)), "train", SIZE), 0, 1)
    assert [(one.key, one.offset) for one in lost] == [(sample.key, sample.jpg.offset)]
    assert (image[1] == 0).all()
    assert (labels[1] == IGNORE_VALUE).all()
    assert (labels[0] != 99).all()


@pytest.mark.parametrize(
    "error", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EREMOTEIO], ids=errno.errorcode.get
)
def test_a_passing_fault_of_the_file_system_is_waited_for(pet_shards: Path, waits: list[float], error: int) -> None:
    store = FailingStore(pet_shards, error, times=len(RETRY_AFTER_S))
    assert load(TarReader(store, "train", SIZE), 0)[2] == []
    assert waits == [0.1, 0.5, 2.0]


@pytest.mark.parametrize(
    ("error", "cause", "waited"),
    [(errno.EIO, Cause.NODE_FAILURE, 3), (errno.EACCES, Cause.DATA, 0), (errno.ETIMEDOUT, Cause.DATA, 3)],
)
def test_a_lasting_fault_is_told_from_damaged_data_by_its_cause(
    pet_shards: Path, waits: list[float], error: int, cause: Cause, waited: int
) -> None:
    for read in (lambda reader: load(reader, 0)[2][0], lambda reader: reader.whole(0), lambda r: r.whole_labels(0)):
        waits.clear()
        lost = read(TarReader(FailingStore(pet_shards, error, times=100), "train", SIZE))
        assert (lost.cause, lost.problem) == (cause, str(OSError(error, os.strerror(error))))
        assert len(waits) == waited


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_disk_or_a_quota_without_room_to_stage_a_shard_loses_no_sample(pet_shards: Path, error: int) -> None:
    reader = TarReader(FailingStore(pet_shards, error, times=100), "train", SIZE)
    for read in (reader.whole, lambda position: load(reader, position)):
        with pytest.raises(OSError, match=os.strerror(error)) as raised:
            read(0)
        assert raised.value.errno == error


def test_labels_that_are_lost_are_named_by_their_own_place(scenes: Path, tmp_path: Path) -> None:
    folder, sample = damaged(scenes, tmp_path, "test", lambda sample: sample.png.offset + 40)
    reader = TarReader(LocalStore(str(folder)), "test", SIZE)
    problem = f"the bytes of {sample.key}.png are altered: their CRC-32 does not match the index"
    shard = reader.shards[0].name
    assert reader.whole_labels(1) == Lost(shard, sample.key, sample.png.offset, problem)
    assert reader.whole(1) == Lost(shard, sample.key, sample.jpg.offset, problem)
    assert isinstance(reader.whole_labels(0), np.ndarray)
    with pytest.raises(ValueError, match=f"^{problem}$"):
        reader.encoded(1)


def test_labels_need_no_picture_that_can_be_read(scenes: Path, tmp_path: Path) -> None:
    folder, sample = damaged(scenes, tmp_path, "test", lambda sample: sample.jpg.offset + 40)
    reader, sound = (TarReader(LocalStore(str(one)), "test", SIZE) for one in (folder, scenes))
    assert np.array_equal(reader.whole_labels(1), sound.whole_labels(1))
    whole = reader.whole(1)
    assert isinstance(whole, Lost)
    assert whole.key == sample.key


def test_facts_that_are_altered_are_an_error(scenes: Path, tmp_path: Path) -> None:
    folder, sample = damaged(scenes, tmp_path, "train", lambda sample: sample.json.offset + 2)
    reader = TarReader(LocalStore(str(folder)), "train", SIZE)
    with pytest.raises(ValueError, match=f"^the bytes of {sample.key}.json are altered"):
        reader.facts(1)
    assert reader.facts(0)["key"] == reader.key(0)
    assert load(reader, 1)[2] == []  # training does not read them


def test_a_mask_of_another_size_than_its_picture_is_no_whole_sample(
    scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = TarReader(LocalStore(str(scenes)), "train", SIZE)
    whole = reader.whole(0)
    assert isinstance(whole, Whole)
    assert (whole.image.shape, whole.labels.shape) == ((32, 48, 3), (32, 48))
    other = encode_png(np.zeros((31, 47), np.uint8))
    picture = reader.encoded(0)[0]
    monkeypatch.setattr("petseg.data.tars._OpenShard.read", lambda *_: (picture, memoryview(other)))
    lost, sizes = reader.whole(0), "48x32 px and 47x31 px"
    assert isinstance(lost, Lost)
    assert lost.problem == f"picture and mask differ in size ({sizes}), so that no crop can be cut from both"


def test_an_index_of_fewer_samples_than_the_manifest_has_is_refused(pet_shards: Path) -> None:
    store = LocalStore(str(pet_shards))
    first = store.manifest.of_split("train")[0]
    more = replace(first, num_samples=first.num_samples + 1)
    store.manifest = replace(
        store.manifest, shards=tuple(more if shard == first else shard for shard in store.manifest.shards)
    )
    reader = TarReader(store, "train", SIZE)
    said = f"its index lists {first.num_samples} samples, the manifest {first.num_samples + 1}: check the set with "
    with pytest.raises(ShardSetError) as error:
        reader.key(0)
    assert str(error.value) == f"{said}`python -m shards.verify {pet_shards}`"
    (lost,) = load(reader, 0)[2]
    assert (lost.shard, lost.key, lost.offset, lost.problem) == (first.name, "", 0, str(error.value))


def test_shards_are_announced_by_their_names_in_the_order_of_reading(pet_shards: Path) -> None:
    store, announced = LocalStore(str(pet_shards)), list[str]()
    reader = TarReader(store, "test", SIZE)
    store.prefetch = announced.extend
    reader.prefetch([1, 0])
    assert announced == [reader.shards[1].name, reader.shards[0].name]


def test_facts_are_those_of_the_sample_at_that_place(scenes: Path) -> None:
    reader = TarReader(LocalStore(str(scenes)), "train", SIZE)
    keys = [reader.key(position) for position in range(len(reader))]
    assert [reader.facts(position)["key"] for position in range(len(reader))] == keys
