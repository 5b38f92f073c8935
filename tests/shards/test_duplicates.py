"""Near-identical pictures: found whatever their encoding, noted beside the set, and kept out of train when asked."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards import duplicates
from shards.command import OK, WRONG_USE, run_command
from shards.duplicates import DuplicatesConfig, look
from shards.index import load_index
from shards.integrity.repair import repair
from shards.manifest import DROPPED, load_manifest, split_of_keys
from shards.near_duplicates import picture_hash as picture_hash_module
from shards.near_duplicates.note import NEAR_DUPLICATES_NAME, Pair, load_near_duplicates, summarise_duplicates
from shards.near_duplicates.picture_hash import MAX_DISTANCE, find_duplicates, picture_hash, twins_in_train
from shards.pack import PackConfig, main, pack
from shards.sources.pets.oxford import read_folder
from shards.verify import verify

HASHES = st.dictionaries(
    st.text("abcdef", min_size=1), st.integers(0, 2**40 - 1).map(lambda n: f"{n:064x}"), max_size=9
)


@pytest.fixture(scope="module")
def leaky(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pets; a test picture and a val picture are train pictures saved at another quality."""
    root = tmp_path_factory.mktemp("leaky") / "pets"
    shutil.copytree(drawn, root)
    by_split = {split: [p for p in read_folder(root).samples if p.split == split] for split in ("train", "val", "test")}
    for original, copy in ((by_split["train"][0], by_split["test"][0]), (by_split["train"][1], by_split["val"][0])):
        Image.open(original.picture).save(copy.picture, quality=80)
        shutil.copy(original.trimap, copy.trimap)
    return root


def keys_of(folder: Path, split: str) -> list[str]:
    shards = load_manifest(folder).of_split(split)
    return [sample.key for shard in shards for sample in load_index(folder, shard.name)]


