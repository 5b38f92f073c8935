"""COCO's annotations as masks of classes, and files that a stranger could have written."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.command import OK, Failure, run_command
from shards.integrity.repair import repair
from shards.labels.faults import LabelFaults
from shards.labels.observed import LabelProblem, Observed
from shards.manifest import load_manifest
from shards.pack import main, pack
from shards.packing.options import PackConfig
from shards.packing.resume import listing_digest
from shards.sources.coco import CocoOptions, coco_again, read_coco
from shards.sources.patterns import SplitOptions
from shards.verify import verify
from tests.shards.coco_files import Instances, annotation, box

BLACK = np.zeros((6, 8, 3), np.uint8)


@pytest.fixture
def instances(tmp_path: Path) -> Instances:
    made = Instances(tmp_path / "coco")
    made.write(
        "train",
        ["a.jpg", "b/ü.jpg"],
        [
            annotation(1, 1, 1, box(0, 0, 4, 4), area=16),
            annotation(2, 1, 3, box(2, 2, 2, 2), area=4),  # on the cat
            annotation(3, 1, 1, {"size": [6, 8], "counts": [0, 48]}, iscrowd=1, area=48),  # below both
            annotation(4, 2, 3, {"size": [6, 8], "counts": [6, 6, 36]}, area=6),
        ],
    )
    made.write("val", ["c.jpg"], [])
    return made


def test_masks(instances: Instances) -> None:
    listing = read_coco(instances.options, None)
    assert listing.classes is not None
    assert listing.classes.names == ("background", "cat", "dog")
    samples = {sample.facts()["name"]: sample for sample in listing.samples}
    assert {name: sample.split for name, sample in samples.items()} == {"a": "train", "b/ü": "train", "c": "val"}
    first = np.full((6, 8), 255)
    first[:4, :4] = 1
    first[2:4, 2:4] = 2
    assert np.array_equal(samples["a"].read_mask(BLACK).pixels, first)
    assert samples["b/ü"].read_mask(BLACK).pixels.tolist() == [[0, 2, 0, 0, 0, 0, 0, 0]] * 6
    empty = samples["c"].read_mask(BLACK)
    assert not empty.pixels.any()
    assert empty.oddities == ("one_value",)


def test_pack_verify_and_repair(instances: Instances, tmp_path: Path) -> None:
    config = PackConfig(
        out=tmp_path / "set", images=instances.options.images, coco=instances.options.annotations, workers=1
    )
    pack(config)
    manifest = load_manifest(config.out)
    assert manifest.packer["coco"]["annotations"] == "instances_{split}2017.json"
    assert manifest.packer["labels"]["pixels"]["train"][2] == 10
    assert verify(config.out) == []
    whole = (config.out / "train-000000.tar").read_bytes()
    (config.out / "train-000000.tar").write_bytes(whole[:1000])
    repair(config.out, instances.root)
    assert (config.out / "train-000000.tar").read_bytes() == whole


def test_one_file_and_shares(instances: Instances) -> None:
    options = CocoOptions(f"{instances.root}/train2017", f"{instances.root}/instances_train2017.json")
    with pytest.raises(ValueError, match="all pictures would be in train"):
        read_coco(options, None)


def test_categories_can_be_merged(instances: Instances, tmp_path: Path) -> None:
    words = ["--images", instances.options.images, "--coco", instances.options.annotations, "--workers", "1"]
    assert run_command(main, [*words, "--classes", "auto", "--out", str(tmp_path / "set")]) == OK
    table = tmp_path / "set" / "classes.toml"
    text = table.read_text()
    assert '[[class]]  # category 3\nname = "dog"\nvalues = [3]' in text
    assert "rest = true" in text
    table.write_text("[[class]]\nname = 'none'\nrest = true\n[[class]]\nname = 'pet'\nvalues = [1, 3]\n")
    assert run_command(main, [*words, "--classes", str(table), "--out", str(tmp_path / "set")]) == OK
    classes = load_manifest(tmp_path / "set").classes
    assert classes is not None
    assert classes.names == ("none", "pet")


def test_a_category_of_no_class_and_a_picture_of_another_size(instances: Instances, tmp_path: Path) -> None:
    instances.write("train", ["a.jpg", "b.jpg"], [annotation(1, 1, 7, box(0, 0, 1, 1))])
    path = instances.root / "train2017" / "b.jpg"
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(path)
    config = PackConfig(
        out=tmp_path / "set", images=instances.options.images, coco=instances.options.annotations, workers=1
    )
    with pytest.raises(LabelFaults) as caught:
        pack(config)
    assert {fault.kind: fault.count for fault in caught.value.faults} == {
        "unknown_value": 1, "size_differs": 1, "one_value": 1,
    }  # fmt: skip
    assert "category 7 is in no class" in str(caught.value)


def test_a_mask_and_its_problem_know_file_and_split(instances: Instances) -> None:
    first, second, third = read_coco(instances.options, None).samples
    where = f"{first.annotations}, a.jpg"
    observed = first.read_mask(BLACK).observed
    assert observed == Observed(where, "train", (0, 12, 4, 32))
    assert third.read_mask(BLACK).observed == replace(
        observed, name=f"{third.annotations}, c.jpg", split="val", pixels=(48, 0, 0, 0),
        faults=(("one_value", f"{third.annotations}, c.jpg: all pixels are of one class"),),
    )  # fmt: skip
    assert (first.row(), second.row()) == (["a", "train", "a", "a"], ["b-x2f-xc3-xbc", "train", "b/ü", "b/ü"])
    assert third.files() == (instances.root / "val2017" / "c.jpg", instances.root / "instances_val2017.json")
    with pytest.raises(LabelProblem) as error:
        first.read_mask(np.zeros((8, 6, 3), np.uint8))
    said = f"{where}: drawn on 8 x 6, and the picture is 6 x 8"
    assert (str(error.value), error.value.observed) == (
        said, Observed(where, "train", (), faults=(("size_differs", said),)),
    )  # fmt: skip


def test_small_instances_lie_on_large_ones_and_crowds_below_all(instances: Instances) -> None:
    """Whatever their order in the file; of equal ones the later number lies above, and without an area it is large."""
    path = instances.write(
        "train",
        ["a.jpg"],
        [
            annotation(5, 1, 1, box(0, 0, 1, 1), area=1),
            annotation(2, 1, 3, box(0, 0, 2, 1), area=2),
            annotation(3, 1, 3, box(2, 0, 1, 1), area=9),
            annotation(4, 1, 1, box(2, 0, 1, 1), area=9),
            annotation(1, 1, 1, box(0, 0, 8, 1), area=0.5, iscrowd=1),
            annotation(6, 1, 1, box(0, 1, 1, 1)),
        ],
    )
    sample = read_coco(CocoOptions(instances.options.images, str(instances.options.annotations)), None).samples[0]
    assert sample.annotations == path
    mask = sample.read_mask(BLACK).pixels
    assert mask[0].tolist() == [1, 2, 1, 255, 255, 255, 255, 255]
    assert mask[1].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_an_annotation_that_cannot_be_drawn_is_named(instances: Instances) -> None:
    instances.write("train", ["a.jpg"], [annotation(7, 1, 1, "none")])
    sample = read_coco(instances.options, None).samples[0]
    with pytest.raises(Failure, match=r"instances_train2017\.json, a\.jpg: annotation 7 cannot be drawn \("):
        sample.read_mask(BLACK)


def test_annotations_are_found_again_by_what_the_manifest_says(instances: Instances) -> None:
    options = CocoOptions(
        f"{instances.root}/train2017",
        f"{instances.root}/instances_train2017.json",
        SplitOptions(val_share=0.5, group_by="^.", seed=3),
    )
    listing = read_coco(options, None)
    assert listing.settings["coco"] == {
        "images": "train2017", "annotations": "instances_train2017.json", **options.splits.content(instances.root),
    }  # fmt: skip
    assert (listing.source.name, listing.source.values, listing.oddities) == ("coco", {}, {})
    assert listing.settings["classes"] == listing.rules.content()
    assert coco_again({**listing.settings, "seed": 3}, instances.root) == listing
    assert {sample.group for sample in listing.samples} == {"a", "b"}


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../b.jpg", "", "a\0.jpg"])
def test_a_picture_that_leads_out_of_its_folder(instances: Instances, name: str) -> None:
    path = instances.root / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"instances_val2017\.json is no COCO JSON .*(leads out|a file_name is)"):
        read_coco(instances.options, None)


def test_a_picture_that_is_a_link_out(instances: Instances, tmp_path: Path) -> None:
    path = instances.root / "val2017" / "c.jpg"
    (tmp_path / "secret").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"c\.jpg is a link out of .*val2017"):
        read_coco(instances.options, None)
    path.unlink()
    with pytest.raises(ValueError, match=r"1 pictures of .*instances_val2017\.json are missing: .*c\.jpg"):
        read_coco(instances.options, None)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", "null", '{"images": 5}', '{"images": [', '{"images": [{"id": 1}]}', '{"images": [[[[',
        '{"images": [{"id": "1", "file_name": "a", "height": 1, "width": 1}]}',
        '{"images": [], "annotations": [], "categories": []}',
        '{"annotations": [{"image_id": 1e99}], "images": [], "categories": []}',
        '{"images": [' + "[" * 5000 + "]" * 5000 + "]}",
    ],
)  # fmt: skip
def test_what_is_no_coco_file(instances: Instances, content: str) -> None:
    (instances.root / "instances_val2017.json").write_text(content)
    with pytest.raises(ValueError, match=r"instances_val2017\.json"):
        read_coco(instances.options, None)


def test_splits_with_other_categories(instances: Instances) -> None:
    instances.write("val", ["c.jpg"], [], categories=[{"id": 1, "name": "cat"}])
    with pytest.raises(ValueError, match="have other categories"):
        read_coco(instances.options, None)


def test_pictures_that_both_splits_number_alike(instances: Instances) -> None:
    instances.write("val", ["a.jpg"], [])
    names = [sample.facts()["name"] for sample in read_coco(instances.options, None).samples]
    assert names == ["train/a", "train/b/ü", "val/a"]


def test_annotations_that_change_while_they_are_read(instances: Instances) -> None:
    sample = read_coco(instances.options, None).samples[0]
    sample.annotations.write_text(" " * 2000)
    with pytest.raises(Failure, match="were changed while they were read"):
        sample.read_mask(BLACK)


def test_a_sample_holds_no_annotations(instances: Instances) -> None:
    """100,000 pictures fit into memory: a sample knows where its annotations lie."""
    sample = read_coco(instances.options, None).samples[0]
    data = sample.annotations.read_bytes()
    starts, ends = sample.spans[::2], sample.spans[1::2]
    assert [json.loads(data[start:end])["id"] for start, end in zip(starts, ends, strict=True)] == [1, 2, 3]
    assert len(sample.spans.tobytes()) == 3 * 16


def test_pictures_that_no_list_names_are_left_out_and_told(instances: Instances, tmp_path: Path) -> None:
    path = instances.write("train", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], [])
    lists = (tmp_path / "train.txt", tmp_path / "val.txt")
    for one, names in zip(lists, ("a\nb\n", "c\n"), strict=True):
        one.write_text(names)
    options = CocoOptions(f"{instances.root}/train2017", str(path), SplitOptions(lists=lists))
    listing = read_coco(options, None)
    assert {sample.name: sample.split for sample in listing.samples} == {"a": "train", "b": "train", "c": "val"}
    assert listing.oddities == {"unlisted_picture": ("d",)}
    lists[0].write_text("a\nb\nd\n")
    assert read_coco(options, None).oddities == {}


@pytest.mark.parametrize("field", ["key", "split", "name", "group"])
def test_a_pack_goes_on_only_with_what_it_would_pack_alike(instances: Instances, field: str) -> None:
    """All four stand in the shard: a killed pack with another one of them is begun anew."""
    first, *others = read_coco(instances.options, None).samples
    before = listing_digest([first, *others])
    assert listing_digest([first, *others]) == before
    assert listing_digest([replace(first, **{field: "x"}), *others]) != before
    first.annotations.write_text(f"{first.annotations.read_text()} ")
    assert listing_digest([first, *others]) != before
