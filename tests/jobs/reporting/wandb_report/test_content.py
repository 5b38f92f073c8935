"""What stands in a sweep's Report in wandb."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from jobs.design.shard_sets import ShardSet
from jobs.reporting.rows import INTERVALS_NOTE
from jobs.reporting.wandb_report.content import Grid, Importance, Lines, Markdown, Parallel, Pictures, facts, grids
from petseg.run_folder.attempts import ATTEMPTS_NAME, Attempt
from petseg.run_folder.layout import load_config
from petseg.tracking.client import best_and_last
from petseg.tracking.naming import RunName
from petseg.tracking.tracker import describe
from tests.jobs.reporting.wandb_report.online_sweep import build_sweep, content_of
from tests.jobs.reporting.written_sweep import Lab, finish
from tests.wandb_server import KEY


def test_content_of_a_report(tmp_path: Path) -> None:
    sweep = build_sweep(tmp_path)
    content = content_of(sweep)
    assert (content.title, content.group) == ("petseg sweep lab", "lab")
    assert [block.text for block in content.blocks if block.kind == "heading"] == [
        "Verdict", "Leaderboard", "Curves", "What matters", "How it was measured", "How to reproduce it",
    ]  # fmt: skip
    verdict, table, measured, again = [block.text for block in content.blocks if isinstance(block, Markdown)]
    assert verdict.startswith("**")
    assert "unet beats resnet34_unet by 0.1000" in verdict
    assert "| # | model.arch | augment.policy | val Dice |" in table
    assert table.endswith(f"\nMeans over seeds. {INTERVALS_NOTE}")
    assert table.count("\n| ") == 1 + 4  # the line under the titles, and the cells
    assert "by hand & &lt;with care>" in measured  # else it would be a tag
    assert "- **Border**: border counts as pet (fg)" in measured
    assert again.count("python petseg/train.py") == 4
    assert "python jobs/report.py lab --to wandb" in again

    cells, alone, trials = [block for block in content.blocks if isinstance(block, Grid)]
    assert cells.group_by == ("model.arch", "augment.policy")
    assert [(p.metric, p.area, p.group_by) for p in cells.panels if isinstance(p, Lines)] == [
        ("val/dice", "stddev", ""), ("train/dice", "stddev", ""), ("val/loss", "stddev", ""),
        ("train/loss", "stddev", ""),
    ]  # fmt: skip
    assert alone.group_by == ()
    assert [(p.metric, p.group_by) for p in alone.panels if isinstance(p, Lines)] == [
        (metric, axis)
        for axis in ("model.arch", "augment.policy")
        for metric in ("val/dice", "train/dice", "val/loss", "train/loss")
    ]
    assert trials.panels == (
        Parallel("Axes and val Dice", ("model.arch", "augment.policy"), "val/dice"),
        Importance("best_dice"),
        Pictures("Validation pictures with their masks", "val/overlays"),
    )
    assert content == content_of(sweep)


def test_panels_use_the_names_of_the_runs(tmp_path: Path) -> None:
    sweep = build_sweep(tmp_path)
    content = content_of(sweep)
    folder = sweep.trials[0].folder
    fields = describe(folder, RunName("x", "lab"), load_config(folder)["config"])["config"]
    grids = [block for block in content.blocks if isinstance(block, Grid)]
    axes = {axis for grid in grids for axis in grid.group_by}
    axes |= {panel.group_by for grid in grids for panel in grid.panels if isinstance(panel, Lines) and panel.group_by}
    assert axes <= set(fields)
    assert "best_dice" in best_and_last([{"epoch": 1, "val/dice": 0.5}])


def test_no_line_per_learning_rate(lab: Lab) -> None:
    """A search's axis has a level per trial, which no curve is grouped by; nothing is grouped where that is all."""
    lab.axes = {"optim.lr": [0.001 * i for i in range(1, 14)]}
    sweep = lab.plan()
    finish(sweep.trials[0], 0.9)
    grids = [block for block in content_of(sweep).blocks if isinstance(block, Grid)]
    assert [panel.kind for grid in grids for panel in grid.panels] == ["parallel", "importance", "pictures"]


def test_nothing_has_run_yet(lab: Lab) -> None:
    content = content_of(lab.plan())
    assert isinstance(content.blocks[1], Markdown)
    assert "Nothing can be compared yet" in content.blocks[1].text
    assert isinstance(content.blocks[3], Markdown)
    assert INTERVALS_NOTE not in content.blocks[3].text


def test_every_code_that_the_best_trials_ran_is_named(tmp_path: Path) -> None:
    """One of them was requeued and ran on with other code: its numbers are of both."""
    sweep = build_sweep(tmp_path)
    for number, trial in enumerate(sweep.trials):
        codes = ["aaaa", "bbbb"] if number < 4 else [""]
        attempts = [Attempt(n, "node1", "7", code, 0, 0.0) for n, code in enumerate(codes, start=1)]
        (trial.folder / ATTEMPTS_NAME).write_text(json.dumps([asdict(attempt) for attempt in attempts]))
    again = content_of(sweep).blocks[-1]
    assert isinstance(again, Markdown)
    (words,) = re.findall(r" with the code ([^;]*); each trial's whole config", again.text)
    assert set(words.split(", ")) == {"aaaa", "bbbb", "the working tree"}


