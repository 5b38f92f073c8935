"""Which sample goes into which shard, what is built anew, and what is said of samples that cannot be packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from shards.cause import Cause
from shards.command import Failure
from shards.index import load_index
from shards.labels.faults import LabelFaults
from shards.labels.observed import LabelProblem, Observed
from shards.packing import pictures, plan
from shards.packing.pictures import Packed
from shards.packing.plan import (
    BuildOptions,
    TooManyCorrupt,
    build_shards,
    first_lines,
    mixed_order,
    plan_shards,
    without_twins,
    workers_for,
)


@dataclass(frozen=True)
class Named:
    """A sample that is listed; `packed` is what packing makes of it."""

    key: str
    split: str = "train"
    packed: Any = None


def samples(count: int, split: str = "train") -> list[Any]:
    return [Named(f"{split}_{number}", split) for number in range(count)]


def test_the_order_is_that_of_published_sets() -> None:
    """By the keys' sha256: another order would make other bytes of each set that somebody has packed."""
    order = [int(sample.key[6:]) for sample in mixed_order(samples(8), seed=0)]
    assert order == [2, 4, 6, 3, 7, 5, 0, 1]
    assert [int(sample.key[6:]) for sample in mixed_order(samples(8), seed=1)] == [0, 4, 5, 6, 3, 1, 7, 2]


@pytest.mark.parametrize(
    ("count", "samples_per_shard", "sizes"),
    [(0, 3, []), (1, 3, [1]), (3, 3, [3]), (4, 3, [2, 2]), (10, 3, [2, 3, 2, 3]), (10, 1, [1] * 10)],
)
def test_the_shards_of_a_split_differ_by_one_sample(count: int, samples_per_shard: int, sizes: list[int]) -> None:
    planned = plan_shards(samples(count), seed=0, samples_per_shard=samples_per_shard)
    assert [len(one.samples) for one in planned] == sizes
    assert [one.name for one in planned] == [f"train-{number:06d}.tar" for number in range(len(sizes))]
    assert [sample for one in planned for sample in one.samples] == mixed_order(samples(count), seed=0)


def test_each_split_has_shards_of_its_own_in_a_fixed_order() -> None:
    planned = plan_shards([*samples(1, "test"), *samples(3, "val"), *samples(1)], seed=0, samples_per_shard=2)
    assert [(one.name, one.split, {sample.split for sample in one.samples}) for one in planned] == [
        ("train-000000.tar", "train", {"train"}),
        ("val-000000.tar", "val", {"val"}),
        ("val-000001.tar", "val", {"val"}),
        ("test-000000.tar", "test", {"test"}),
    ]


@pytest.mark.parametrize(("num_samples", "workers"), [(0, 1), (63, 1), (127, 1), (128, 2), (192, 3), (9_999, 3)])
def test_a_process_for_each_64_samples(monkeypatch: pytest.MonkeyPatch, num_samples: int, workers: int) -> None:
    monkeypatch.setattr(plan, "default_workers", lambda: 3)
    assert workers_for(num_samples) == workers


@pytest.mark.parametrize(
    ("count", "lines"),
    [
        (0, []),
        (2, ["0", "1"]),
        (3, ["0", "1", "2"]),
        (4, ["0", "1", "2", "and 1 more"]),
        (9, ["0", "1", "2", "and 6 more"]),
    ],
)
def test_an_error_names_some_and_counts_the_rest(count: int, lines: list[str]) -> None:
    assert first_lines([str(number) for number in range(count)], 3) == lines
    assert len(first_lines(["x"] * 99)) == 11