def test_pack_names_the_pairs_that_lie_across_splits(
    leaky: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "set"
    assert run_command(main, ["--source", str(leaky), "--out", str(out), "--workers", "1"]) == OK
    said = "2 near-identical pairs lie across splits (1 train-val, 1 train-test)"
    assert said in " ".join(capsys.readouterr().out.split())
    manifest = load_manifest(out)
    assert DROPPED not in manifest.packer
    found = load_near_duplicates(out, manifest.hash)
    assert found is not None
    pets = {
        split: [p.key for p in read_folder(leaky).samples if p.split == split] for split in ("train", "val", "test")
    }
    assert {(pair.split, pair.key, pair.other_split, pair.other) for pair in found.pairs} == {
        ("train", pets["train"][0], "test", pets["test"][0]),
        ("train", pets["train"][1], "val", pets["val"][0]),
    }
    assert run_command(duplicates.main, [str(out), "--show", "1"]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("bits differ")
    assert lines[1:] == [
        "and 1 more",
        said,
        "`python -m shards.pack ... --drop-duplicates` keeps those of val and test out of train",
    ]


@pytest.mark.parametrize("size_px", [0, 32])
def test_the_note_is_that_of_the_packed_bytes(size_px: int, leaky: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    noted = pack(PackConfig(out=out, source=leaky, image_size_px=size_px, workers=1)).duplicates
    assert look(DuplicatesConfig(out)) == noted
    (out / NEAR_DUPLICATES_NAME).unlink()
    assert look(DuplicatesConfig(out, workers=1)) == noted  # read from the shards
    assert load_near_duplicates(out, noted.manifest_hash) == noted
    assert sorted(noted.hashes["val"]) == sorted(keys_of(out, "val"))


def test_drop_duplicates_keeps_them_out_of_train(leaky: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole, out = tmp_path / "whole", tmp_path / "less"
    pack(PackConfig(out=whole, source=leaky, samples_per_shard=10, workers=1))
    flags = ["--source", str(leaky), "--samples-per-shard", "10", "--workers", "1", "--drop-duplicates"]
    assert run_command(main, [*flags, "--out", str(out)]) == OK
    assert "near_duplicate" in capsys.readouterr().out
    twins = sorted([p.key for p in read_folder(leaky).samples if p.split == "train"][:2])
    manifest = load_manifest(out)
    assert manifest.packer[DROPPED] == twins
    assert manifest.packer["oddities"]["near_duplicate"] == 2
    assert sorted(keys_of(out, "train")) == sorted(set(keys_of(whole, "train")) - set(twins))
    assert manifest.splits["train"] == split_of_keys(keys_of(out, "train"))
    assert all(manifest.splits[split] == load_manifest(whole).splits[split] for split in ("val", "test"))
    found = load_near_duplicates(out, manifest.hash)
    assert found is not None
    assert found.total == 0
    assert verify(out) == []

    shard = out / "train-000000.tar"
    before = shard.read_bytes()
    shard.write_bytes(before[:512])
    assert repair(out, leaky, num_workers=1) == ["train-000000.tar"]  # from the pictures, less those left out
    assert shard.read_bytes() == before

    assert run_command(main, [*flags, "--out", str(out)]) == OK
    assert "it was there already" in capsys.readouterr().out
    for target, given_flags, word in ((out, flags[:-1], "with"), (whole, flags, "without")):
        assert run_command(main, [*given_flags, "--out", str(target)]) == WRONG_USE
        assert f"it was packed {word} --drop-duplicates" in capsys.readouterr().err


def test_a_note_of_another_set_is_none_and_a_damaged_one_is_named(leaky: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    noted = pack(PackConfig(out=out, source=leaky, workers=1)).duplicates
    assert load_near_duplicates(out, "another") is None
    path = out / NEAR_DUPLICATES_NAME
    whole = path.read_text()
    hostile = whole.replace('"key": "', '"key": "\\u001b]0;')
    assert hostile != whole
    for content in (
        hostile,
        whole[: len(whole) // 2],
        "[]",
        '{"format_version": 1}',
        "\xff",
        whole.replace('"counts"', '"n"'),
    ):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match=rf"{path} is damaged .*delete it, then `python -m shards.duplicates"):
            load_near_duplicates(out, noted.manifest_hash)
    path.write_text(json.dumps(json.loads(whole) | {"format_version": 2}))
    assert load_near_duplicates(out, noted.manifest_hash) is None
    path.unlink()
    assert pack(PackConfig(out=out, source=leaky, workers=1)).was_there  # an earlier version's set gets its note
    assert load_near_duplicates(out, noted.manifest_hash) == noted


def test_a_picture_is_known_again_and_others_are_not(pets_root: Path) -> None:
    def saved(image: Image.Image, **options: object) -> bytes:
        file = io.BytesIO()
        image.save(file, **options)
        return file.getvalue()

    def distance(one: str, other: str) -> int:
        return (int(one, 16) ^ int(other, 16)).bit_count()

    pets = read_folder(pets_root).samples[:40]
    hashes = [picture_hash(pet.picture.read_bytes()) for pet in pets]
    for pet, known in zip(pets[:8], hashes, strict=False):
        image = Image.open(pet.picture).convert("RGB")
        half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR)
        for data in (saved(image, format="JPEG", quality=60), saved(image, format="PNG"), saved(half, format="JPEG")):
            assert distance(picture_hash(data), known) <= MAX_DISTANCE
    assert min(distance(one, other) for at, one in enumerate(hashes) for other in hashes[:at]) > MAX_DISTANCE


def test_flat_and_tiny_pictures_have_a_hash() -> None:
    for size in ((1, 1), (3, 500), (17, 16)):
        file = io.BytesIO()
        Image.fromarray(np.full((size[1], size[0], 3), 99, np.uint8)).save(file, "JPEG")
        assert picture_hash(file.getvalue()) == "0" * 64
    with pytest.raises((ValueError, OSError)):
        picture_hash(b"none")


@given(HASHES, HASHES, HASHES)
def test_pairs_are_those_that_counting_bits_gives(train: dict, val: dict, test: dict) -> None:
    hashes = {"train": train, "val": val, "test": test}
    found = find_duplicates(hashes, "m")
    wanted = {
        Pair(key, one, twin, other, bits)
        for one, other in (("train", "val"), ("train", "test"), ("val", "test"))
        for key, value in hashes[one].items()
        for twin, theirs in hashes[other].items()
        if (bits := (int(value, 16) ^ int(theirs, 16)).bit_count()) <= MAX_DISTANCE
    }
    assert set(found.pairs) == wanted
    assert found.total == len(wanted)
    assert twins_in_train(hashes) == sorted({pair.key for pair in wanted if pair.split == "train"})


def test_of_too_many_pictures_equal_hashes_alone_are_found(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hashes = {"train": {"a": "0" * 64, "b": "0" * 63 + "1"}, "test": {"c": "0" * 64}}
    assert find_duplicates(hashes, "m").counts == {"train-test": 2}
    monkeypatch.setattr(picture_hash_module, "MAX_COMPARISONS", 1)
    found = find_duplicates(hashes, "m")
    assert (found.counts, found.max_distance) == ({"train-test": 1}, 0)
    assert "only equal hashes are found" in caplog.text


@pytest.mark.parametrize(("limit", "max_distance"), [(6, MAX_DISTANCE), (5, 0)])
def test_the_pairs_across_splits_are_what_is_limited(
    monkeypatch: pytest.MonkeyPatch, limit: int, max_distance: int
) -> None:
    """Three pictures and two: six comparisons."""
    hashes = {"train": {"a": "0" * 64, "b": "1" * 64, "c": "3" * 64}, "test": {"d": "0" * 64, "e": "f" * 64}}
    monkeypatch.setattr(picture_hash_module, "MAX_COMPARISONS", limit)
    assert find_duplicates(hashes, "m").max_distance == max_distance


def test_the_summary_counts_and_names_the_splits() -> None:
    assert summarise_duplicates({"train-test": 0}) == "no near-identical pictures lie across splits"
    assert summarise_duplicates({"train-test": 1}) == "1 near-identical pair lies across splits (1 train-test)"
    found = find_duplicates({"train": {}, "test": {}}, "m")
    assert replace(found, counts={"train-val": 1, "train-test": 1200}).summary.startswith(
        "1,201 near-identical pairs lie"
    )


def test_many_pairs_are_counted_and_the_nearest_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames of a video that lies in two splits are all alike: their pairs do not fit into memory."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 2, 256)
    hashes: dict[str, dict[str, str]] = {"train": {}, "val": {}}
    for split, count in (("train", 60), ("val", 40)):
        for number in range(count):
            bits = frame.copy()
            bits[: int(rng.integers(0, 12))] ^= 1
            hashes[split][f"{split}_{number}"] = np.packbits(bits.astype(np.uint8)).tobytes().hex()
    whole = find_duplicates(hashes, "0")
    assert whole.counts == {"train-val": 2400}
    assert len(whole.pairs) == 1000
    monkeypatch.setattr(picture_hash_module, "MAX_PAIRS_KEPT", 1100)
    assert find_duplicates(hashes, "0") == whole
