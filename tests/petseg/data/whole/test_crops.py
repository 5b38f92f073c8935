"""Crops: inside the picture, anywhere in it, and a function of (seed, epoch, sample) alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg.augment.draws import generator
from petseg.data.letterbox import PAD_LABEL, PAD_RGB
from petseg.data.loader import PREFETCH_BATCHES, load_batches, whole_batches
from petseg.data.plan import Batching, EpochOrder, MicroBatch, train_plan
from petseg.data.split import SplitData
from petseg.data.store import open_store
from petseg.data.tars import Lost, TarReader, Whole
from petseg.data.whole.crops import CropReader, Crops
from petseg.data.whole.whole_cache import open_whole_cache, whole_bytes
from shards.pack import PackConfig, pack

SIZE = (32, 64)


class Pictures:
    """Pictures in memory, whose red and green are a pixel's row and column."""

    def __init__(self, labels: list[np.ndarray]) -> None:
        self._labels = labels

    def whole(self, position: int) -> Whole | Lost:
        labels = self._labels[position]
        y, x = np.mgrid[: labels.shape[0], : labels.shape[1]]
        return Whole(np.stack([y, x, np.full(labels.shape, position)], axis=2).astype(np.uint8), labels, position + 1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawn pets of many sizes."""
    out = tmp_path_factory.mktemp("native") / "shards"
    pack(PackConfig(out=out, synthetic=24, seed=1, synthetic_longer_side_px=100, samples_per_shard=4, workers=1))
    return out


def reader_of(shards: Path, split: str = "train") -> TarReader:
    return TarReader(open_store(str(shards)), split, "32x64", "crop")


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2**31 - 1))
def test_a_crop_lies_inside(height: int, width: int, rare: float, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, (height, width)).astype(np.uint8)
    for sample in range(8):
        top, left = Crops(SIZE, seed, 1, rare).corner(sample, labels)
        assert 0 <= top <= max(0, height - SIZE[0])
        assert 0 <= left <= max(0, width - SIZE[1])


def test_all_places_are_equally_likely() -> None:
    labels = np.zeros((35, 66), np.uint8)  # 4 x 3 places
    corners = [Crops(SIZE, 0, epoch).corner(sample, labels) for epoch in range(1, 41) for sample in range(60)]
    places, counts = np.unique(corners, axis=0, return_counts=True)
    assert len(places) == 12
    assert counts.min() > 200 - 5 * np.sqrt(200)
    assert counts.max() < 200 + 5 * np.sqrt(200)


def test_a_place_hangs_on_seed_epoch_and_sample_and_is_no_draw_of_the_augmentation() -> None:
    labels = np.zeros((1000, 1000), np.uint8)
    corners = {
        (seed, epoch, sample): Crops(SIZE, seed, epoch).corner(sample, labels)
        for seed in (0, 1)
        for epoch in (1, 2)
        for sample in (0, 1)
    }
    assert len(set(corners.values())) == 8
    assert Crops(SIZE, 1, 2).corner(1, labels) == corners[1, 2, 1]
    rng = generator(0, 1, 0)
    rng.random()
    assert corners[0, 1, 0] != (int(rng.integers(0, 969)), int(rng.integers(0, 937)))


def test_rare_classes_are_seen_as_often_as_common_ones() -> None:
    """A class of one pixel in 60,000 is in about a third of the crops: of three classes it is one."""
    labels = np.zeros((200, 300), np.uint8)
    labels[:, 150:] = 1
    labels[120, 20] = 2
    labels[:5] = PAD_LABEL  # ignored pixels are no class
    pictures = Pictures([labels])
    seen = {0.0: 0, 0.5: 0, 1.0: 0}
    for rare in seen:
        for epoch in range(1, 301):
            crop, cut = np.empty((1, *SIZE, 3), np.uint8), np.empty((1, *SIZE), np.uint8)
            CropReader(pictures, Crops(SIZE, 0, epoch, rare)).load(np.array([0]), crop, cut)
            seen[rare] += bool((cut == 2).any())
    assert seen[0.0] <= 30  # 32 x 64 of 200 x 300 pixels: 3 in 100, and few crops reach the corner
    assert seen[0.5] == pytest.approx(50, abs=30)
    assert seen[1.0] == pytest.approx(105, abs=35)


def test_a_rare_crop_lies_anywhere_about_its_pixel() -> None:
    labels = np.full((200, 300), PAD_LABEL, np.uint8)
    labels[100, 150] = 7
    corners = np.array([Crops(SIZE, 0, epoch, 1.0).corner(0, labels) for epoch in range(1, 801)])
    assert (corners.min(axis=0) <= (70, 90)).all()
    assert (corners.min(axis=0) >= (69, 87)).all()
    assert (corners.max(axis=0) >= (99, 147)).all()
    assert (corners.max(axis=0) <= (100, 150)).all()


def test_a_picture_without_a_class_is_cropped_anywhere() -> None:
    nothing = np.full((50, 100), PAD_LABEL, np.uint8)
    top, left = Crops(SIZE, 0, 1, rare=1.0).corner(0, nothing)
    assert 0 <= top <= 18
    assert 0 <= left <= 36


def test_a_crop_is_what_the_picture_has_there_and_margins_do_not_count() -> None:
    shapes = [(50, 100), (20, 100), (50, 40), (10, 10), SIZE]
    pictures = Pictures([np.full(shape, 3, np.uint8) for shape in shapes])
    crops = Crops(SIZE, 5, 1)
    image, labels = np.empty((5, *SIZE, 3), np.uint8), np.empty((5, *SIZE), np.uint8)
    loaded = CropReader(pictures, crops).load(np.arange(5), image, labels)
    assert loaded.hashes.tolist() == [1, 2, 3, 4, 5]
    for i, (height, width) in enumerate(shapes):
        inside = labels[i] == 3
        assert (labels[i][~inside] == PAD_LABEL).all()
        assert (image[i][~inside] == PAD_RGB).all()
        top, left = crops.corner(i, np.empty((height, width), np.uint8))
        rows, columns = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
        assert (len(rows), len(columns)) == (min(height, 32), min(width, 64))
        assert rows[0] == (32 - len(rows)) // 2
        assert columns[0] == (64 - len(columns)) // 2
        assert image[i][rows[0], columns[0]].tolist() == [top, left, i]
        assert image[i][rows[-1], columns[-1]].tolist() == [top + len(rows) - 1, left + len(columns) - 1, i]


@pytest.mark.parametrize("threads", [0, 2])
def test_any_world_size_sees_the_same_crops_from_any_source(shards: Path, tmp_path: Path, threads: int) -> None:
    reader = reader_of(shards)
    cache = open_whole_cache(reader, str(tmp_path), 1.0)
    assert cache is not None
    order = EpochOrder(reader.shard_sizes, 2, seed=3, epoch=2)
    crops = Crops(SIZE, 3, 2, rare=0.5)
    seen: list[dict[int, bytes]] = []
    for source in (reader, cache):
        for world_size in (1, 3):
            own: dict[int, bytes] = {}
            for rank in range(world_size):
                plan = train_plan(order, Batching(8, 2, rank, world_size))
                for batch in load_batches(CropReader(source, crops), plan, threads):
                    if not batch.plan.filler:
                        for i, sample in enumerate(batch.plan.ids.tolist()):
                            own[sample] = batch.image[i].numpy().tobytes() + batch.labels[i].numpy().tobytes()
            seen.append(own)
    assert len(seen[0]) == len(reader)
    assert seen[0] == seen[1] == seen[2] == seen[3]


def test_the_cache_holds_what_the_tars_hold_once_for_all(shards: Path, tmp_path: Path) -> None:
    reader = reader_of(shards)
    cache = open_whole_cache(reader, str(tmp_path), 1.0)
    assert cache is not None
    (path,) = (tmp_path / "decoded").glob("*.u8")
    assert path.name == f"{reader.store.manifest.hash[:16]}-train-whole-v1.u8"
    assert path.stat().st_size == pytest.approx(whole_bytes(reader), rel=0.3)
    sizes = set()
    for position in range(len(reader)):
        one, other = cache.whole(position), reader.whole(position)
        assert isinstance(other, Whole)
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.labels, other.labels)
        assert one.hash == other.hash
        sizes.add(one.labels.shape)
    assert len(sizes) > 3
    before = path.stat().st_ino
    assert open_whole_cache(reader, str(tmp_path), 1.0) is not None
    assert path.stat().st_ino == before
    path.write_bytes(path.read_bytes()[:-1])  # cut short: built anew
    assert open_whole_cache(reader, str(tmp_path), 1.0) is not None
    assert path.stat().st_ino != before


def damaged(shards: Path, folder: Path, key: str) -> Path:
    """The set, with a byte of one picture altered."""
    copy = folder / "damaged"
    shutil.copytree(shards, copy)
    reader = reader_of(shards)
    positions = {reader.key(i): i for i in range(len(reader))}
    jpg, _ = reader.encoded(positions[key])
    for tar in copy.glob("train-*.tar"):
        content = tar.read_bytes()
        if (at := content.find(bytes(jpg))) >= 0:
            middle = at + len(jpg) // 2
            tar.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    return copy


def test_a_damaged_picture_is_lost_wherever_it_is_read(shards: Path, tmp_path: Path) -> None:
    key = reader_of(shards).key(2)
    reader = reader_of(damaged(shards, tmp_path, key))
    assert open_whole_cache(reader, str(tmp_path / "cache"), 1.0) is None
    plan = [MicroBatch(np.array([1, 2, 3]), 0, 3, last=True)]
    (batch,) = load_batches(CropReader(reader, Crops(SIZE, 0, 1)), plan, threads=2)
    assert [lost.key for lost in batch.lost] == [key]
    assert batch.weight.tolist() == [1.0, 0.0, 1.0]
    assert (batch.image[1] == 0).all()
    singles = list(whole_batches(reader, plan, threads=2))
    assert [len(batch.lost) for batch in singles] == [0, 1, 0]
    assert [batch.weight.tolist() for batch in singles] == [[1.0], [0.0], [1.0]]
    assert [batch.plan.ids.tolist() for batch in singles] == [[1], [2], [3]]


@pytest.mark.parametrize("cached", [False, True])
def test_a_split_is_evaluated_picture_by_picture(shards: Path, tmp_path: Path, cached: bool) -> None:
    reader = reader_of(shards, "test")
    cache = open_whole_cache(reader, str(tmp_path), 1.0) if cached else None
    split = SplitData(reader, cache or reader, threads=2)
    plan = [MicroBatch(np.array([4, 0, 2]), 0, 3, last=True), MicroBatch(np.array([1]), 1, 1, last=True)]
    batches = list(split.batches(plan))
    assert [batch.plan.ids.tolist() for batch in batches] == [[4], [0], [2], [1]]
    for batch in batches:
        whole = reader.whole(int(batch.plan.ids[0]))
        assert isinstance(whole, Whole)
        assert np.array_equal(batch.image[0].numpy(), whole.image)
        assert np.array_equal(batch.labels[0].numpy(), whole.labels)
        assert batch.hashes.tolist() == [whole.hash]


@pytest.mark.parametrize("threads", [0, 2])
def test_pictures_that_are_decoded_ahead_keep_their_order(threads: int) -> None:
    count = 3 * PREFETCH_BATCHES
    pictures = Pictures([np.full((2 + i, 3), i, np.uint8) for i in range(count)])
    plan = [MicroBatch(np.arange(count)[::-1], 0, count, last=True)]
    batches = list(whole_batches(pictures, plan, threads))
    assert [batch.plan.ids.tolist() for batch in batches] == [[i] for i in reversed(range(count))]
    assert [batch.image.shape for batch in batches] == [(1, 2 + i, 3, 3) for i in reversed(range(count))]
    assert [batch.hashes.tolist() for batch in batches] == [[i + 1] for i in reversed(range(count))]


def test_a_disk_that_takes_a_part_of_what_is_written_gets_the_rest(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset: pwrite(file, content[:1000], offset))
    reader = reader_of(shards, "test")
    cache = open_whole_cache(reader, str(tmp_path), 1.0)
    assert cache is not None
    for position in range(len(reader)):
        one, other = cache.whole(position), reader.whole(position)
        assert isinstance(other, Whole)
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.labels, other.labels)


def test_a_crop_of_a_lost_picture_is_black_and_does_not_count() -> None:
    lost = Lost("train-000000.tar", "1", 512, "altered")
    pictures = Pictures([np.full((40, 70), 3, np.uint8)] * 3)
    whole = pictures.whole
    pictures.whole = lambda position: lost if position == 1 else whole(position)
    image, labels = np.full((2, *SIZE, 3), 9, np.uint8), np.full((2, *SIZE), 9, np.uint8)
    loaded = CropReader(pictures, Crops(SIZE, 0, 1)).load(np.array([1, 2]), image, labels)
    assert (loaded.hashes.tolist(), loaded.lost) == ([0, 3], [lost])
    assert not image[0].any()
    assert (labels[0] == PAD_LABEL).all()
    assert (labels[1] == 3).all()
