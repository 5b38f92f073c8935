"""Packing pictures with masks of classes: the same promises as for pets."""

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.command import OK, WRONG_USE, run_command
from shards.index import load_index
from shards.integrity.repair import repair
from shards.manifest import CLASSES_VERSION, MANIFEST_NAME, load_manifest, manifest_hash, save_manifest
from shards.pack import main, pack
from shards.packing.publish import STAGING
from shards.show import ShowConfig, show
from shards.verify import verify

REPOSITORY = Path(__file__).parents[2]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def members_of(folder: Path) -> dict[str, bytes]:
    members = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                members[info.name] = file.read()
    return members


def words(scenes, out: Path, *more: object) -> list[str]:
    flags = ("--images", scenes.images, "--masks", scenes.masks, "--classes", scenes.table, "--out", out, *more)
    return [str(flag) for flag in (*flags, "--samples-per-shard", 8, "--workers", 1)]


def test_what_a_set_of_classes_holds(scenes, tmp_path: Path) -> None:
    picture, _ = scenes.add("a.1/ü", "train", seed=5)
    scenes.add("b", "val")
    pack(scenes.config(tmp_path / "set"))
    members = members_of(tmp_path / "set")
    key = "a-x2e1-x2f-xc3-xbc"
    assert members[f"{key}.jpg"] == picture.read_bytes()
    mask = Image.open(io.BytesIO(members[f"{key}.png"]))
    assert mask.mode == "L"
    assert np.array_equal(np.asarray(mask), np.array([0, 0, 0, 1, 1, 0, 0, 2, 0, 255])[scenes.mask(5)])
    assert json.loads(members[f"{key}.json"]) == {
        "key": key, "split": "train", "name": "a.1/ü", "group": "a.1/ü", "width_px": 48, "height_px": 32,
        "original_width_px": 48, "original_height_px": 32, "oddities": [],
    }  # fmt: skip


def test_the_manifest_of_a_set_of_classes(many_scenes, tmp_path: Path) -> None:
    pack(many_scenes.config(tmp_path / "set"))
    content = json.loads((tmp_path / "set" / MANIFEST_NAME).read_text())
    assert content["format_version"] == CLASSES_VERSION == 2
    assert content["source"] == {"name": "scenes", "attribution": ""}
    assert content["classes"]["ignore_value"] == 255
    assert [(one["name"], one["value"]) for one in content["classes"]["classes"]] == [
        ("road", 0),
        ("tree", 1),
        ("car", 2),
    ]
    assert content["classes"]["classes"][1]["colour"] == [0, 255, 0]
    assert set(content["packer"]) == {
        "image_size_px", "jpeg_quality", "samples_per_shard", "seed", "pairs", "classes", "oddities", "labels",
    }  # fmt: skip
    labels = content["packer"]["labels"]
    assert {split: sum(counts) for split, counts in labels["pixels"].items()} == {
        "train": 20 * 48 * 32, "val": 6 * 48 * 32, "test": 4 * 48 * 32,
    }  # fmt: skip
    assert labels["pictures"] == {"train": [20] * 3, "val": [6] * 3, "test": [4] * 3}


def test_the_same_bytes_wherever_it_lies_and_with_any_number_of_processes(many_scenes, tmp_path: Path) -> None:
    pack(many_scenes.config(tmp_path / "one"))
    moved = many_scenes.root.rename(tmp_path / "moved")
    other = {"images": f"{moved}/images/{{split}}/{{key}}.jpg", "masks": f"{moved}/masks/{{split}}/{{key}}.png"}
    pack(many_scenes.config(tmp_path / "two", **other, classes=str(moved / "classes.toml"), workers=2))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert pack(many_scenes.config(tmp_path / "one", **other, classes=str(moved / "classes.toml"))).was_there


def test_squashed_masks_keep_their_values(many_scenes, tmp_path: Path) -> None:
    pack(many_scenes.config(tmp_path / "set", image_size_px=16))
    for name, content in members_of(tmp_path / "set").items():
        if name.endswith(".png"):
            mask = np.asarray(Image.open(io.BytesIO(content)))
            assert mask.shape == (16, 16)
            assert set(np.unique(mask)) <= {0, 1, 2, 255}