def test_no_secret_of_an_address_is_shown(tmp_path: Path) -> None:
    sweep = replace(build_sweep(tmp_path), shards=f"https://me:{KEY}@store/set", shard_sets=())
    text = repr(content_of(sweep))
    assert "https://store/set" in text
    assert KEY not in text


CURVES = {"val/dice": "Dice on val", "val/loss": "Loss on val"}


def test_curves_of_cells_are_drawn_where_the_axes_tell_all_cells_apart() -> None:
    """Several axes are also drawn one at a time; a single one is already."""
    (one,) = grids("lab", ["model.arch"], CURVES, whole=True)
    assert one == Grid(
        "lab: arch",
        (
            Lines("Dice on val, arch: mean and sd over seeds", "val/dice", "stddev"),
            Lines("Loss on val, arch: mean and sd over seeds", "val/loss", "stddev"),
        ),
        ("model.arch",),
    )
    assert [grid.name for grid in grids("lab", ["a.b", "c"], CURVES, whole=True)] == [
        "lab: b · c",
        "lab: one axis at a time",
    ]
    (partly,) = grids("lab", ["model.arch"], CURVES, whole=False)
    assert partly == Grid(
        "lab: one axis at a time",
        (
            Lines("Dice on val, arch: mean and range", "val/dice", "minmax", "model.arch"),
            Lines("Loss on val, arch: mean and range", "val/loss", "minmax", "model.arch"),
        ),
    )
    (bare,) = grids("lab", [], CURVES, whole=True)
    assert (bare.name, bare.group_by, len(bare.panels)) == ("lab: all trials", (), 2)
    assert grids("lab", [], CURVES, whole=False) == grids("lab", ["a"], {}, whole=True) == []


def test_facts_come_before_warnings() -> None:
    measured = [("Seeds", "0, 1"), ("Image size", "256 px")]
    assert facts(measured, []) == "- **Seeds**: 0, 1\n- **Image size**: 256 px"
    assert facts(measured[:1], ["a", "b"]) == "- **Seeds**: 0, 1\n\n**Before you believe it:**\n\n- a\n- b"


def test_a_title_is_short_and_a_level_of_no_path(tmp_path: Path) -> None:
    sweep = replace(build_sweep(tmp_path), name="of/me" + "e" * 200)
    content = content_of(sweep)
    assert content.title == "petseg sweep of-me" + "e" * 110
    assert content.group == sweep.name
    assert content.description.startswith("8 trials: 8 done, 0 failed. unet · elastic has the highest mean val Dice, ")


def test_the_best_trials_are_made_again_by_their_commands(lab: Lab) -> None:
    """Cells without a result have none; one whose config is lost is named all the same."""
    lab.axes = {"model.width": [2, 4, 6, 8, 10, 12, 14, 16], "train.seed": [0]}
    sweep = lab.plan()
    for number, trial in enumerate(sweep.trials[:7]):
        finish(trial, 0.9 - 0.1 * number)
    (sweep.trials[1].folder / "config.json").unlink()
    again = content_of(sweep).blocks[-1]
    assert isinstance(again, Markdown)
    text, _, rest = again.text.partition("```\n")
    assert f"on the shard set {sweep.manifest_hash[:10]}; each trial's whole config" in text
    lines = rest.splitlines()
    assert lines[::2] == [f"# width={2 * n + 2}, {sweep.trials[n].id}" for n in range(6)] + ["```"]
    assert lines[3] == "# its config.json cannot be read"
    assert [line.startswith("python petseg/train.py ") for line in lines[1::2]] == [True, False, *[True] * 4]
    bare = content_of(replace(sweep, shard_sets=(*sweep.shard_sets, ShardSet("f" * 64, "/other")))).blocks[-1]
    assert isinstance(bare, Markdown)
    assert f"on the shard sets {sweep.manifest_hash[:10]}, ffffffffff; each" in bare.text


@pytest.mark.parametrize(("levels", "is_drawn"), [(12, True), (13, False)])
def test_an_axis_of_many_values_groups_no_curves(lab: Lab, levels: int, is_drawn: bool) -> None:
    lab.axes = {"model.width": list(range(2, 2 + 2 * levels, 2))}
    sweep = lab.plan()
    finish(sweep.trials[0], 0.9)
    grids_of_axes = [block for block in content_of(sweep).blocks if isinstance(block, Grid) and block.group_by]
    assert [grid.group_by for grid in grids_of_axes] == ([("model.width",)] if is_drawn else [])


def test_a_sweep_of_seeds_alone_has_lines_through_its_seeds(lab: Lab) -> None:
    lab.axes = {"train.seed": [0, 1]}
    sweep = lab.plan()
    finish(sweep.trials[1], 0.9)
    content = content_of(sweep)
    (last,) = [block for block in content.blocks if isinstance(block, Grid) and block.name == "lab: trials"]
    assert last.panels[0] == Parallel("Axes and val Dice", ("train.seed",), "val/dice")
    again = content.blocks[-1]
    assert isinstance(again, Markdown)
    assert f"# all trials, {sweep.trials[1].id}" in again.text
