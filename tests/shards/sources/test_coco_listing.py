"""Which pictures a file of annotations lists, and what is said of one that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.labels.rules import rules_of
from shards.sources.coco import CocoOptions, read_coco, rules_of_annotations
from shards.sources.patterns import SplitOptions
from tests.shards.coco_files import CATEGORIES, Instances, annotation, box


@pytest.fixture
def instances(tmp_path: Path) -> Instances:
    """A picture in train and one in val, without annotations."""
    made = Instances(tmp_path / "coco")
    made.write("train", ["a.jpg"], [])
    made.write("val", ["b.jpg"], [])
    return made


def refusal(instances: Instances, splits: SplitOptions | None = None) -> str:
    options = CocoOptions(instances.options.images, instances.options.annotations, splits or SplitOptions())
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
        read_coco(options, None)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (lambda c: c["images"][0].update(id=True), "True"), (lambda c: c["images"][0].update(id=1.0), "1.0"),
        (lambda c: c["images"][0].update(id=2**63), str(2**63)), (lambda c: c["images"][0].update(width="8"), "8"),
        (lambda c: c["images"][0].update(height=None), "None"),
        (lambda c: c["categories"][0].update(id="x" * 50), "x" * 40),
        (lambda c: c["annotations"].append({"image_id": -(2**63)}), str(-(2**63))),
    ],
)  # fmt: skip
def test_numbers_are_whole_and_of_64_bits(
    instances: Instances, change: Callable[[dict[str, Any]], object], number: str
) -> None:
    path = instances.root / "instances_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    said = refusal(instances)
    assert said == f"{path} is no COCO JSON of images, annotations and categories (an id is {number!r})"


def test_the_largest_numbers_are_taken(instances: Instances) -> None:
    path = instances.root / "instances_train2017.json"
    path.write_text(path.read_text().replace('"id": 1, "file_name"', f'"id": {2**63 - 1}, "file_name"'))
    assert [sample.key for sample in read_coco(instances.options, None).samples] == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": []}, "has 0 images and 2 categories"),
        ({"categories": []}, "has 1 images and 0 categories"),
        ({"annotations": [annotation(1, 7, 1, box(0, 0, 1, 1))]},
         ": annotations are of the image 7, which it does not list"),
    ],
)  # fmt: skip
def test_a_file_has_images_and_categories_and_annotations_of_those(
    instances: Instances, changes: dict[str, object], said: str
) -> None:
    path = instances.write("train", ["a.jpg"], **({"annotations": []} | changes))
    assert refusal(instances) == f"{path}{'' if said[0] == ':' else ' '}{said}"


@pytest.mark.parametrize(
    ("section", "entry", "said"),
    [
        ("images", {"id": 1, "file_name": "b.jpg", "height": 6, "width": 8}, "two images have the id 1"),
        ("categories", {"id": 3, "name": "car"}, "two categories have the id 3"),
    ],
)
def test_ids_are_of_one_entry(instances: Instances, section: str, entry: dict[str, object], said: str) -> None:
    """Two files that were joined number their pictures alike: masks of one would be drawn on the other."""
    path = instances.root / "instances_train2017.json"
    content = json.loads(path.read_text())
    content[section].append(entry)
    path.write_text(json.dumps(content))
    assert refusal(instances) == f"{path} is no COCO JSON of images, annotations and categories ({said})"


def test_two_pictures_of_one_name_are_refused_in_one_split(instances: Instances) -> None:
    instances.write("train", ["a.jpg", "a.png"], [])
    assert refusal(instances) == f"two pictures have the key 'train/a' in {instances.options.annotations}"


def test_a_group_in_two_splits_is_refused(instances: Instances) -> None:
    instances.write("train", ["v1-a.jpg"], [])
    instances.write("val", ["v1-b.jpg"], [])
    assert refusal(instances, SplitOptions(group_by="^v1")).startswith("group 'v1' is divided: some of it is in train")


def test_missing_pictures_are_counted_and_the_first_named(instances: Instances) -> None:
    path = instances.write("train", [f"{number}.jpg" for number in range(7)], [])
    missing = [instances.root / "train2017" / f"{number}.jpg" for number in range(7)]
    for one in missing:
        one.unlink()
    assert refusal(instances) == f"7 pictures of {path} are missing: {', '.join(map(str, missing[:5]))}"


def test_a_folder_of_pictures_that_is_a_link_out_is_refused(instances: Instances, tmp_path: Path) -> None:
    """A stranger's set would be packed from the folders of whoever packs it."""
    folder = instances.root / "train2017"
    (tmp_path / "mine").mkdir()
    (folder / "a.jpg").rename(tmp_path / "mine" / "a.jpg")
    (folder / "sub").symlink_to(tmp_path / "mine")
    instances.write("train", ["sub/a.jpg"], [])
    where = f"{folder / 'sub'} leads out of {folder}, to {tmp_path / 'mine'}"
    assert refusal(instances) == f"{where}: put the folder itself there"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")  # the folder that is named may be a link
    instances.write("train", ["a.jpg"], [])
    assert len(read_coco(instances.options, None).samples) == 2


