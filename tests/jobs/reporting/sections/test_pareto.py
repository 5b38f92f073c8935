"""The section that puts measured models beside each other: who is on the front, and what a stranger's files may do."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.reporting.page import render_page
from jobs.reporting.sections.pareto import (
    MAX_DRAWN,
    MAX_FILES,
    MAX_SETTINGS,
    RIGHT,
    Mark,
    _beside,
    _dice_limits,
    _steps,
    compare_models,
    on_front,
)
from jobs.reporting.statistics.records import read_records
from jobs.runs.trial import Sweep
from petseg.inference.point_files import Point, Points, Speed, write_points
from tests.hostile_files import DEEP, FOREIGN, HTML
from tests.jobs.reporting.written_sweep import Lab

FLOAT = Point("float.safetensors", 0.90, [0.88, 0.92], None, 4.0, 1_080_000, Speed(20.0, 60.0), 200.0)
INT8 = Point("int8.onnx", 0.89, [0.87, 0.91], [-0.01, -0.012, -0.008], 1.0, 1_080_000, Speed(5.0, 200.0), 300.0)
WORSE = Point("worse.onnx", 0.88, None, [-0.02, -0.03, -0.01], 4.0, 1_080_000, Speed(10.0, 90.0), 400.0)
POINTS = Points("at the network's size", "test", "12ab34cd", "Some CPU", 2, (FLOAT, INT8, WORSE))


@pytest.fixture
def planned(lab: Lab) -> Sweep:
    return lab.plan()


def page_of(sweep: Sweep) -> str:
    return render_page(sweep, read_records(sweep))


def section_of(page: str) -> str:
    return page.partition('<section aria-labelledby="pareto">')[2].partition("</section>")[0]


def test_front() -> None:
    points = [FLOAT, INT8, WORSE]
    assert on_front(points, "file_mb") == [True, True, False]
    assert on_front(points, "latency_ms") == [True, True, False]
    assert on_front(points, "peak_memory_mb") == [True, False, False]
    twins = [FLOAT, replace(FLOAT, name="twin"), replace(FLOAT, name="dearer", file_mb=5.0)]
    assert on_front(twins, "file_mb") == [True, True, False]
    hair = replace(FLOAT, dice=FLOAT.dice + 1e-5, file_mb=5.0)  # nobody sees that Dice is higher
    assert on_front([FLOAT, hair], "file_mb") == [True, False]


def test_the_front_is_level_until_the_cost_of_its_next_model() -> None:
    """Up first, and it would show a Dice at a cost that no model reaches it at."""
    front = [
        Mark(n, x, y, None, True, False, "") for n, (x, y) in enumerate([(90.0, 20.0), (10.0, 80.0), (50.0, 40.0)])
    ]
    assert _steps(front) == f"M10.0,80.0H50.0V40.0H90.0V20.0H{RIGHT:g}"


@pytest.mark.parametrize(
    ("places", "is_left"),
    [
        ([(10, 50), (29, 50)], [True, False]),  # the number of the first has no room on its right
        ([(10, 50), (30, 50)], [False, False]),
        ([(10, 50), (29, 69)], [True, False]),
        ([(10, 50), (29, 70)], [False, False]),
        ([(29, 31), (10, 50)], [False, True]),
        ([(10, 50), (10, 50)], [False, False]),  # one upon the other
    ],
)
def test_a_number_stands_on_the_left_of_a_mark_that_has_another_on_its_right(
    places: list[tuple[float, float]], is_left: list[bool]
) -> None:
    marks = [Mark(number, x, y, None, True, False, "") for number, (x, y) in enumerate(places)]
    assert [mark.is_left for mark in _beside(marks)] == is_left


def test_the_scale_of_dice_has_room_for_intervals() -> None:
    wide = replace(FLOAT, dice=0.8, dice_interval_95=[0.7, 0.9])
    assert _dice_limits([wide, replace(FLOAT, dice=0.95, dice_interval_95=None)]) == pytest.approx((0.685, 0.965))
    assert _dice_limits([replace(FLOAT, dice=0.8, dice_interval_95=None)]) == pytest.approx((0.798, 0.802))


def test_the_setting_of_most_models_comes_first(planned: Sweep) -> None:
    for number, count in enumerate((1, 3, 2)):
        points = tuple(replace(FLOAT, name=f"{one}.onnx") for one in range(count))
        one = replace(POINTS, manifest_hash=str(number), points=points)
        write_points(one, planned.folder / "points" / f"{number}.json")
    pareto = compare_models(planned.folder)
    assert pareto
    assert ([len(one.models) for one in pareto.settings], pareto.more_settings, pareto.refused) == ([3, 2, 1], 0, ())


def test_without_files_the_page_is_what_it_was(planned: Sweep) -> None:
    before = page_of(planned)
    assert "pareto" not in before
    (planned.folder / "points").mkdir()
    (planned.folder / "points" / "notes.txt").write_text("x")
    assert page_of(planned) == before


def test_models_of_one_setting_share_charts_and_a_table(planned: Sweep) -> None:
    write_points(POINTS, planned.folder / "points" / "a.json")
    write_points(replace(POINTS, points=(replace(FLOAT, name="other.safetensors"),)), planned.folder / "points/b.json")
    pareto = compare_models(planned.folder)
    assert pareto
    (compared,) = pareto.settings
    assert [model.point.name for model in compared.models][-1] == "other.safetensors"
    assert [model.fronts for model in compared.models] == [
        ("size", "latency", "peak memory"), ("size", "latency"), (), ("size", "latency", "peak memory"),
    ]  # fmt: skip
    section = section_of(page_of(planned))
    assert section.count('<svg viewBox="0 0 374 216"') == 3
    assert section.count('<circle class="on" cx="17"') == 1  # the legend's
    assert section.count('<circle class="on"') == 1 + 3 + 3 + 2
    assert "From 2 runs of the command" in section
    assert '0.8900 <span class="sd">[0.8700, 0.9100]</span>' in section
    assert "\N{MINUS SIGN}0.0100" in section


@pytest.mark.parametrize(
    "change",
    [{"manifest_hash": "99"}, {"split": "val"}, {"device": "GPU"}, {"threads": 1}, {"protocol": "at native size"}],
)
def test_other_settings_stand_apart(planned: Sweep, change: dict[str, object]) -> None:
    write_points(replace(POINTS, points=(FLOAT,), **change), planned.folder / "points" / "a.json")
    write_points(POINTS, planned.folder / "points" / "b.json")
    pareto = compare_models(planned.folder)
    assert pareto
    assert [len(compared.models) for compared in pareto.settings] == [3, 1]
    assert "measured in 2 settings, which cannot be compared" in section_of(page_of(planned))


def spoil_text(folder: Path) -> None:
    foreign = replace(POINTS, protocol=FOREIGN, device=HTML, split="<blink>", manifest_hash=HTML)
    write_points(replace(foreign, points=(replace(FLOAT, name=FOREIGN),)), folder / f"{HTML.replace('/', '')}.json")


def spoil_json(folder: Path) -> None:
    for number, text in enumerate(["", "[1]", DEEP, '{"format_version": 1, "points": [{"name": "../../x"}]}']):
        (folder / f"{number}.json").write_text(text)
    (folder / "folder.json").mkdir()


def spoil_kinds(folder: Path) -> None:
    os.mkfifo(folder / "fifo.json")
    write_points(POINTS, folder.parent / "outside.json")
    (folder / "link.json").symlink_to(folder.parent / "outside.json")


def spoil_folder(folder: Path) -> None:
    write_points(POINTS, folder.parent / "elsewhere" / "a.json")
    folder.rmdir()
    folder.symlink_to(folder.parent / "elsewhere")


def spoil_ends(folder: Path) -> None:
    """Numbers at the ends of what is allowed, where a scale could fail."""
    nothing = Point("nothing", 0.0, [0.0, 0.0], [0.0, 0.0, 0.0], 0.0, 0, Speed(0.0, 0.0), 0.0)
    huge = Point("huge", 1.0, [-1.0, 2.0], [2.0, -2.0, 2.0], 1e12, 10**12, Speed(1e12, 1e12), 1e12)
    tiny = replace(nothing, name="tiny", file_mb=5e-324, speed=Speed(5e-324, 5e-324), peak_memory_mb=5e-324)
    for number, points in enumerate([(nothing,), (huge,), (tiny,), (nothing, huge, tiny)]):
        write_points(replace(POINTS, manifest_hash=str(number), points=points), folder / f"{number}.json")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_text, ["&lt;script&gt;alert(1)"]),
        (spoil_json, [f"Not shown: points/{n}.json is damaged" for n in range(4)] + ["points/folder.json is a folder"]),
        (spoil_kinds, ["points/fifo.json is a FIFO", "points/link.json is a symbolic link"]),
        (spoil_folder, ["points is a symbolic link, which is not followed"]),
        (spoil_ends, ["nothing", "huge", "tiny"]),
    ],
)
def test_files_of_strangers(planned: Sweep, spoil: Callable[[Path], None], words: list[str]) -> None:
    (planned.folder / "points").mkdir()
    spoil(planned.folder / "points")
    page = page_of(planned)
    section = section_of(page)
    for word in words:
        assert word in section
    for tag in ("<script>alert", "<img", "<blink>"):
        assert tag not in section
    assert "\x1b" not in page
    assert "float.safetensors" not in section


def test_many_files_and_settings_are_cut_short(planned: Sweep) -> None:
    for number in range(MAX_FILES + 2):
        one = replace(POINTS, manifest_hash=str(number), points=(FLOAT,))
        write_points(one, planned.folder / "points" / f"{number:03}.json")
    section = section_of(page_of(planned))
    assert f"2 files after the first {MAX_FILES} were not read." in section
    assert f"{MAX_FILES - MAX_SETTINGS} more settings are left out" in section


@pytest.mark.parametrize(("count", "more"), [(1, 0), (MAX_DRAWN, 0), (MAX_DRAWN + 2, 2)])
def test_models_beyond_those_that_are_drawn_are_counted(planned: Sweep, count: int, more: int) -> None:
    points = tuple(replace(FLOAT, name=f"{number}.onnx") for number in range(count))
    write_points(replace(POINTS, points=points), planned.folder / "points" / "a.json")
    pareto = compare_models(planned.folder)
    assert pareto
    (compared,) = pareto.settings
    assert [model.number for model in compared.models] == list(range(1, count - more + 1))
    assert (compared.more, compared.num_files) == (more, 1)
