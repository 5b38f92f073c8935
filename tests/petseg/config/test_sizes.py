"""Sizes of pictures: one spelling of each, in a config, on a command line and in a sweep."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.design.expansion import expand
from jobs.design.spec import parse_axes, parse_spec
from petseg.config import DataConfig, RunConfig
from petseg.config.sizes import plain_size, size_of, text_of
from petseg.config.values import config_from_dict, config_to_dict, trial_id, with_values
from petseg.estimate import Command
from shards.command.flags import parse

SIDES = st.integers(1, 300).map(lambda n: 32 * n)


@given(SIDES, SIDES)
def test_a_size_survives_being_written(height: int, width: int) -> None:
    text = text_of((height, width))
    assert size_of(text) == size_of(plain_size(text)) == (height, width)
    config = with_values(RunConfig(), {"data.image_size_px": f"{height}x{width}"})
    assert config.data.size_px == (height, width)
    assert isinstance(config.data.image_size_px, int) == (height == width)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_a_square_is_one_run_however_it_is_written() -> None:
    plain = RunConfig()
    written = [
        with_values(plain, {"data.image_size_px": value}) for value in (256, 256.0, "256", "256x256", " 256X256")
    ]
    assert [config.data.image_size_px for config in written] == [256] * 5
    assert DataConfig(image_size_px="256x256") == DataConfig(image_size_px="256") == DataConfig()
    # the id that this config had before there were rectangles
    assert {trial_id(config, "m") for config in written} == {trial_id(plain, "m")} == {"32e69dc83e"}
    assert trial_id(with_values(plain, {"data.image_size_px": "256x512"}), "m") != trial_id(plain, "m")


@pytest.mark.parametrize(
    "value", [0, -32, 100, "64x100", "0x64", "64x", "x64", "64x64x64", "64 by 32", "", "٣٢x٦٤", "9" * 5000]
)
def test_what_is_no_size_is_refused(value: int | str) -> None:
    with pytest.raises(ValueError, match=r"^data\.image_size_px = .*must be a multiple of 32, or height x width"):
        DataConfig(image_size_px=value)


@pytest.mark.parametrize("value", [None, True, 64.5, [64, 128]])
def test_a_value_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be of type int, or HxW"):
        with_values(RunConfig(), {"data.image_size_px": value})


def test_both_spellings_on_a_command_line() -> None:
    for typed, size in (("512x1024", "512x1024"), ("512", 512), ("64x64", 64)):
        assert parse(Command, ["--data.image-size-px", typed], "").run.data.image_size_px == size


def test_both_spellings_as_values_of_an_axis() -> None:
    spec = parse_spec({"parameters": {"data.image_size_px": {"values": [256, "512x1024"]}}}, "sizes")
    cells = expand(spec)
    assert [cell.axes["data.image_size_px"] for cell in cells] == [256, "512x1024"]
    assert [cell.config.data.size_px for cell in cells] == [(256, 256), (512, 1024)]
    assert parse_axes(["data.image_size_px=256,512x1024"]) == {"data.image_size_px": [256, "512x1024"]}


def test_training_starts_no_larger_than_the_shorter_side() -> None:
    assert with_values(RunConfig(), {"data.image_size_px": "64x128", "train.start_size_px": 64})
    with pytest.raises(ValueError, match=r"train.start_size_px = 96: must be at most data.image_size_px = 64x128"):
        with_values(RunConfig(), {"data.image_size_px": "64x128", "train.start_size_px": 96})