def test_a_link_to_a_picture_in_the_same_folder_is_taken(instances: Instances) -> None:
    folder = instances.root / "train2017"
    (folder / "b.jpg").symlink_to("a.jpg")
    content = json.loads((instances.root / "instances_train2017.json").read_text())
    content["images"].append({"id": 2, "file_name": "b.jpg", "height": 6, "width": 8})
    (instances.root / "instances_train2017.json").write_text(json.dumps(content))
    instances.write("val", ["c.jpg"], [])
    assert [sample.name for sample in read_coco(instances.options, None).samples] == ["a", "b", "c"]


def test_classes_are_background_and_the_categories_by_number(instances: Instances) -> None:
    rules = rules_of_annotations(instances.options)
    assert [(one.name, one.values, one.is_rest) for one in rules.classes] == [
        ("background", (), True), ("cat", (1,), False), ("dog", (3,), False),
    ]  # fmt: skip
    assert rules.table().classes[0].colour == (0, 0, 0)
    own = [*CATEGORIES, {"id": 9, "name": " background "}]
    for split in ("train", "val"):
        instances.write(split, [f"{split}.jpg"], [], categories=own)
    assert [one.name for one in rules_of_annotations(instances.options).classes] == ["cat", "dog", "background"]
    path = instances.write("train", ["a.jpg"], [], categories=[{"id": 1, "name": "ignored"}])
    with pytest.raises(ValueError, match=rf"^({path}: a class is named 'ignored'|.* have other categories$)"):
        rules_of_annotations(instances.options)


def test_a_set_is_named_after_the_rules_that_merge_its_categories(instances: Instances) -> None:
    rules = rules_of({"name": "animals", "attribution": "ours", "class": [{"name": "any", "rest": True}]})
    listing = read_coco(instances.options, rules)
    assert (listing.source.name, listing.source.attribution) == ("animals", "ours")
    assert listing.rules is rules


def test_the_split_stands_in_both_or_in_the_annotations_alone(instances: Instances) -> None:
    options = instances.options
    with pytest.raises(
        ValueError, match=r"^--images has \{split\}, so --coco needs it too, as in 'instances_\{split\}"
    ):
        read_coco(CocoOptions(options.images, str(instances.root / "instances_train2017.json")), None)
    nowhere = f"{instances.root}/nowhere_{{split}}.json"
    with pytest.raises(ValueError, match=rf"^no file '{nowhere}' for {{split}} in train, training, tr, val, "):
        read_coco(CocoOptions(options.images, nowhere), None)
    for name in ("train2017/a.jpg", "val2017/b.jpg"):
        (instances.root / name).rename(instances.root / name[-5:])
    samples = read_coco(CocoOptions(str(instances.root), options.annotations), None).samples
    assert [(sample.picture, sample.split) for sample in samples] == [
        (instances.root / "a.jpg", "train"), (instances.root / "b.jpg", "val"),
    ]  # fmt: skip
    missing = instances.root / "none.json"
    with pytest.raises(ValueError, match=rf"^{missing} is missing$"):
        read_coco(CocoOptions(str(instances.root), str(missing)), None)