def test_verify_show_and_repair(many_scenes, tmp_path: Path) -> None:
    out = tmp_path / "set"
    pack(many_scenes.config(out))
    whole = files_of(out)
    assert verify(out) == []
    assert show(ShowConfig(out, tmp_path / "sheet.png", count=4)) == 4
    shard = out / "train-000001.tar"
    data = bytearray(shard.read_bytes())
    data[2000] ^= 255
    shard.write_bytes(data)
    (out / "val-000000.tar").unlink()
    assert verify(out) != []
    assert repair(out, many_scenes.root) == ["train-000001.tar", "val-000000.tar"]
    assert files_of(out) == whole
    (out / "val-000000.tar").unlink()
    with pytest.raises(ValueError, match="neither the folder that the set was packed from"):
        repair(out, tmp_path)


def test_repair_of_shares_and_lists(many_scenes, tmp_path: Path) -> None:
    pooled = {
        "images": f"{many_scenes.root}/images/train/{{key}}.jpg",
        "masks": f"{many_scenes.root}/masks/train/{{key}}.png",
    }
    lists = []
    for split, numbers in (("train", range(12)), ("val", range(12, 18))):
        lists.append(many_scenes.root / f"{split}.txt")
        lists[-1].write_text("".join(f"train_{number}\n" for number in numbers))
    changes = ({"val_share": 0.2, "group_by": r"\d$", "seed": 3}, {"splits_from": tuple(lists)})
    for number, change in enumerate(changes):
        out = tmp_path / f"set{number}"
        pack(many_scenes.config(out, **pooled, **change))
        whole = files_of(out)
        (out / "train-000000.tar").write_bytes(b"")
        repair(out, many_scenes.root)
        assert files_of(out) == whole


def test_verify_names_a_value_of_no_class(many_scenes, tmp_path: Path) -> None:
    out = tmp_path / "set"
    pack(many_scenes.config(out))
    manifest = load_manifest(out)
    fewer = replace(manifest, classes=replace(manifest.classes, classes=manifest.classes.classes[:2]))
    save_manifest(fewer, out)
    findings = verify(out)
    assert len(findings) == 30
    assert "has other values than 0 (road), 1 (tree), 255 (ignored): 2" in findings[0].problem


KILLED = """
import os, sys
from pathlib import Path
from shards.archive import ShardWriter
from shards.pack import main
leave = ShardWriter.__exit__
done = []
def counted(self, *args):
    leave(self, *args)
    done.append(self)
    if len(done) == 2:
        os._exit(9)
ShardWriter.__exit__ = counted
main(sys.argv[1:])
"""


def test_resume_after_a_kill_ends_with_the_same_bytes(many_scenes, tmp_path: Path, caplog) -> None:
    many_scenes.add("empty", mask=np.zeros((32, 48), np.uint8))
    out = tmp_path / "set"
    whole = pack(many_scenes.config(tmp_path / "whole"))
    done = subprocess.run([sys.executable, "-c", KILLED, *words(many_scenes, out)], cwd=REPOSITORY, check=False)
    assert done.returncode == 9
    assert len(list((out / STAGING).glob("*.tar"))) == 2
    caplog.set_level("INFO")
    resumed = pack(many_scenes.config(out, resume=True))
    assert "2 of 5 shards (14 samples) are whole" in caplog.text
    assert files_of(out) == files_of(tmp_path / "whole")
    assert [(fault.kind, fault.count) for fault in resumed.faults] == [(f.kind, f.count) for f in whole.faults]


def test_another_table_is_another_pack(many_scenes, tmp_path: Path, caplog) -> None:
    out = tmp_path / "set"
    subprocess.run([sys.executable, "-c", KILLED, *words(many_scenes, out)], cwd=REPOSITORY, check=False)
    many_scenes.table.write_text(many_scenes.table.read_text().replace("[3, 4]", "[3]").replace("[9]", "[9, 4]"))
    pack(many_scenes.config(out, resume=True))
    assert "belong to another pack (other settings)" in caplog.text
    assert verify(out) == []


def test_a_set_of_the_other_kind_is_not_replaced(many_scenes, packed: Path, shard_set: Path) -> None:
    with pytest.raises(ValueError, match=r"one has a class table, and the other has none.*--overwrite"):
        pack(many_scenes.config(shard_set, samples_per_shard=10))
    pack(many_scenes.config(shard_set, samples_per_shard=10, overwrite=True))
    assert verify(shard_set) == []


