"""The doctor on shards, splits and configs that are broken in each way that it looks for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.checks import data as data_checks
from jobs.checks.setup import Finding
from petseg.data.mixing import Mixing
from shards.index import Sample, index_name, load_index, save_index
from shards.manifest import Manifest, load_manifest, save_manifest, split_of_keys
from shards.near_duplicates.note import NEAR_DUPLICATES_NAME
from shards.pack import PackConfig, pack
from tests.petseg.shard_server import serve

Doctor = Callable[..., dict[str, Finding]]


# shards and splits


def test_no_shard_set_is_said_once(ask: Doctor, tmp_path: Path) -> None:
    found = ask("shards,splits,cache,resume", shards=tmp_path / "none")
    assert ": `python -m shards.pack --download" in found["shards"].detail
    assert {found[name].detail for name in ("splits", "cache", "resume")} == {"not checked: see shards"}
    assert ask("splits", shards=tmp_path / "none")["splits"].detail.startswith("not checked: no shard set in")


def test_shards_that_are_cut_missing_or_have_another_index(ask: Doctor, copied: Path) -> None:
    with (copied / "train-000000.tar").open("r+b") as file:
        file.truncate(5000)
    (copied / "test-000001.tar").unlink()
    (copied / index_name("val-000000.tar")).write_text("[]")
    finding = ask("shards", shards=copied)["shards"]
    assert finding.status == "FAIL"
    assert "train-000000.tar has 5000 bytes" in finding.detail
    assert "test-000001.tar is missing" in finding.detail
    assert "val-000000.index.json is altered" in finding.detail
    assert finding.advice == f"python -m shards.verify {copied} --repair ANOTHER-COPY"


def test_a_wrong_byte_is_found_by_deep_only(ask: Doctor, copied: Path) -> None:
    with (copied / "train-000000.tar").open("r+b") as file:
        file.seek(load_index(copied, "train-000000.tar")[0].jpg.offset + 50)
        file.write(b"\0\1\2")
    assert ask("shards", shards=copied)["shards"].status == "ok"
    finding = ask("shards", "--deep", shards=copied)["shards"]
    assert finding.status == "FAIL"
    assert "findings" in finding.detail


def test_a_deep_look_leaves_no_shard_open(pet_shards: Path) -> None:
    shards = load_manifest(pet_shards).shards
    opened: list[tuple[str, int]] = []

    class Remote:
        manifest = load_manifest(pet_shards)

        def open(self, shard: str) -> int:
            opened.append((shard, os.open(pet_shards / shard, os.O_RDONLY)))
            return opened[-1][1]

    found = data_checks._deep(Remote(), True, "the set")  # type: ignore[arg-type]
    assert found == Finding("ok", "shards", "the set: each fetched, sha256 as in the manifest")
    assert [shard for shard, _ in opened] == [shard.name for shard in shards]
    for _, descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_remote_shards(ask: Doctor, pet_shards: Path, tmp_path: Path) -> None:
    with serve(pet_shards) as server:
        found = ask("shards,splits", shards=server.url)
        assert {finding.status for finding in found.values()} == {"ok"}, found
        assert "tars not (--deep fetches them)" in found["shards"].detail
        assert not [name for name in server.asked if name.endswith(".tar")]
        assert "each fetched, sha256 as in the manifest" in ask("shards", "--deep", shards=server.url)["shards"].detail
    found = ask("shards", shards=server.url)
    assert found["shards"].status == "FAIL"


def changed(folder: Path, shard: str, change: Callable[[list[Sample]], list[Sample]]) -> Manifest:
    """The set with another index of one shard, and a manifest that fits."""
    manifest = load_manifest(folder)
    sha256 = save_index(change(load_index(folder, shard)), folder, shard)
    shards = tuple(replace(s, index_sha256=sha256) if s.name == shard else s for s in manifest.shards)
    splits = {
        split: split_of_keys(sample.key for s in manifest.of_split(split) for sample in load_index(folder, s.name))
        for split in manifest.splits
    }
    return save_manifest(replace(manifest, shards=shards, splits=splits), folder)


def test_a_key_in_two_splits(ask: Doctor, copied: Path) -> None:
    (first, *_) = load_index(copied, "train-000000.tar")
    changed(copied, "test-000000.tar", lambda samples: [first, *samples[1:]])
    finding = ask("splits", shards=copied)["splits"]
    assert finding.status == "FAIL"
    assert f"{first.key} is in train and test" in finding.detail


def test_a_picture_in_two_splits_under_another_name(ask: Doctor, copied: Path) -> None:
    (first, *_) = load_index(copied, "train-000000.tar")
    changed(copied, "test-000000.tar", lambda samples: [replace(samples[0], jpg=first.jpg), *samples[1:]])
    finding = ask("splits", shards=copied)["splits"]
    assert finding.status == "warn"
    assert "1 pictures are in two splits" in finding.detail


def test_keys_that_are_not_the_manifests(ask: Doctor, copied: Path) -> None:
    manifest = load_manifest(copied)
    wrong = replace(manifest.splits["val"], key_xor="0" * 16)
    save_manifest(replace(manifest, splits={**manifest.splits, "val": wrong}), copied)
    finding = ask("splits", shards=copied)["splits"]
    assert finding.status == "FAIL"
    assert "key_xor='0000000000000000'" in finding.detail


# config


def test_cells_on_copies_of_a_shard_set_are_one_trial(
    ask: Doctor, pet_shards: Path, copied: Path, tmp_path: Path
) -> None:
    pack(PackConfig(out=tmp_path / "other", synthetic=40, seed=9, image_size_px=64, workers=1))
    finding = ask("config", "--axis", f"data.shards={pet_shards},{tmp_path / 'other'}")["config"]
    assert finding.status == "ok", finding.detail
    finding = ask("config", "--axis", f"data.shards={pet_shards},{copied}")["config"]
    assert (finding.status, finding.detail.split(" trials")[0]) == ("warn", "36 cells are only 18")


@pytest.mark.parametrize(
    ("flags", "status", "detail"),
    [
        (["--axis", "model.arch=unet,vgg"], "FAIL", "model.arch = 'vgg': choose one of unet, resnet34_unet"),
        (["--set", "train.batch_size=4", "--tasks-per-node", "8"], "FAIL", "train.batch_size = 4 is less than 8"),
        (
            ["--set", "train.batch_size=10", "--tasks-per-node", "4"],
            "warn",
            "shared unevenly by 4 processes x 1 micro-batches",
        ),
        (["--set", "train.mixed_precision=fp16"], "warn", "fp16 needs a GPU"),
        (["--axis", "data.threads=1,2"], "FAIL", "data.threads cannot be an axis"),
        (["--set", "data.image_size_px=128"], "warn", "packed at 64 px would be enlarged to data.image_size_px = 128"),
        (["--set", "data.image_size_px=64x128"], "warn", "would be enlarged to data.image_size_px = 128"),
        (["--set", "data.fit=crop"], "warn", "were squashed to 64 px when they were packed, which data.fit = crop"),
    ],
)
def test_configs(ask: Doctor, flags: list[str], status: str, detail: str) -> None:
    finding = ask("config", *flags)["config"]
    assert finding.status == status
    assert detail in finding.detail


def test_a_gpu_without_bf16(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    assert ask("config")["config"].detail.startswith("Old GPU cannot compute in bf16")


def test_near_identical_pictures_in_two_splits(ask: Doctor, copied: Path) -> None:
    note = copied / NEAR_DUPLICATES_NAME
    content = json.loads(note.read_text())
    assert ask("splits", shards=copied)["splits"].detail.endswith("no near-identical pictures lie across splits")
    for altered, detail in (
        (content | {"counts": {"train-test": 18, "val-test": 2}}, "20 near-identical pairs lie across splits"),
        (content | {"manifest_hash": "of another set"}, "nobody has looked for near-identical ones"),
        ([], "is damaged"),
    ):
        note.write_text(json.dumps(altered))
        finding = ask("splits", shards=copied)["splits"]
        assert finding.status == "warn"
        assert detail in finding.detail
        assert f"python -m shards.duplicates {copied}" in finding.advice


def test_class_sorted_shards_and_a_small_window_are_warned_of(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask("mixing")["mixing"].status == "ok"
    monkeypatch.setattr(data_checks, "mixing_of", lambda *words: Mixing(3.6, 12.9, 1, 13))
    finding = ask("mixing")["mixing"]
    assert finding.status == "warn"
    assert "a shuffle window of 1 shard sees 3.6 of the 12.9 classes" in finding.detail
