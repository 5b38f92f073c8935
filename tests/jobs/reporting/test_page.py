"""The page as a whole."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from jobs.reporting.page import heat_of, quantity, signed
from jobs.reporting.parquet import render_parquet
from jobs.reporting.rows import rows_of
from jobs.reporting.sections.charts import BOTTOM, RIGHT, TOP, Frame, draw_charts, find_ticks
from jobs.reporting.sections.curves import collect
from jobs.reporting.sections.drawing import SIZE_PX
from jobs.reporting.sections.pictures import data_uri, dice_by_key
from jobs.reporting.statistics.records import gather, read_records, varied
from jobs.runs.trial import Submission, Sweep
from jobs.runs.trial_state import TrialState
from petseg.run_folder.layout import save_result, write_metrics
from shards.terminal import duration
from tests.jobs.reporting.written_sweep import Lab, board_of, epoch_rows, finish, place, ranking_of


def test_page_needs_nothing_beside_itself(finished: Sweep, page: Callable[[Sweep], str]) -> None:
    text = page(finished)
    references = re.findall(r"""(?:src|href|srcset|action|data)\s*=\s*["']?([^"'\s>]+)""", text)
    assert all(reference.startswith(("data:image/", "#")) for reference in references)
    assert sum(reference.startswith("data:image/") for reference in references) == 4  # one picture of four groups
    assert not re.search(r"<script[^>]*\ssrc|<link|@import|url\(\s*[\"']?(?!#)", text)
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "{{" not in text
    assert len(text) < 5_000_000


def test_page_is_accessible(finished: Sweep, page: Callable[[Sweep], str]) -> None:
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attributes)))

    Reader().feed(page(finished))
    assert [tag for tag, _ in tags].count("h1") == 1
    headers = [attributes for tag, attributes in tags if tag == "th"]
    assert len(headers) > 20  # of the trials' table alone
    assert [attributes for attributes in headers if "scope" not in attributes] == []
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert [bool(attributes.get("alt")) for attributes in images] == [True] * 4
    identifiers = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_the_best_cell_is_framed_where_it_was_chosen(lab: Lab) -> None:
    """On val: to frame the best on test would invite a choice by test."""
    sweep = lab.plan()
    for number, trial in enumerate(sweep.trials):
        finish(trial, 0.8 + number / 100)
    records = read_records(sweep)
    groups = gather(varied(sweep, records), records)
    val, test = (heat_of(split, [], groups) for split in ("val", "test"))
    assert val is not None
    assert test is not None
    highest = max(spread.mean for group in groups if (spread := group.spread("val/dice")))
    assert (val.best, val.high) == (highest, highest)
    assert test.best is None
    assert test.high > test.low


def test_same_folder_same_bytes(finished: Sweep, page: Callable[[Sweep], str]) -> None:
    assert page(finished) == page(finished)