def test_an_older_reader_refuses_the_set_by_its_version(many_scenes, tmp_path: Path) -> None:
    pack(many_scenes.config(tmp_path / "set"))
    content = json.loads((tmp_path / "set" / MANIFEST_NAME).read_text())
    content["format_version"] = 3
    (tmp_path / "set" / MANIFEST_NAME).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has format version 3, this petseg reads 1 and 2"):
        load_manifest(tmp_path / "set")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": []}, "it has 0 classes"),
        ({"classes": [{"name": "a", "value": 1, "colour": [0, 0, 0]}]}, "class 'a' has the value 1, not 0"),
        ({"classes": [{"name": "a", "value": 0, "colour": [0, 0, 300]}]}, "has the colour"),
        ({"classes": [{"name": "\x1b[31m", "value": 0, "colour": [0, 0, 0]}]}, "cannot be shown"),
        ({"classes": [{"name": ["a"], "value": 0, "colour": [0, 0, 0]}]}, "a class is named"),
        ({"classes": 5}, "class table is damaged"),
        ({"ignore_value": 0}, "its ignore value is 0, not 255"),
    ],
)
def test_a_table_that_no_reader_could_use(many_scenes, tmp_path: Path, change: dict, message: str) -> None:
    pack(many_scenes.config(tmp_path / "set"))
    path = tmp_path / "set" / MANIFEST_NAME
    content = json.loads(path.read_text())
    content["classes"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_manifest(tmp_path / "set")


def test_the_hash_covers_the_class_table(many_scenes, tmp_path: Path) -> None:
    pack(many_scenes.config(tmp_path / "set"))
    manifest = load_manifest(tmp_path / "set")
    assert manifest.classes is not None
    first, *rest = manifest.classes.classes
    for change in ({"name": "path"}, {"colour": (1, 2, 3)}):
        table = replace(manifest.classes, classes=(replace(first, **change), *rest))
        assert manifest_hash(replace(manifest, classes=table)) != manifest.hash


def test_a_table_from_what_is_in_the_masks(many_scenes, tmp_path: Path, capsys) -> None:
    out = tmp_path / "set"
    auto = [*words(many_scenes, out), "--classes", "auto"]
    assert run_command(main, auto) == OK
    assert f"then pack with --classes {out}/classes.toml" in capsys.readouterr().out
    text = (out / "classes.toml").read_text()
    assert 'name = "scenes"' in text
    assert text.count("[[class]]  # ") == 5
    assert "in 30 masks" in text
    with Image.open(out / "classes.png") as sheet:
        assert sheet.width > 900
    assert run_command(main, [*auto[:-1], str(out / "classes.toml")]) == OK
    manifest = load_manifest(out)
    assert manifest.classes is not None
    assert len(manifest.classes) == 5
    assert run_command(main, auto) == WRONG_USE
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["palette", "colours", "binary", "void"])
def test_automatic_tables(scenes, tmp_path: Path, kind: str) -> None:
    for number, split in enumerate(("train", "train", "val")):
        values = scenes.mask(number)
        image = Image.fromarray(values)
        if kind == "palette":
            image.putpalette(bytes(range(256)) * 3)
        elif kind == "colours":
            image = Image.fromarray(np.dstack([values * 20, values, 255 - values]))
        elif kind == "binary":
            image = Image.fromarray((values > 0).astype(np.uint8) * 255)
        else:
            image = Image.fromarray(np.where(values == 9, 255, values))
        file = io.BytesIO()
        image.save(file, "PNG")
        scenes.add(str(number), split, mask=file.getvalue())
    assert run_command(main, [*words(scenes, tmp_path / "set"), "--classes", "auto"]) == OK
    text = (tmp_path / "set" / "classes.toml").read_text()
    pack(scenes.config(tmp_path / "set", classes=str(tmp_path / "set" / "classes.toml")))
    manifest = load_manifest(tmp_path / "set")
    assert manifest.classes is not None
    if kind == "binary":
        assert manifest.classes.names == ("background", "foreground")
    elif kind == "void":
        assert "ignore = [255]" in text
        assert len(manifest.classes) == 4
    elif kind == "colours":
        assert 'colours = ["#0000ff"]' in text
    else:
        assert manifest.classes.classes[1].colour == (9, 10, 11)


def test_near_duplicates_are_left_out_of_train(many_scenes, tmp_path: Path) -> None:
    many_scenes.add("again", "val", seed=3)
    outcome = pack(many_scenes.config(tmp_path / "set", drop_duplicates=True))
    assert outcome.manifest.packer["duplicates_dropped"] == ["train_3"]
    keys = [s.key for shard in outcome.manifest.of_split("train") for s in load_index(tmp_path / "set", shard.name)]
    assert "train_3" not in keys
    (tmp_path / "set" / "train-000000.tar").unlink()
    assert repair(tmp_path / "set", many_scenes.root) == ["train-000000.tar"]
