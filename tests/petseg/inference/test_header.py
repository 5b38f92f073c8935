"""The facts of a weights file as JSON: read back as they are, and refused in words where they cannot be."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from petseg.inference import header as module
from petseg.inference.header import MAX_MODELS, MAX_SIDE_PX, NewerFormat, from_json, petseg_version, to_json
from petseg.models.networks import Network
from petseg.run_folder.checkout import Checkout
from shards.classes import ClassEntry
from tests.petseg.inference.test_export import UNET, header_of

HEADER = header_of(
    UNET, Network("fpn", 4, "bilinear", "resnet18", True), image_size_px="32x64", fit="letterbox",
    mixed_precision="bf16", channels_last=False, measured={"split": "val"}, code=Checkout("c0ffee", True, "git@host:x"),
)  # fmt: skip


def test_all_facts_are_read_back() -> None:
    content = json.loads(json.dumps(to_json(HEADER)))
    assert from_json(content) == HEADER
    assert [(one["name"], one["counts"]) for one in content["classes"]] == [
        ("background", False), ("cat", True), ("dog", True),
    ]  # fmt: skip
    assert (HEADER.size_px, HEADER.names, HEADER.counted) == ((32, 64), ("background", "cat", "dog"), (1, 2))


def test_a_set_without_a_background_counts_all_its_classes() -> None:
    classes = tuple(ClassEntry(name, number, (number, 0, 0)) for number, name in enumerate(("road", "tree")))
    header = header_of(classes=classes)
    assert header.counted == (0, 1)
    assert [one["counts"] for one in to_json(header)["classes"]] == [True, True]
    assert from_json(json.loads(json.dumps(to_json(header)))) == header


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": True}, "it has no format version"),
        ({"normalisation": None}, "its normalisation is None"),
        ({"classes": [{"name": "road", "value": 0, "colour": [0, 0, 0]}]}, "it has 1 class"),
        ({"models": []}, f"it has 0 networks: 1 to {MAX_MODELS} are possible"),
        ({"models": [vars(UNET)] * (MAX_MODELS + 1)}, f"it has {MAX_MODELS + 1} networks: 1 to"),
        ({"image_size_px": 48}, "its image_size_px is 48"),
        ({"image_size_px": f"32x{MAX_SIDE_PX + 32}"}, f"its image_size_px is '32x{MAX_SIDE_PX + 32}'"),
        ({"runs": {}}, "a dict where a list is expected"),
        ({"code": None}, "its header: "),
        ({"models": [vars(UNET) | {"width": 7}]}, "model.width = 7: must be even"),
    ],
)
def test_facts_that_cannot_be_are_named(change: dict[str, Any], said: str) -> None:
    content = json.loads(json.dumps(to_json(header_of()) | change))
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        from_json(content)
    assert not isinstance(error.value, NewerFormat)


@pytest.mark.parametrize("size", [MAX_SIDE_PX, f"{MAX_SIDE_PX}x32"])
def test_the_largest_of_all_is_possible(size: int | str) -> None:
    header = header_of(*[UNET] * MAX_MODELS, image_size_px=size)
    assert from_json(json.loads(json.dumps(to_json(header)))) == header


@pytest.mark.parametrize(
    "field", ["combined", "target", "border", "fit", "mixed_precision", "measured", "petseg", "code"]
)
def test_no_fact_has_a_default(field: str) -> None:
    content = json.loads(json.dumps(to_json(header_of())))
    del content[field]
    with pytest.raises(ValueError, match=rf"^its header: KeyError\('{field}'\)$"):
        from_json(content)


@pytest.mark.parametrize("content", [None, [], "x", {}, {"format_version": "1"}])
def test_other_content_has_no_format_version(content: Any) -> None:
    with pytest.raises(ValueError, match=r"^it has no format version$"):
        from_json(content)


def test_a_later_format_is_told_from_damage() -> None:
    with pytest.raises(NewerFormat, match=r"^format version 2, and this petseg reads 1$"):
        from_json({"format_version": 2})


def test_without_an_installation_there_is_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(module, "version", {"petseg": "1.2.3"}.__getitem__)
    assert petseg_version() == "1.2.3"
    monkeypatch.setattr(module, "version", none)
    assert petseg_version() == ""
