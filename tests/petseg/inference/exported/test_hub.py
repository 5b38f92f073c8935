"""The folder for the hub: its files, the licence that it states, and the measurements that its card lists."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from petseg.inference.exported.hub import (
    LICENCES,
    SIZE_RULES,
    Row,
    escaped,
    front_matter,
    model_card,
    numbers,
    plain,
    write_hub_folder,
)
from petseg.inference.header import Header, to_json
from petseg.models.networks import Network
from tests.petseg.inference.test_export import UNET, header_of

ORIGIN = header_of().runs[0]


def header_from(*attributions: str) -> Header:
    return header_of(runs=tuple(replace(ORIGIN, attribution=one) for one in attributions))


@pytest.mark.parametrize(
    ("attributions", "licence"),
    [
        (["Somebody, CC BY-SA 4.0"], "cc-by-sa-4.0"),
        (["CC BY 4.0"], "cc-by-4.0"),
        (["by X, CC BY-NC-SA 4.0, 2020", "CC BY-NC-SA 4.0"], "cc-by-nc-sa-4.0"),
        (["CC BY 4.0", "CC BY-SA 4.0"], None),
        (["CC BY 4.0", "not known"], None),
        (["not known"], None),
        ([""], None),
    ],
)
def test_the_licence_is_that_of_all_pictures_or_none(attributions: list[str], licence: str | None) -> None:
    facts = yaml.safe_load(front_matter(header_from(*attributions)))
    assert facts.pop("license", None) == licence
    assert facts == {
        "library_name": "petseg", "pipeline_tag": "image-segmentation", "tags": ["semantic-segmentation", "unet"],
        "metrics": ["dice"],
    }  # fmt: skip
    assert set(LICENCES.values()) == {"cc-by-sa-4.0", "cc-by-4.0", "cc-by-nc-sa-4.0"}


def test_what_the_file_itself_was_measured_to_do_comes_first() -> None:
    measured = {"metrics": {"test/dice": 0.75}, "dice_interval_95": [0.5, 1.0], "protocol": "by hand"}
    evaluated = {"test": {"metrics": {"test/dice": 0.5}, "dice_interval_95": None}, "val": "damaged"}
    runs = (
        replace(ORIGIN, trial_id="a", evaluations=evaluated, metrics={"val/dice": 0.1}),
        replace(ORIGIN, trial_id="b", metrics={"val/dice": 0.25, "test/dice": 0.125}),
        replace(ORIGIN, trial_id="c", metrics={}),
    )
    assert list(numbers(header_of(runs=runs, measured=measured))) == [
        Row("this file", "test", 0.75, "0.5000 to 1.0000", "by hand"),
        Row("run a", "test", 0.5, "", ""),
        Row("run b", "test", 0.125, "", "at the end of the training"),
        Row("run b", "val", 0.25, "", "at the end of the training"),
    ]


@pytest.mark.parametrize(
    ("content", "intervals"),
    [
        ({"metrics": []}, []),
        ({}, []),
        ({"metrics": {"val/dice": "high"}}, []),
        ({"metrics": {"val/dice": 0.5, "train/dice": 0.75}}, ["", ""]),
        ({"metrics": {"val/dice": 0.5}, "dice_interval_95": [0.25]}, [""]),
        ({"metrics": {"val/dice": 0.5}, "dice_interval_95": [0.25, "high"]}, [""]),
        ({"metrics": {"val/dice": 0.5}, "dice_interval_95": [0.25, 0.75, 1.0]}, [""]),
        ({"metrics": {"val/dice": 0.5}, "dice_interval_95": [0.25, 0.75]}, ["0.2500 to 0.7500"]),
    ],
)
def test_of_what_does_not_look_like_a_measurement_there_is_no_row(content: Any, intervals: list[str]) -> None:
    header = header_of(runs=(replace(ORIGIN, evaluations={"val": content}),))
    assert [row.interval for row in numbers(header)] == intervals


def test_a_card_says_what_the_model_is() -> None:
    encoder = Network("fpn", 4, "bilinear", "resnet18", False)
    for header, words in (
        (
            header_of(),
            ["# unet: cat, dog\n", "into 3 classes by unet, trained with petseg\n0.1.0. ", "val | 0.5000 |  |"],
        ),
        (header_of(encoder), ["# fpn on resnet18: cat, dog\n", "by fpn on resnet18, trained"]),
        (header_of(UNET, UNET, runs=(ORIGIN,) * 2), ["by unet, an ensemble of 2 runs, trained"]),
        (header_of(combined="average", runs=(ORIGIN,) * 3), ["by unet, with the mean weights of 3 runs, trained"]),
        (header_of(fit="crop", image_size_px="64x96"), [SIZE_RULES["crop"], "size is 64x96 px."]),
        (
            header_of(runs=(replace(ORIGIN, metrics={}, attribution=""),)),
            ["None were taken.", "- origin not known ("],
        ),
    ):
        card = model_card(header)
        assert [word for word in words if word not in card] == []
        assert card.startswith(f"---\n{front_matter(header)}---\n")
    assert "origin not known" not in model_card(header_of())


def test_a_folder_is_written_once(tmp_path: Path) -> None:
    weights, out = tmp_path / "w.safetensors", tmp_path / "hub"
    weights.write_bytes(b"weights")
    out.mkdir()  # an empty one will do
    write_hub_folder(weights, header_of(), out)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (out / "model.safetensors").read_bytes() == b"weights"
    assert json.loads((out / "config.json").read_text()) == json.loads(json.dumps(to_json(header_of())))
    assert (out / "README.md").read_text() == model_card(header_of())
    for taken in (out, weights):
        with pytest.raises(ValueError, match=rf"^--out {taken}: it exists already; choose another name$"):
            write_hub_folder(weights, header_of(), taken)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b*c", r"a\_b\*c"),
        ("one\ntwo\t three", "one two three"),
        ("https://host", r"https\://host"),
        ("10:30", "10:30"),
        ("www.host.de", r"www\.host.de"),
        ("v1.2", "v1.2"),
        ("\u202eabc", "abc"),
    ],
)
def test_markup_is_shown_as_it_is(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_names_in_code_have_plain_characters() -> None:
    assert plain("a-b_c.9`|<é") == "a-b_c.9"
