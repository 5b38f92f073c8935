"""Files of measured models: read back as written, and refused by name where somebody else wrote them differently."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petseg.compress import main
from petseg.inference.point_files import MAX_BYTES, MAX_POINTS, Point, Points, Setting, Speed, read_points, write_points
from shards.command import WRONG_USE, run_command
from shards.files import NotRegular

FIRST = Point("winner.safetensors", 0.9, [0.88, 0.92], None, 4.34, 1_080_000, Speed(18.5, 60.0), 250.0)
SECOND = Point(
    "winner.int8.onnx", 0.899, [0.879, 0.919], [-0.001, -0.002, 0.0], 1.15, 1_080_000, Speed(6.5, 150.0), 0.0
)
POINTS = Points("native size, mean over pictures", "test", "12ab", "Some CPU", 2, (FIRST, SECOND))


def test_read_as_written(tmp_path: Path) -> None:
    write_points(POINTS, tmp_path / "points" / "one.json")
    assert read_points(tmp_path / "points" / "one.json") == POINTS
    assert POINTS.setting == Setting("native size, mean over pictures", "test", "12ab", "Some CPU", 2)


def test_a_single_picture_has_no_intervals(tmp_path: Path) -> None:
    alone = Points("p", "val", "h", "d", 1, (Point("a", 1.0, None, None, 1.0, 1, Speed(1.0, 1.0), 1.0),))
    write_points(alone, tmp_path / "one.json")
    assert read_points(tmp_path / "one.json") == alone


def test_numbers_and_texts_may_reach_their_bounds(tmp_path: Path) -> None:
    text = "x" * 300
    largest = Point(text, 1.0, [-1.0, 2.0], [2.0, -2.0, 2.0], 1e12, 10**12, Speed(0.0, 1e12), 1e12)
    least = Point("", 0.0, [0.0, 0.0], None, 0.0, 0, Speed(0.0, 0.0), 0.0)
    points = Points(text, "", "", "", 0, (largest, least) * (MAX_POINTS // 2))
    write_points(points, tmp_path / "one.json")
    assert read_points(tmp_path / "one.json") == points


def test_a_file_is_made_with_its_folder_but_not_with_the_folders_above(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_points(POINTS, tmp_path / "a" / "b" / "one.json")
    assert list(tmp_path.iterdir()) == []


Change = Callable[[dict[str, Any]], Any]
DAMAGES: dict[str, Change] = {
    "no format version": lambda c: c.pop("format_version"),
    "format version 2, and this petseg reads 1": lambda c: c.update(format_version=2),
    "points is no list": lambda c: c.update(points={}),
    "of 1 to": lambda c: c.update(points=[]),
    f"1 to {MAX_POINTS} models": lambda c: c.update(points=c["points"] * MAX_POINTS),
    "threads is 'two'": lambda c: c.update(threads="two"),
    "threads is 'True'": lambda c: c.update(threads=True),
    "device has 301 characters": lambda c: c.update(device="x" * 301),
    "a list where a model is expected": lambda c: c.update(points=[[]]),
    "a model has the fields": lambda c: c["points"][0].pop("speed"),
    "a str where an object is expected": lambda c: c["points"][0].update(speed="fast"),
    "latency_ms is nan": lambda c: c["points"][0]["speed"].update(latency_ms=float("nan")),
    "images_per_s is inf": lambda c: c["points"][0]["speed"].update(images_per_s=float("inf")),
    "file_mb is -1": lambda c: c["points"][0].update(file_mb=-1.0),
    "file_mb is 1e+300": lambda c: c["points"][0].update(file_mb=1e300),
    "Dice 1.5": lambda c: c["points"][0].update(dice=1.5),
    "Dice 0.9 with the interval [0.95, 0.99]": lambda c: c["points"][0].update(dice_interval_95=[0.95, 0.99]),
    "2 numbers are expected": lambda c: c["points"][0].update(dice_interval_95=[0.1]),
    "nan where a Dice is expected": lambda c: c["points"][1].update(difference_to_first=[float("nan"), 0, 0]),
    "points is no list of 1": lambda c: c.update(points={"0": c["points"][0]}),
    "Dice 1.01 with the interval None": lambda c: c["points"][0].update(dice=1.01, dice_interval_95=None),
    "dice is -0.5": lambda c: c["points"][0].update(dice=-0.5, dice_interval_95=None),
    "[-1.01, 0.95]": lambda c: c["points"][0].update(dice_interval_95=[-1.01, 0.95]),
    "True where a Dice is expected": lambda c: c["points"][0].update(dice_interval_95=[True, True]),
    "0.5 where a Dice is expected": lambda c: c["points"][0].update(dice_interval_95=["0.5", 1.0]),
    "2.01 where a Dice is expected": lambda c: c["points"][1].update(difference_to_first=[2.01, 0, 0]),
    "name has 301 characters": lambda c: c["points"][0].update(name="x" * 301),
    "latency_ms is 1e+13": lambda c: c["points"][0]["speed"].update(latency_ms=1e13),
    "3 numbers are expected": lambda c: c["points"][1].update(difference_to_first=[0, 0]),
    "more than 64 bits": lambda c: c["points"][0].update(parameters=10**400),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_damaged_files_are_named(tmp_path: Path, words: str) -> None:
    content = json.loads(json.dumps(POINTS.to_json()))
    DAMAGES[words](content)
    path = tmp_path / "one.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"one\.json is damaged") as caught:
        read_points(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", "[1]", "\x00"])
def test_other_texts_are_damaged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "one.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"one\.json is damaged"):
        read_points(path)


def test_links_fifos_and_large_files_are_not_read(tmp_path: Path) -> None:
    write_points(POINTS, tmp_path / "outside.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "outside.json")
    os.mkfifo(tmp_path / "fifo.json")
    for name in ("link.json", "fifo.json"):
        with pytest.raises(NotRegular):
            read_points(tmp_path / name)
    (tmp_path / "large.json").write_text(" " * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match="larger than"):
        read_points(tmp_path / "large.json")


@pytest.mark.parametrize(("name", "words"), [("one.txt", "must end in .json"), ("a/points/one.json", "is no folder")])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["measure", "--weights", "x.safetensors", "--shards", "nowhere", "--out", str(tmp_path / name)]
    assert run_command(main, flags) == WRONG_USE
    assert words in capsys.readouterr().err
