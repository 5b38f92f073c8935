"""Which pack the shards in the hidden folder belong to, and how each is proven whole."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from shards.packing import resume
from shards.packing.origin import list_files
from shards.packing.plan import BuildOptions, Built, ShardPlan, build_shards, plan_shards
from shards.packing.publish import RESUME_NAME
from shards.packing.resume import identity, listing_digest, prove, reuse, save_identity
from shards.sources.pets.oxford import read_folder
from tests.scenes import Scenes

MINE = identity({"seed": 0}, {"listing_sha256": "00"}, 1)


def test_the_facts_that_two_packs_must_share() -> None:
    assert identity({"seed": 3}, {"listing_sha256": "ab"}, 2) == {
        "format_version": 2,
        "packer": {"seed": 3},
        "source": {"listing_sha256": "ab"},
        "encoders": {name: version(name) for name in ("pillow", "simplejpeg", "numpy")},
    }


def test_a_digest_covers_what_is_listed_and_the_size_and_time_of_each_file(odd) -> None:
    odd.add("pug_1")
    odd.add("pug_2", name="test")
    digests = {listing_digest(read_folder(odd.root).samples)}
    assert listing_digest(read_folder(odd.root).samples) in digests

    def changed() -> bool:
        before = len(digests)
        digests.add(listing_digest(read_folder(odd.root).samples))
        return len(digests) > before

    for path in (odd.picture("pug_1"), odd.trimap("pug_2")):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert changed()
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert changed()
    odd.write_list("test", ["pug_2 1 2 1"])
    assert changed()
    assert listing_digest(read_folder(odd.root).samples[::-1]) not in digests


@pytest.mark.parametrize(
    ("part", "theirs", "why"),
    [
        ("packer", {"seed": 1}, "other settings"),
        ("source", {"listing_sha256": "ff"}, "other pictures or lists"),
        ("format_version", 2, "another format_version"),
        ("encoders", {"pillow": "0"}, "another encoders"),
        ("encoders", None, "another encoders"),
    ],
)
def test_what_differs_from_the_staged_pack(tmp_path: Path, part: str, theirs: object, why: str) -> None:
    save_identity(tmp_path, MINE)
    assert resume._why_not_same(tmp_path, MINE) == ""
    save_identity(tmp_path, MINE | {part: theirs})
    assert resume._why_not_same(tmp_path, MINE) == why


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"3", b"\xff"])
def test_a_pack_that_does_not_say_what_it_is_is_another_one(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / RESUME_NAME).write_bytes(content)
    assert resume._why_not_same(tmp_path, MINE) == "no readable resume.json"


@pytest.fixture
def staged(many_scenes: Scenes, tmp_path: Path) -> tuple[Path, list[ShardPlan], dict[str, Built]]:
    """Shards of scenes as a pack has built them, their plan, and what the pack knows of them."""
    many_scenes.add("all_road", mask=np.zeros((32, 48), np.uint8))
    config = many_scenes.config(tmp_path / "set")
    listing = list_files(config)
    plan = plan_shards(listing.samples, seed=0, samples_per_shard=8)
    staging = tmp_path / "staging"
    staging.mkdir()
    options = BuildOptions(staging, 0, 1, lambda number: None, rules=listing.rules)
    return staging, plan, {one.shard.name: one for one in build_shards(plan, options)}


def test_a_shard_that_is_proven_is_the_shard_that_was_built(
    staged: tuple[Path, list[ShardPlan], dict[str, Built]],
) -> None:
    """With its hashes, its oddities and the pixels of its classes; the examples lose their files' names."""
    staging, plan, built = staged
    for planned in plan:
        proven, known = prove(planned, staging, num_classes=3), built[planned.name]
        assert isinstance(proven, Built)
        assert (proven.shard, proven.oddities, proven.hashes) == (known.shard, known.oddities, known.hashes)
        assert proven.labels.content() == known.labels.content()
        assert proven.labels.counts == known.labels.counts
        if known.oddities:
            assert known.oddities == (("one_value", "all_road"),)
            assert proven.labels.examples == {"one_value": ["all_road, in a finished shard"]}
    assert any(known.oddities for known in built.values())
    without = prove(plan[0], staging)
    assert isinstance(without, Built)
    assert without.labels.content() == {"pixels": {}, "pictures": {}}


def test_only_shards_of_the_plan_are_used_again(
    staged: tuple[Path, list[ShardPlan], dict[str, Built]], caplog: pytest.LogCaptureFixture
) -> None:
    staging, plan, _ = staged
    first, second, *others = plan
    (staging / second.name).write_bytes(b"")
    for suffix in (".tar", ".index.json"):
        shutil.copyfile(staging / f"train-000000{suffix}", staging / f"train-000900{suffix}")
    save_identity(staging, MINE)
    with caplog.at_level(logging.INFO):
        again = reuse(staging, MINE, plan, 3)
    assert list(again) == [first.name, *(planned.name for planned in others)]
    samples = sum(one.shard.num_samples for one in again.values())
    assert caplog.messages == [
        f"{second.name} cannot be used (it is empty): packed again",
        f"resuming: {len(plan) - 1} of {len(plan)} shards ({samples} samples) are whole",
    ]
    left = {RESUME_NAME} | {name for one in again for name in (one, one.replace(".tar", ".index.json"))}
    assert {path.name for path in staging.iterdir()} == left


def test_no_shard_of_another_pack_is_used(
    staged: tuple[Path, list[ShardPlan], dict[str, Built]], caplog: pytest.LogCaptureFixture
) -> None:
    staging, plan, _ = staged
    save_identity(staging, MINE | {"packer": {"seed": 7}})
    with caplog.at_level(logging.INFO):
        assert reuse(staging, MINE, plan, 3) == {}
    assert caplog.messages == [
        f"{len(plan)} finished shards belong to another pack (other settings): packed again",
        "no finished shard can be used: packing from the start",
    ]
    assert json.loads((staging / RESUME_NAME).read_text()) == MINE
    assert [path.name for path in staging.iterdir()] == [RESUME_NAME]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert reuse(staging, MINE, plan, 3) == {}
    assert caplog.messages == ["no finished shard can be used: packing from the start"]


def test_a_link_is_no_finished_shard(staged: tuple[Path, list[ShardPlan], dict[str, Built]]) -> None:
    staging, (planned, *_), _ = staged
    (staging / planned.name).rename(staging / "elsewhere")
    (staging / planned.name).symlink_to("elsewhere")
    assert isinstance(prove(planned, staging), str)


def test_a_shard_of_other_samples_is_not_the_planned_one(
    staged: tuple[Path, list[ShardPlan], dict[str, Built]],
) -> None:
    staging, (planned, *_), _ = staged
    for other in (planned.samples[:-1], planned.samples[::-1]):
        assert prove(replace(planned, samples=other), staging) == "its samples are not the expected ones"