@pytest.fixture
def packed_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are packed to what they say, else to a few bytes."""

    def pack(sample: Named) -> Packed | Failure:
        return sample.packed or Packed(sample.key, b"jpg", b"png", b'{"oddities": []}', (), f"hash {sample.key}")

    monkeypatch.setattr(pictures, "pack_chunk", lambda chunk, image_size_px: [pack(sample) for sample in chunk])


def build(
    folder: Path, listed: Sequence[Any], max_corrupt: int | None = None, samples_per_shard: int = 4
) -> tuple[Iterator[Any], list[int]]:
    folder.mkdir(exist_ok=True)
    advanced: list[int] = []
    options = BuildOptions(folder, 0, 1, advanced.append, max_corrupt)
    return build_shards(plan_shards(listed, seed=0, samples_per_shard=samples_per_shard), options), advanced


def odd(sample: Named, kind: str, doubt: str = "") -> Named:
    doubts = (f"{sample.key}.jpg: {doubt}",) if doubt else ()
    return replace(sample, packed=Packed(sample.key, b"j", b"p", b"{}", (kind,), "h", doubts))


@pytest.mark.usefixtures("packed_as_said")
def test_what_is_known_of_a_shard_beyond_its_bytes(tmp_path: Path) -> None:
    listed = samples(18)
    listed[3] = odd(listed[3], "not_rgb")
    seen = Observed("m", "train", (3, 0, 1), faults=(("one_value", "m"),))
    listed[5] = replace(listed[5], packed=replace(odd(listed[5], "one_value").packed, observed=seen))
    built, advanced = build(tmp_path, listed, samples_per_shard=18)
    (one,) = built
    assert sorted(one.oddities) == [("not_rgb", "train_3"), ("one_value", "train_5")]
    assert one.hashes == {
        sample.key: "h" if number in (3, 5) else f"hash {sample.key}" for number, sample in enumerate(listed)
    }
    assert one.labels.content() == {"pixels": {"train": [3, 0, 1]}, "pictures": {"train": [1, 0]}}
    assert one.labels.counts == {"one_value": 1}
    assert (one.shard.num_samples, one.shard.split) == (18, "train")
    assert [sample.key for sample in load_index(tmp_path, one.shard.name)] == [
        sample.key for sample in mixed_order(listed, 0)
    ]
    assert advanced == [0, 16, 2]


@pytest.mark.usefixtures("packed_as_said")
def test_finished_shards_are_handed_on_in_their_places(tmp_path: Path) -> None:
    listed = samples(8)
    first, second = build(tmp_path, listed)[0]
    for finished in ({first.shard.name: first}, {second.shard.name: second}):
        (tmp_path / "again").mkdir(exist_ok=True)
        advanced: list[int] = []
        options = BuildOptions(tmp_path / "again", 0, 1, advanced.append)
        again = list(build_shards(plan_shards(listed, seed=0, samples_per_shard=4), options, finished))
        assert [one.shard for one in again] == [first.shard, second.shard]
        assert advanced == [4, 4]


@pytest.mark.usefixtures("packed_as_said")
def test_as_many_damaged_pictures_as_are_accepted(tmp_path: Path) -> None:
    listed = [odd(sample, "corrupt_jpeg", "cut") for sample in samples(3)]
    assert len(list(build(tmp_path / "a", listed, max_corrupt=3)[0])) == 1
    assert len(list(build(tmp_path / "b", listed, max_corrupt=None)[0])) == 1
    built, _ = build(tmp_path / "c", listed, max_corrupt=2)
    with pytest.raises(TooManyCorrupt) as caught:
        list(built)
    names = sorted(str(caught.value).splitlines()[1:])
    assert str(caught.value).splitlines()[0] == (
        "3 pictures are damaged: they decode with a warning, and --max-corrupt is 2. "
        "Fetch them again, or accept them as they are with --max-corrupt 3 --resume:"
    )
    assert names == [f"  train_{number}.jpg: cut" for number in range(3)]
    assert (tmp_path / "c" / "train-000000.tar").exists()  # --resume goes on with it


@pytest.mark.usefixtures("packed_as_said")
def test_damaged_pictures_of_finished_shards_count_too(tmp_path: Path) -> None:
    listed = [odd(sample, "corrupt_jpeg", "cut") for sample in samples(2)]
    first, _ = build(tmp_path, listed, samples_per_shard=1)[0]
    options = BuildOptions(tmp_path, 0, 1, lambda number: None, max_corrupt=1)
    planned = plan_shards(listed, seed=0, samples_per_shard=1)
    with pytest.raises(TooManyCorrupt) as caught:
        list(build_shards(planned, options, {first.shard.name: first}))
    assert str(caught.value).splitlines()[1:] == [
        f"  {planned[0].samples[0].key}, in a finished shard",
        f"  {planned[1].samples[0].key}.jpg: cut",
    ]


@pytest.mark.usefixtures("packed_as_said")
def test_suspects_are_logged_and_not_counted_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plan, "MAX_NAMED_DOUBTS", 2)
    listed = [odd(sample, "suspect_picture", "flat") if number else sample for number, sample in enumerate(samples(4))]
    assert len(list(build(tmp_path, listed, max_corrupt=0)[0])) == 1
    suspects = [sample.key for sample in mixed_order(listed, 0) if sample.packed]
    assert caplog.messages == [f"may be damaged: {key}.jpg: flat" for key in suspects[:2]]


@pytest.mark.usefixtures("packed_as_said")
def test_all_that_cannot_be_packed_is_named_at_the_end(tmp_path: Path) -> None:
    listed = samples(40)
    bad = {sample.key for sample in mixed_order(listed, 0)[5::2]}
    listed = [replace(one, packed=Failure(f"{one.key} is bad") if one.key in bad else None) for one in listed]
    built, advanced = build(tmp_path, listed)
    with pytest.raises(Failure) as caught:
        list(built)
    lines = str(caught.value).splitlines()
    assert lines[0] == "18 samples cannot be packed:"
    assert [line.strip() for line in lines[1:-1]] == [f"{one.key} is bad" for one in mixed_order(listed, 0)[5:25:2]]
    assert lines[-1] == "  and 8 more"
    assert sum(advanced) == 40
    assert sorted(path.name for path in tmp_path.glob("*.index.json")) == ["train-000000.index.json"]


@pytest.mark.usefixtures("packed_as_said")
def test_faulty_labels_are_told_by_kind_with_the_other_problems_below(tmp_path: Path) -> None:
    listed = samples(6)
    faulty = LabelProblem("x", Observed("m", "train", (), {}, (("swapped", "m.png looks like a photo"),)))
    fine = Observed("n", "train", (1, 0, 0), faults=(("one_value", "n.png: all pixels"),))
    listed[1] = replace(listed[1], packed=faulty)
    listed[2] = replace(listed[2], packed=Failure("train_2 is bad"))
    listed[4] = replace(listed[4], packed=replace(odd(listed[4], "one_value").packed, observed=fine))
    built, _ = build(tmp_path, listed, samples_per_shard=6)
    with pytest.raises(LabelFaults) as caught:
        list(built)
    assert [(fault.kind, fault.count, fault.examples) for fault in caught.value.faults] == [
        ("swapped", 1, ("m.png looks like a photo",)),
        ("one_value", 1, ("n.png: all pixels",)),
    ]
    assert str(caught.value).endswith("\n  train_2 is bad")
    assert caught.value.cause is Cause.DATA


def test_twins_in_train_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those without a hash stay: packing names them."""
    listed = [*samples(17), *samples(2, "val"), *samples(1, "test")]
    hashes = {"train_16": "val_1", "train_3": "test_0", "train_4": None}
    asked: list[dict[str, dict[str, str]]] = []

    def twins(found: dict[str, dict[str, str]]) -> list[str]:
        asked.append(found)
        return sorted(key for key, value in found["train"].items() if value != key)

    monkeypatch.setattr(
        pictures, "hash_chunk", lambda chunk, image_size_px: [hashes.get(one.key, one.key) for one in chunk]
    )
    monkeypatch.setattr(plan, "twins_in_train", twins)
    advanced: list[int] = []
    kept, dropped = without_twins(listed, image_size_px=0, num_workers=1, advance=advanced.append)
    assert dropped == ["train_16", "train_3"]
    assert kept == [sample for sample in listed if sample.key not in dropped]
    assert advanced == [16, 4]
    (found,) = asked
    assert {split: len(keys) for split, keys in found.items()} == {"train": 16, "val": 2, "test": 1}
    assert "train_4" not in found["train"]
    assert found["test"] == {"test_0": "test_0"}
