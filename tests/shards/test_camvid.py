"""Real street scenes with 12 classes."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.index import load_index
from shards.labels.faults import LabelFaults
from shards.manifest import load_manifest
from shards.pack import Outcome, PackConfig, pack
from shards.packing.survey import write_table
from shards.verify import verify

CLASSES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]


def config_of(root: Path, out: Path, table: Path, **changes: object) -> PackConfig:
    wanted = {"images": f"{root}/images/{{split}}/{{key}}.jpg", "masks": f"{root}/masks/{{split}}/{{key}}.png"}
    return PackConfig(out=out, **({**wanted, "classes": str(table), "workers": 2} | changes))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "classes.toml"
    entries = "".join(f"[[class]]\nname = '{name}'\nvalues = [{value}]\n" for value, name in enumerate(CLASSES))
    path.write_text(f"name = 'camvid'\nignore = [11]\n{entries}")
    return path


@pytest.fixture(scope="module")
def outcome(camvid_root: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    out = tmp_path_factory.mktemp("camvid") / "shards"
    return pack(config_of(camvid_root, out, table)), out


def test_every_pair_is_packed(outcome: tuple[Outcome, Path]) -> None:
    manifest = outcome[0].manifest
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 367, "val": 101}
    assert manifest.classes is not None
    assert manifest.classes.names == tuple(CLASSES)
    assert manifest.packer["oddities"] == {}
    assert verify(outcome[1], num_workers=2) == []


def test_pictures_are_the_originals_and_masks_hold_the_same_values(
    outcome: tuple[Outcome, Path], camvid_root: Path
) -> None:
    for shard in load_manifest(outcome[1]).of_split("val"):
        data = (outcome[1] / shard.name).read_bytes()
        for sample in load_index(outcome[1], shard.name)[:20]:
            jpg, png = (data[m.offset : m.offset + m.num_bytes] for m in (sample.jpg, sample.png))
            assert jpg == (camvid_root / "images" / "val" / f"{sample.key}.jpg").read_bytes()
            path = outcome[1].parent / "mask.png"
            path.write_bytes(png)
            with Image.open(path) as mask, Image.open(camvid_root / "masks" / "val" / f"{sample.key}.png") as original:
                assert np.array_equal(np.asarray(mask), np.where(np.asarray(original) == 11, 255, np.asarray(original)))


def test_no_mask_is_taken_for_faulty(outcome: tuple[Outcome, Path]) -> None:
    assert {fault.kind for fault in outcome[0].faults} <= {"near_duplicate", "rare_class"}


@pytest.mark.slow
def test_videos_stay_in_one_split(camvid_root: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="group '0016E5' is divided"):
        pack(config_of(camvid_root, tmp_path / "set", table, group_by="^[^_]+"))
    pooled = {key: f"{camvid_root}/{key}/train/{{key}}.{end}" for key, end in (("images", "jpg"), ("masks", "png"))}
    manifest = pack(
        config_of(camvid_root, tmp_path / "set", table, **pooled, group_by="^[^_]+", val_share=0.2)
    ).manifest
    videos = {
        split: {re.match("[^_]+", sample.key)[0] for shard in manifest.of_split(split)
                for sample in load_index(tmp_path / "set", shard.name)}
        for split in ("train", "val")
    }  # fmt: skip
    assert videos["train"]
    assert videos["val"]
    assert not videos["train"] & videos["val"]


@pytest.mark.slow
def test_a_class_that_the_table_lacks_is_named(camvid_root: Path, table: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.toml").write_text(table.read_text().replace("ignore = [11]", ""))
    with pytest.raises(LabelFaults, match=r"unknown_value \(468\)") as caught:
        pack(config_of(camvid_root, tmp_path / "set", tmp_path / "classes.toml"))
    assert "pixels of no class, 11" in caught.value.faults[0].examples[0]


def test_the_automatic_table(camvid_root: Path, tmp_path: Path) -> None:
    written, sheet = write_table(config_of(camvid_root, tmp_path / "set", Path("auto")))
    text = written.read_text()
    assert text.count("[[class]]") == 12
    assert '[[class]]  # 25,130,056 pixels (31.07%) in 468 masks\nname = "class_3"\nvalues = [3]' in text
    assert 'name = "camvid"' in text
    with Image.open(sheet) as image:
        assert image.size == (990, 1558)
