"""What the page and the rows are made of, from groups that are written down here."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.reporting import leaders, page
from jobs.reporting.best_trials import best_trials
from jobs.reporting.leaders import Leaders, lead, results_of
from jobs.reporting.page import Heatmap, colours_of, heat_of, heats_of, legend_of, newest, paired, strip_scale
from jobs.reporting.rows import INTERVALS_NOTE, _plain, harmless, metrics_of, number, p_cell, render_rows, span
from jobs.reporting.statistics.records import Group, Record, Spread
from jobs.reporting.statistics.verdict import Leaderboard
from jobs.runs.trial import Sweep, Trial
from jobs.state.trial_status import TrialStatus
from petseg.config import DataConfig
from petseg.metrics.overlay import MISSED_RGB, PREDICTION_RGB, TRUTH_RGB, WRONG_RGB
from petseg.run_folder.layout import Result
from petseg.targets.target import implied_target, packed_target
from tests.jobs.reporting.sections.test_targets import street
from tests.jobs.written_trials import finish, sweep_of

RESULT = Result("x", {"val/dice": 0.5}, 1, 1, 1000, 1, "node1", "cpu", 60.0, 80.0, 0.02, 90.0)


def record(dice: float | None, folder: Path = Path("none"), **metrics: float) -> Record:
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    result = replace(RESULT, metrics={"val/dice": dice, **named}) if dice is not None else None
    return Record(TrialStatus(Trial("x", {}, folder), "done"), {}, {}, result, [])


def group(label: str, *dice: float | None, **metrics: float) -> Group:
    return Group({"model.arch": label}, tuple(record(one, **metrics) for one in dice))


def board(*groups: Group) -> Leaderboard:
    """Nothing of it was measured picture by picture."""
    return Leaderboard(["model.arch"], list(groups), {}, [], None)


@pytest.mark.parametrize(
    ("mean", "low", "high", "depth"),
    [(0.9, 0.8, 0.9, 60), (0.8, 0.8, 0.9, 0), (0.85, 0.8, 0.9, 30), (0.81, 0.8, 0.81, 30)],  # a span of 0.02 at least
)
def test_a_table_is_coloured_from_its_lowest_to_its_highest_mean(
    mean: float, low: float, high: float, depth: int
) -> None:
    heat = Heatmap("val/dice", "val Dice", "val", [], low, high, None)
    assert heat.depth(Spread(mean, None, 0.0, 1.0, 1)) == depth


def test_a_table_without_a_number_is_that_of_val() -> None:
    nothing = [group("a", None)]
    assert heat_of("val", [], nothing) == Heatmap("val/dice", "val Dice", "val", [], 0.0, 1.0, None)
    assert heat_of("test", [], nothing) is None
    measured = board(group("a", 0.5, 0.7, test__dice=0.4), group("b", 0.9, test__dice=0.6))
    assert [(heat.name, heat.low, heat.high, heat.best) for heat in heats_of(measured)] == [
        ("val Dice", pytest.approx(0.6), 0.9, 0.9), ("test Dice", pytest.approx(0.4), 0.6, None),
    ]  # fmt: skip


def test_the_strip_reaches_from_the_lowest_seed_to_the_highest() -> None:
    assert strip_scale([group("a", 0.5, 0.75), group("b", None), group("c", 0.625)]) == (0.5, 0.25)
    assert strip_scale([group("a", 0.5)]) == (0.5, 1.0)  # a scale of no length is none
    assert strip_scale([]) == (0.0, 1.0)


def test_the_page_is_as_new_as_the_last_word_of_a_trial(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder, when in zip(folders, (86400.0, 90061.0, 0.0), strict=True):
        folder.mkdir()
        if when:
            (folder / "state.json").write_text(json.dumps({"status": "done", "time": when}))
    assert newest([record(0.5, folder) for folder in folders]) == "1970-01-02 01:01 UTC"
    assert newest([record(0.5, folders[2])]) == newest([]) == ""


def test_only_pairs_of_the_first_cells_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_PAIRED", 3)
    val: Any = SimpleNamespace(groups=list("abcde"), difference=lambda i, j: f"{i}{j}")
    assert paired(SimpleNamespace(val=val)) == ["01", "02", "12"]  # type: ignore[arg-type]
    assert paired(board()) == []


def test_what_is_not_shown_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_ROWS", 2)
    monkeypatch.setattr(page, "MAX_DRAWN", 1)
    groups = [
        Group(one.axes, (replace(one.records[0], rows=[{"epoch": 1, "val/dice": 0.5}]),))
        for one in (group("a", 0.5), group("b", 0.7), group("c", 0.6))
    ]
    ranking = page.rank(groups)
    section = page.leaderboard_section(board(*groups), ranking, [])
    assert ([one.group.label for one in section["ranking"]], section["unlisted"]) == (["b", "c"], 1)
    assert page.leaderboard_section(board(), ranking[:2], [])["unlisted"] == 0
    curves = page.curves_section(board(*groups), ranking)
    assert (curves["undrawn"], list(curves["legend"])) == (2, ["b"])


def test_the_legend_is_that_of_two_classes_or_of_each() -> None:
    words = tuple(f"{word} {implied_target().names[1]}" for word in ("right", "missed", "wrongly called"))
    assert legend_of(implied_target()) == (
        *zip((PREDICTION_RGB, MISSED_RGB, WRONG_RGB), words, strict=True), (TRUTH_RGB, "true outline"),
    )  # fmt: skip
    assert colours_of("class")[0] == (PREDICTION_RGB, "right class")
    several = packed_target(DataConfig(), street("road", "car", "sky"))
    assert legend_of(several) == (
        ((0, 0, 0), "road"), ((1, 1, 1), "car"), ((2, 2, 2), "sky"), (WRONG_RGB, "wrong"), (TRUTH_RGB, "true outlines"),
    )  # fmt: skip


def test_columns_are_the_metrics_that_some_trial_has() -> None:
    measured = board(group("a", 0.5, val__ece=0.1), group("b", 0.5, None, val__hd95_px=3.0), group("c", None))
    assert [name for name, _, _ in metrics_of(measured)] == ["val/hd95_px", "val/ece"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@x", "'@x"), (" \t=1", "' \t=1"), ("unet", "unet"),
        (-1.5, -1.5), (None, None),
    ],
)  # fmt: skip
def test_a_spreadsheet_takes_no_text_for_a_formula(value: object, told: object) -> None:
    assert harmless(value) == told


def test_numbers_of_cells_that_are_not_known_are_empty() -> None:
    assert [number(None), number(0.12345), number(12.345, ".2f")] == ["", "0.1235", "12.35"]
    assert [span(None, None), span(1, 1), span(1, 3)] == ["", "1", "1-3"]
    assert [p_cell(None), p_cell(0.0001), p_cell(0.5)] == ["", "<0.001", "0.500"]


def test_a_name_makes_no_table_link_or_tag_of_markdown() -> None:
    assert _plain("a|b [c](d) `e`\n <f> & g") == "a&#124;b &#91;c&#93;(d) &#96;e&#96; &lt;f&gt; &amp; g"


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "lab", 2)


def test_the_leaderboard_as_text_before_anything_is_compared(sweep: Sweep) -> None:
    """The rows say what is known; intervals are explained where there are some."""
    of = board(group("=a|b", 0.5, 0.7), group("c", None))
    document = json.loads(render_rows(sweep, of, "json"))
    rows = document.pop("rows")
    lead = "Nothing can be compared: no finished cell has the Dice of two val pictures or more, in each of its trials."
    assert document == {
        "sweep": "lab", "manifest_hash": "0" * 16, "manifest_hashes": ["0" * 16], "verdict": [lead],
        "intervals": INTERVALS_NOTE, "val_pictures": None,
    }  # fmt: skip
    best = {"place": 1, "model.arch": "=a|b", "val_dice": pytest.approx(0.6), "seeds": 2, "trials": 2}
    best |= {"val_dice_sd": pytest.approx(0.02**0.5), "parameters": 1000.0, "images_per_s": 80.0, "train_s": 60.0}
    assert {name: value for name, value in rows[0].items() if value is not None} == best
    last = {"model.arch": "c", "seeds": 0, "trials": 1}
    assert {name: value for name, value in rows[1].items() if value is not None} == last
    table = list(csv.DictReader(io.StringIO(render_rows(sweep, of, "csv"))))
    assert [row["model.arch"] for row in table] == ["'=a|b", "c"]
    assert list(table[0]) == list(rows[0])
    assert render_rows(sweep, of, "md") == (
        f"# lab\n\n{lead}\n\n\n"
        "| # | model.arch | val Dice | rank | seeds | from the best | p | finding | test Dice |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| 1 | =a&#124;b | 0.6000 |  | 2/2 |  |  |  |  |\n"
        "|  | c |  |  | 0/1 |  |  |  |  |\n"
    )


def test_the_best_of_two_shard_sets_is_not_told(sweep: Sweep) -> None:
    two = replace(sweep, shard_sets=(SimpleNamespace(hash="f" * 16),))  # type: ignore[arg-type]
    said = rf"^{sweep.folder} has trials of 2 shard sets, whose Dice cannot be compared: name one with --trial$"
    with pytest.raises(ValueError, match=said):
        best_trials(two, all_seeds=False)


def rows_of(sweep: Sweep, *statuses: str) -> list[TrialStatus]:
    return [TrialStatus(trial, status) for trial, status in zip(sweep.trials, statuses, strict=True)]


def test_a_board_is_known_by_its_results(sweep: Sweep) -> None:
    for trial in sweep.trials:
        finish(trial)
    assert results_of(rows_of(sweep, "running", "failed")) is None
    one, both = results_of(rows_of(sweep, "done", "running")), results_of(rows_of(sweep, "done", "done"))
    assert None is not one != both
    assert one == results_of(rows_of(sweep, "done", "queued"))


def test_a_board_that_cannot_be_made_says_why_and_the_watch_goes_on(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(sweep.trials[0])

    def fail(*given: object) -> None:
        raise KeyError("dice")

    monkeypatch.setattr(leaders, "lead", fail)
    assert Leaders().last(sweep, rows_of(sweep, "done", "running"), 30).plain == "no leaderboard: KeyError: 'dice'"


def test_as_many_leaders_as_fit_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaders, "TOP", 1)
    sweep = sweep_of(tmp_path / "lab", 4)
    trials = [replace(one, axes={"model.arch": f"a{n}", "train.seed": 0}) for n, one in enumerate(sweep.trials)]
    sweep = replace(sweep, trials=tuple(trials), axes={"model.arch": ["a0", "a1", "a2", "a3"]})
    for trial in trials[:2]:
        finish(trial)
    text = lead(sweep, rows_of(sweep, "done", "done", "running", "running")).plain
    assert text.splitlines()[-1] == f"and 1 more cell: python jobs/report.py {sweep.folder}"
    assert leaders.INTERVALS not in text  # nothing is compared
    finish(trials[2])
    text = lead(sweep, rows_of(sweep, "done", "done", "done", "running")).plain
    assert text.splitlines()[-1].startswith("and 2 more cells: ")
    monkeypatch.setattr(leaders, "TOP", 3)
    assert "more cell" not in lead(sweep, rows_of(sweep, "done", "done", "done", "running")).plain