def test_failed_missing_and_half_written_trials_are_shown(lab: Lab, page: Callable[[Sweep], str]) -> None:
    sweep = lab.plan()
    failed, half, gone, *others = sweep.trials
    for trial in others:
        finish(trial, 0.9)
    sweep.add_submissions([Submission(failed.id, "no-such-job", "local", "logs/1_0_log.out")])
    failed.write_state(TrialState("failed", job_id="no-such-job", error="Failure: <script>alert(1)</script> & NaN"))
    epoch_rows(half, [0.4, 0.5])
    with (half.folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "val/di')
    (gone.folder / "config.json").unlink()
    gone.folder.rmdir()
    text = page(sweep)
    assert "<script>alert" not in text
    assert "Failure: &lt;script&gt;alert(1)&lt;/script&gt; &amp; NaN" in text
    assert "logs/1_0_log.out" in text
    assert all(trial.id in text for trial in sweep.trials)
    assert "Not all of the 12 trials are done (1 failed, 2 planned)" in text
    assert f"No readable config.json for {gone.id}" in text
    assert "so far" in text
    assert "no result yet" in text  # the cell of these three
    assert ranking_of(sweep)[-1].rank == 0


def test_page_without_a_finished_trial(lab: Lab, page: Callable[[Sweep], str]) -> None:
    text = page(lab.plan())
    for expected in ("No trial has finished an epoch yet", "No finished trial has drawn pictures", "12 planned"):
        assert expected in text


def test_single_seed_shows_no_spread(lab: Lab, page: Callable[[Sweep], str]) -> None:
    lab.axes = {"model.arch": ["unet", "resnet34_unet"], "train.seed": [0]}
    sweep = lab.plan()
    for trial, dice in zip(sweep.trials, (0.9, 0.8), strict=True):
        finish(trial, dice, epochs=1, test=False)
    text = page(sweep)
    assert "pictures only" in text
    assert "±" not in text.split('id="leaderboard"')[1]
    assert "one seed: not known" in text
    assert "another seed may turn it round" in text
    assert "A single seed" in text
    assert "test Dice, best weights" not in text


def test_sweep_of_seeds_alone(lab: Lab, page: Callable[[Sweep], str]) -> None:
    lab.axes = {"train.seed": [0, 1]}
    sweep = lab.plan()
    for trial in sweep.trials:
        finish(trial, 0.5)
    text = page(sweep)
    assert "all trials" in text
    assert "2 finished trials are below the all-pet guess (0.5500)" in text


def test_sweep_of_squares_and_rectangles(lab: Lab, page: Callable[[Sweep], str]) -> None:
    """Numbers and words on one axis; the trials of a size differ in how pictures get it."""
    lab.axes = {"data.image_size_px": [64, "32x96"], "data.fit": ["letterbox", "crop"], "train.seed": [0, 1]}
    sweep = lab.plan()
    for number, trial in enumerate(sweep.trials):
        finish(trial, 0.8 + 0.01 * number)
    text = page(sweep)
    assert "The trials differ in image size (64, 32x96): their Dice is not the same measure" in text
    assert "The trials differ in fit (letterbox, crop): their Dice is not the same measure" in text
    assert "differs: 64, 32x96 px, fitted by letterbox, crop" in text
    assert [row["data.image_size_px"] for row in rows_of(board_of(sweep))] == ["32x96", "32x96", 64, 64]
    assert render_parquet(sweep, board_of(sweep))


def test_curves_mean_band_and_marks(finished: Sweep) -> None:
    records = read_records(finished)
    axes = varied(finished, records)
    panels = collect(axes, gather(axes, records))
    assert [(panel.title, [curve.label for curve in panel.curves]) for panel in panels] == [
        ("unet", ["none", "elastic"]),
        ("resnet34_unet", ["none", "elastic"]),
    ]
    curve = panels[0].curves[0]
    assert curve.lines["val/dice"].mean == pytest.approx((0.801, 0.901))
    assert curve.lines["val/dice"].low == pytest.approx((0.799, 0.899))
    assert curve.lines["val/dice"].high == pytest.approx((0.804, 0.904))
    assert (curve.best_dice_epoch, curve.lowest_loss_epoch) == (2, 1)
    loss, dice = draw_charts(panels)[0].charts
    assert (loss.name, dice.name) == ("Loss", "Dice")
    assert [(shape.kind, shape.colour) for shape in dice.lines[:2]] == [("band", 0), ("train", 0)]
    assert [shape.kind for shape in dice.marks] == ["best", "lowest"] * 2


def test_a_chart_maps_epochs_and_values_to_its_frame(lab: Lab) -> None:
    """One seed and two epochs; the best epoch is the last."""
    lab.axes = {"train.seed": [0]}
    sweep = lab.plan()
    epoch_rows(sweep.trials[0], [0.4, 0.8])
    records = read_records(sweep)
    dice = draw_charts(collect([], gather([], records)))[0].charts[1]
    assert dice.frame.epochs == pytest.approx((0.94, 2.06))
    assert dice.frame.values == pytest.approx((0.376, 0.824))  # 6 % of room
    assert [text for _, text in dice.x_ticks] == ["1", "2"]
    assert [text for _, text in dice.y_ticks] == ["0.4", "0.5", "0.6", "0.7", "0.8"]
    ends = [f"{dice.frame.x(epoch):.1f},{dice.frame.y(value):.1f}" for epoch, value in ((1, 0.4), (2, 0.8))]
    train, val = dice.lines
    assert (train.kind, val.kind) == ("train", "val")
    assert train.path == val.path == f"M{ends[0]}L{ends[1]}"
    assert 7 < dice.frame.y(0.8) < dice.frame.y(0.4) < 177


@pytest.mark.parametrize(
    ("span", "most", "whole", "texts"),
    [
        ((0.94, 20.38), 8, True, ["3", "6", "9", "12", "15", "18"]),
        ((0.5, 1.5), 8, True, ["1"]),
        ((1, 400), 8, True, ["50", "100", "150", "200", "250", "300", "350", "400"]),
        ((0.21, 0.95), 6, False, ["0.30", "0.45", "0.60", "0.75", "0.90"]),
        ((-0.02, 0.031), 6, False, ["-0.02", "-0.01", "0.00", "0.01", "0.02", "0.03"]),
        ((1e-5, 4e-5), 6, False, ["0.000010", "0.000015", "0.000020", "0.000025", "0.000030", "0.000035", "0.000040"]),
        ((-50.0, 900.0), 6, False, ["0", "200", "400", "600", "800"]),
    ],
)
def test_ticks_are_round(span: tuple[float, float], most: int, whole: bool, texts: list[str]) -> None:
    ticks = find_ticks(span, most, whole)
    assert [text for _, text in ticks] == texts
    assert [value for value, _ in ticks] == pytest.approx([float(text) for text in texts])


def test_a_number_that_is_not_finite_is_left_out_of_the_curves(finished: Sweep, page: Callable[[Sweep], str]) -> None:
    write_metrics([{"epoch": 1, "val/loss": float("nan"), "val/dice": 0.1}], finished.trials[0].folder)
    assert "NaN" not in re.sub(r"<script>.*", "", page(finished), flags=re.DOTALL)


def test_pictures_are_small_and_carry_their_dice(finished: Sweep) -> None:
    folder = finished.trials[0].folder
    assert len(dice_by_key(folder)) == 40
    assert np.mean(list(dice_by_key(folder).values())) == pytest.approx(0.899)
    assert dice_by_key(folder / "nowhere") == {}
    uri = data_uri(folder / "overlays" / "cat_1.png")
    assert uri.startswith("data:image/webp;base64,")
    assert len(uri) < 12_000
    assert SIZE_PX == 192


def test_number_formats() -> None:
    assert [quantity(n) for n in (31_037_698, 270_906, 12)] == ["31.0 M", "270.9 k", "12"]
    assert [quantity(10**n) for n in (3, 6, 9)] == ["1.0 k", "1.0 M", "1.0 G"]
    assert quantity(999) == "999"
    assert [duration(s) for s in (84, 4000, 9000)] == ["84 s", "67 min", "2 h 30 min"]
    assert signed(-0.01) == "\N{MINUS SIGN}0.0100"


def test_metrics_that_were_measured_have_columns(finished: Sweep, page: Callable[[Sweep], str]) -> None:
    assert "HD95, px" not in page(finished)
    for trial in finished.trials:
        result = trial.result()
        assert result
        more = {"val/boundary_iou": 0.71, "val/hd95_px": 12.345, "val/ece": 0.0321, "val/iou_dataset": 0.812}
        save_result(replace(result, metrics=result.metrics | more), trial.folder)
    text = page(finished)
    for expected in ("boundary IoU", "HD95, px", "12.35", "0.7100", "ECE", "0.0321", "IoU over the set", "0.8120"):
        assert expected in text


def test_contents_lead_to_every_section(finished: Sweep, page: Callable[[Sweep], str]) -> None:
    text = page(finished)
    headings = re.findall(r'<h2 id="(\w+)"', text)
    links = re.findall(r'<li><a href="#(\w+)">', text)
    assert set(headings) | {"gap"} == set(links)
    assert [link for link in links if link != "gap"] == headings  # in the order of the page
    assert len(links) >= 8


def test_intervals_of_means_stay_within_the_bounds_of_dice(lab: Lab, page: Callable[[Sweep], str]) -> None:
    """Two seeds far apart: Student's t alone would reach below 0 and beyond 1."""
    lab.axes |= {"model.arch": ["unet"], "train.seed": [0, 1]}
    sweep = lab.plan()
    for trial in sweep.trials:
        finish(trial, (0.3, 0.9)[trial.axes["train.seed"]])
    board = board_of(sweep)
    assert [(mean.low, mean.high) for mean in board.val.means.values()] == [(0.0, 1.0)] * 2
    assert "[0.0000, 1.0000]" in page(sweep)


def test_a_curve_that_leaves_its_frame_is_marked(lab: Lab, page: Callable[[Sweep], str]) -> None:
    sweep = lab.plan()
    for trial in sweep.trials:
        rows = [{"epoch": i, "train/loss": 1 - i / 100, "val/loss": 1.0, "val/dice": 0.5} for i in range(1, 31)]
        if place(trial) == ("unet", "none"):
            rows[0]["train/loss"] = 40.0 + trial.axes["train.seed"]
        write_metrics(rows, trial.folder)
    axes = varied(sweep, records := read_records(sweep))
    drawn = draw_charts(collect(axes, gather(axes, records)))
    found = {one.panel.title: [[(o.name, o.highest, o.epoch) for o in c.outside] for c in one.charts] for one in drawn}
    assert found == {"unet": [[("none train", 42.0, 1)], []], "resnet34_unet": [[], []]}
    text = page(sweep)
    assert "▲ above the frame: none train up to 42 in epoch 1" in " ".join(text.split())
    assert text.count("above the frame") == 1


def test_columns_say_which_kind_of_interval_they_hold(finished: Sweep, page: Callable[[Sweep], str]) -> None:
    board = page(finished).split('<table class="board"')[1].split("</thead>")[0]
    labels = re.findall(r'<button type="button">([^<]*)</button><span class="sd">([^<]*)</span>', board)
    assert dict(labels) == {
        "val Dice": "[marginal 95 %]",
        "from the best": "[simultaneous 95 %]",
        "p": "adjusted",
        "test Dice": "[marginal 95 %]",
    }


def test_a_frame_begins_with_its_first_epoch_and_lowest_value() -> None:
    frame = Frame(40.0, (3, 13), (0.5, 0.9))
    assert [frame.x(epoch) for epoch in (3, 8, 13)] == pytest.approx([40, (40 + RIGHT) / 2, RIGHT])
    assert [frame.y(value) for value in (0.5, 0.7, 0.9)] == pytest.approx([BOTTOM, (BOTTOM + TOP) / 2, TOP])
    assert frame.points([3, 13], [0.5, 0.9]) == f"M40.0,{BOTTOM:.1f}L{RIGHT:.1f},{TOP:.1f}"
