"""The page and the command, on sweeps whose folders are written by hand."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from PIL import Image

from jobs import report, report_plots
from jobs.report_data import Spread, gather, rank, read_records, spread_of, tabulate, varied
from jobs.report_drawing import SIZE_PX
from jobs.report_page import duration, quantity, render_page, signed
from jobs.report_pictures import data_uri, dice_by_key
from jobs.report_protocol import protocol
from jobs.reproduce import train_flags
from jobs.spec import Spec, expand
from jobs.trial import Submission, Sweep, Trial, plan_sweep, save_sweep
from jobs.verdict import Board, Difference, build_board
from jobs.verdict_words import sentence
from petseg.config import RunConfig
from petseg.config_values import config_to_dict, identity, trial_id, with_values
from petseg.run_folder import Result, claim_folder, save_result, write_metrics
from shards.command import OK, WRONG_USE, run_command
from shards.manifest import Manifest, Source, Split, save_manifest

REPOSITORY = Path(__file__).parents[2]
LAB = {"model.arch": ["unet", "resnet34_unet"], "augment.policy": ["none", "elastic"], "train.seed": [0, 1, 2]}
# val Dice by place; the means are 0.901, 0.900, 0.880 and 0.860
DICE = {
    ("unet", "none"): (0.899, 0.900, 0.904),
    ("unet", "elastic"): (0.898, 0.900, 0.902),
    ("resnet34_unet", "none"): (0.88, 0.88, 0.88),
    ("resnet34_unet", "elastic"): (0.85, 0.86, 0.87),
}


@dataclass
class Lab:
    """A sweep under construction."""

    folder: Path
    shards: Path
    axes: dict[str, list[Any]] = field(default_factory=lambda: dict(LAB))
    fixed: dict[str, Any] = field(default_factory=dict)

    def plan(self) -> Sweep:
        """sweep.json and each trial's config.json."""
        source = Source("drawn", "by hand & <with care>")
        manifest = save_manifest(
            Manifest(source, {}, {"train": Split(90, "0" * 16), "val": Split(10, "1" * 16)}, ()), self.shards
        )
        spec = Spec("lab", self.axes, {"data.shards": str(self.shards), "train.epochs": 2} | self.fixed)
        cells = expand(spec)
        sweep = plan_sweep(spec, cells, manifest, str(self.shards), self.folder)
        save_sweep(sweep)
        configs = {trial_id(cell.config, manifest.hash): cell.config for cell in cells}
        for trial in sweep.trials:
            if config := configs.get(trial.id):
                claim_folder(config, manifest.hash, trial.folder)
        return sweep


def finish(trial: Trial, dice: float, epochs: int = 2, test: bool = True) -> None:
    """As train() leaves a finished trial."""
    epoch_rows(trial, [dice - 0.1 * (epochs - epoch) for epoch in range(1, epochs + 1)])
    metrics = {"val/loss": 0.25, "val/dice": dice, "val/iou": dice - 0.1, "val/all_pet_dice": 0.55}
    metrics |= {"test/dice": dice - 0.01, "test/all_pet_dice": 0.56} if test else {}
    splits = {"val": dice} | ({"test": dice - 0.01} if test else {})
    save_result(
        Result(trial.id, metrics, epochs, epochs, 31_037_698, 1, "node1", "cpu", 60.0, 83.0, 0.01, 84.0), trial.folder
    )
    trial.write_state(status="done", host="node1", job_id="1")
    draw_overlay(trial)
    save_pictures(trial, splits)


def epoch_rows(trial: Trial, dice: Sequence[float]) -> None:
    rows = [
        {"epoch": i, "train/loss": 0.5 / i, "train/dice": d, "val/loss": 0.2 + 0.1 * i, "val/dice": d}
        for i, d in enumerate(dice, start=1)
    ]
    write_metrics(rows, trial.folder)


def draw_overlay(trial: Trial) -> None:
    (trial.folder / "overlays").mkdir()
    Image.new("RGB", (400, 400), "teal").save(trial.folder / "overlays" / "cat_1.png")


def save_pictures(trial: Trial, dice_by_split: dict[str, float], num_pictures: int = 40) -> None:
    """per_image.npz whose pictures are 0.06 apart, the same in all trials, with a little of their own."""
    own = int(trial.id, 16) % 1000
    content, arrays = io.BytesIO(), {}
    for split, dice in dice_by_split.items():
        spread = 0.03 * np.cos(np.pi * np.arange(num_pictures)) + 0.005 * np.sin(own + np.arange(num_pictures) ** 2)
        each = dice + spread - spread.mean()
        arrays[f"{split}/keys"] = np.array([f"cat_{i}" for i in range(num_pictures)])
        hits = np.round(each * 1_000_000).astype(int)
        arrays[f"{split}/counts"] = np.stack([hits, 2_000_000 - 2 * hits, 0 * hits], axis=1)
    np.savez(content, allow_pickle=False, **arrays)
    (trial.folder / "per_image.npz").write_bytes(content.getvalue())


def place(trial: Trial) -> tuple[str, str]:
    return trial.axes["model.arch"], trial.axes["augment.policy"]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    (tmp_path / "shards").mkdir()
    return Lab(tmp_path / "runs" / "lab", tmp_path / "shards")


@pytest.fixture
def finished(lab: Lab) -> Sweep:
    sweep = lab.plan()
    for trial in sweep.trials:
        finish(trial, DICE[place(trial)][trial.axes["train.seed"]])
    return sweep


@pytest.fixture
def page() -> Callable[[Sweep], str]:
    return lambda sweep: render_page(sweep, read_records(sweep))


def board_of(sweep: Sweep) -> Board:
    return build_board(sweep, read_records(sweep))


def places_of(sweep: Sweep) -> list[Any]:
    records = read_records(sweep)
    return rank(gather(varied(sweep, records), records))


def test_spread_is_mean_and_sample_sd() -> None:
    spread = spread_of([0.899, 0.900, 0.904])
    assert spread is not None
    assert spread.mean == pytest.approx(0.901)
    assert spread.sd == pytest.approx(((0.002**2 + 0.001**2 + 0.003**2) / 2) ** 0.5)
    assert (spread.low, spread.high, spread.n) == (0.899, 0.904, 3)
    assert spread_of([0.9]) == Spread(0.9, None, 0.9, 0.9, 1)
    assert spread_of([]) is None


def test_ranking_of_the_lab(finished: Sweep) -> None:
    places = places_of(finished)
    assert [tuple(p.group.axes.values()) for p in places] == list(DICE)
    assert [p.val_dice.mean for p in places] == pytest.approx([0.901, 0.900, 0.880, 0.860])
    assert [p.val_dice.n for p in places] == [3, 3, 3, 3]
    assert places[0].group.best().result.metrics["val/dice"] == 0.904
    assert places[0].group.spread("test/dice").mean == pytest.approx(0.891)


def test_grid_is_first_axis_by_second(finished: Sweep) -> None:
    records = read_records(finished)
    axes = varied(finished, records)
    (grid,) = tabulate(axes, gather(axes, records))
    assert (grid.row_axis, grid.column_axis) == ("model.arch", "augment.policy")
    assert grid.columns == ("none", "elastic")
    assert [(name, [cell.axes["augment.policy"] for cell in cells if cell]) for name, cells in grid.rows] == [
        ("unet", ["none", "elastic"]),
        ("resnet34_unet", ["none", "elastic"]),
    ]


def test_a_third_axis_makes_more_tables(lab: Lab) -> None:
    lab.axes = {**LAB, "model.width": [8, 16]}
    sweep = lab.plan()
    records = read_records(sweep)
    axes = varied(sweep, records)
    assert [grid.title for grid in tabulate(axes, gather(axes, records))] == ["width=8", "width=16"]


def test_trials_that_differ_off_the_axes_are_not_averaged(lab: Lab, page: Callable[[Sweep], str]) -> None:
    lab.axes = {"train.seed": [0, 1]}
    lab.plan()
    lab.fixed = {"data.image_size_px": 128}
    sweep = lab.plan()
    for trial in sweep.trials:
        finish(trial, 0.9)
    assert [(p.group.axes, p.val_dice.n) for p in places_of(sweep)] == [
        ({"data.image_size_px": 256}, 2),
        ({"data.image_size_px": 128}, 2),
    ]
    text = page(sweep)
    assert "differ in image size (256, 128)" in text
    assert "differs: 256, 128" in text


def test_protocol_says_what_the_numbers_mean(finished: Sweep, lab: Lab) -> None:
    facts = dict(protocol(finished, read_records(finished)))
    assert facts["Shard set"] == "drawn: by hand & <with care>"
    assert facts["Splits"] == "90 train / 10 val"
    assert facts["Manifest hash"] == finished.manifest_hash
    assert facts["Border"] == "border counts as pet (fg)"
    assert facts["Image size"].startswith("256 px")
    assert "0.5500 val, 0.5600 test" in facts["All-pet guess"]
    (lab.shards / "manifest.json").unlink()
    facts = dict(protocol(finished, read_records(finished)))
    assert "cannot be read here" in facts["Shard set"]
    assert facts["Manifest hash"] == finished.manifest_hash


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({}, "epochs 2, batch size 32"),
        ({"train.budget_steps": [500]}, "optimizer steps 500, batch"),
        ({"train.budget_min": [30.0]}, "minutes 30 (by minutes as many steps as fit: 3 to 5 epochs, the last"),
        ({"train.budget_steps": [0, 500]}, "differs: epochs 2, optimizer steps 500, batch"),
    ],
)
def test_protocol_says_how_long_the_trials_train(axes: dict[str, list], said: str, lab: Lab) -> None:
    lab.axes = {**axes, "train.seed": [0, 1, 2]}
    sweep = lab.plan()
    for trial, epochs in zip(sweep.trials, (5, 3, 4), strict=False):
        finish(trial, 0.9, epochs)
    assert dict(protocol(sweep, read_records(sweep)))["Training"].startswith(said)


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
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    identifiers = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_same_folder_same_bytes(finished: Sweep, page: Callable[[Sweep], str]) -> None:
    assert page(finished) == page(finished)


def test_failed_missing_and_half_written_trials_are_shown(lab: Lab, page: Callable[[Sweep], str]) -> None:
    sweep = lab.plan()
    failed, half, gone, *others = sweep.trials
    for trial in others:
        finish(trial, 0.9)
    sweep.add_submissions([Submission(failed.id, "no-such-job", "local", "logs/1_0_log.out")])
    failed.write_state(status="failed", job_id="no-such-job", error="Failure: <script>alert(1)</script> & NaN")
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
    assert places_of(sweep)[-1].rank == 0


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


def test_curves_mean_band_and_marks(finished: Sweep) -> None:
    records = read_records(finished)
    axes = varied(finished, records)
    panels = report_plots.collect(axes, gather(axes, records))
    assert [(panel.title, [curve.label for curve in panel.curves]) for panel in panels] == [
        ("unet", ["none", "elastic"]),
        ("resnet34_unet", ["none", "elastic"]),
    ]
    curve = panels[0].curves[0]
    assert curve.lines["val/dice"].mean == pytest.approx((0.801, 0.901))
    assert curve.lines["val/dice"].low == pytest.approx((0.799, 0.899))
    assert curve.lines["val/dice"].high == pytest.approx((0.804, 0.904))
    assert (curve.best_dice_epoch, curve.lowest_loss_epoch) == (2, 1)
    loss, dice = report_plots.draw(panels)[0].svgs
    assert loss.startswith("<svg")
    assert "var(--curve-1)" in dice
    assert not set(report_plots.VARIABLES) & set(re.findall(r"#[0-9a-f]{6}", loss + dice))


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


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model.arch": "resnet34_unet", "train.mixed_precision": "bf16", "optim.lr": 3e-5, "data.shards": "my shards"},
        {"train.test": False, "train.channels_last": False, "augment.p": 0.5, "train.seed": 7, "data.border": "ignore"},
    ],
)
def test_flags_give_back_the_same_run(values: dict[str, Any]) -> None:
    config = with_values(RunConfig(), values)
    flags = train_flags(config_to_dict(config))
    again = tyro.cli(RunConfig, args=flags)
    assert identity(again, "h") == identity(config, "h")
    assert again.data.shards == config.data.shards
    assert len(values) == sum(flag.startswith("--") for flag in flags)


def test_flags_leave_out_what_makes_no_numbers() -> None:
    config = RunConfig()
    config = replace(config, tracking=replace(config.tracking, wandb="offline"), data=replace(config.data, threads=9))
    assert train_flags(config_to_dict(config)) == []


def test_number_formats() -> None:
    assert [quantity(n) for n in (31_037_698, 270_906, 12)] == ["31.0 M", "270.9 k", "12"]
    assert [duration(s) for s in (84, 4000, 9000)] == ["84 s", "67 min", "2 h 30"]
    assert signed(-0.01) == "\N{MINUS SIGN}0.0100"


def test_command_writes_the_page_and_shows_the_leaderboard(
    finished: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(report.main, ["lab", "--runs-dir", str(tmp_path / "runs")]) == OK
    shown = capsys.readouterr().out
    assert "lab: 12 done, 0 failed" in shown
    assert "0.9010 [0.8" in shown
    assert "no difference shown" in shown
    assert "arch, averaged over policy: unet beats resnet34_unet by 0.0305 [" in shown
    assert "unet · none against unet · elastic: no difference shown (0.0010 [" in shown
    assert "What policy does depends on arch" in shown
    assert str(finished.folder / "report.html") in shown
    other = tmp_path / "new" / "page.html"
    assert run_command(report.main, [str(finished.folder), "--out", str(other)]) == OK
    assert other.read_bytes() == (finished.folder / "report.html").read_bytes()
    assert [path.name for path in other.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize("form", ["md", "csv", "json"])
def test_leaderboard_in_other_formats_has_the_same_rows(
    finished: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    assert run_command(report.main, [str(finished.folder), "--format", form]) == OK
    shown = capsys.readouterr().out
    out = tmp_path / f"board.{form}"
    assert run_command(report.main, [str(finished.folder), "--format", form, "--out", str(out)]) == OK
    assert out.read_text() == shown
    assert not (finished.folder / "report.html").exists()
    if form == "md":
        lines = [line for line in shown.splitlines() if line.startswith("|")]
        rows = [dict(zip(lines[0].split(" | "), line.split(" | "), strict=True)) for line in lines[2:]]
        assert [(row["model.arch"], row["augment.policy"]) for row in rows] == list(DICE)
        assert [row["rank"] for row in rows] == ["1-2", "1-2", "3", "4"]
        return
    rows = json.loads(shown)["rows"] if form == "json" else list(csv.DictReader(io.StringIO(shown)))
    assert [(row["model.arch"], row["augment.policy"]) for row in rows] == list(DICE)
    assert [float(row["val_dice"]) for row in rows] == pytest.approx([0.901, 0.900, 0.880, 0.860])
    assert [int(row["rank_worst"]) for row in rows] == [2, 2, 3, 4]
    assert [row["finding"] or None for row in rows] == [None, "no difference shown", "apart", "apart"]
    assert all(float(row["val_dice_low"]) < float(row["val_dice"]) < float(row["val_dice_high"]) for row in rows)
    assert rows[0]["interval_covers"] == "seeds and pictures"


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


def test_groups_without_the_same_pictures_are_not_compared(finished: Sweep, page: Callable[[Sweep], str]) -> None:
    first, second = (t for t in finished.trials if place(t) == ("unet", "none") and t.axes["train.seed"] < 2)
    save_pictures(first, {"val": 0.9}, num_pictures=39)
    (second.folder / "per_image.npz").write_bytes(b"PK\x03\x04 cut off")
    board = board_of(finished)
    assert board.val
    assert [group.place for group in board.val.left_out] == [("unet", "none")]
    assert [group.place for group in board.val.groups] == list(DICE)[1:]
    assert board.main == []  # a design with a hole has no averages to compare
    text = page(finished)
    assert "Not compared, because the pictures of their per_image.npz are missing or others: unet · none." in text


def test_a_finer_axis_is_no_factor(lab: Lab) -> None:
    lab.axes = {
        "model.arch": ["unet", "resnet34_unet"],
        "optim.lr": [i / 1000 for i in range(1, 10)],
        "train.seed": [0],
    }
    sweep = lab.plan()
    for trial in sweep.trials:
        finish(trial, 0.9)
    board = board_of(sweep)
    assert [effects.axes for effects in board.main] == [("model.arch",)]
    assert board.interaction is None


def test_main_effects_and_interaction_of_the_lab(finished: Sweep) -> None:
    board = board_of(finished)
    assert [(e.axes, [(d.name, d.other, round(d.value, 4)) for d in e.differences]) for e in board.main] == [
        (("model.arch",), [("unet", "resnet34_unet", 0.0305)]),
        (("augment.policy",), [("none", "elastic", 0.0105)]),
    ]
    assert board.interaction
    (crossed,) = board.interaction.differences  # (0.901 - 0.900) - (0.880 - 0.860)
    assert crossed.value == pytest.approx(-0.019, abs=1e-5)


@pytest.mark.parametrize(
    ("low", "high", "p", "words"),
    [
        (0.002, 0.006, 0.01, "unet beats fcn by 0.0040 [0.0020, 0.0060], p = 0.010"),
        (0.0005, 0.0025, 0.01, "unet beats fcn by 0.0015 [0.0005, 0.0025], p = 0.010, though by less than 0.003"),
        (
            -0.002,
            0.004,
            0.4,
            "unet against fcn: no difference shown (0.0010 [\N{MINUS SIGN}0.0020, 0.0040], p = 0.400)",
        ),
        (-0.001, 0.002, 1.0, "unet against fcn: the same within 0.003 (0.0005 [\N{MINUS SIGN}0.0010, 0.0020], p = 1)"),
        (
            0.002,
            0.006,
            None,
            "unet against fcn: not known (0.0040 [0.0020, 0.0060] over pictures alone, with one seed)",
        ),
    ],
)
def test_a_difference_in_words(low: float, high: float, p: float | None, words: str) -> None:
    difference = Difference("unet", "fcn", (low + high) / 2, low, high, p)
    assert sentence(difference) == sentence(difference.turned) == words


def test_command_without_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(report.main, ["nothing", "--runs-dir", str(tmp_path)]) == WRONG_USE
    assert capsys.readouterr().err.startswith("error: no sweep in")


def test_report_does_not_wait_for_torch(finished: Sweep) -> None:
    script = (
        "import sys; from jobs.report import main; main([sys.argv[1]]); "
        "assert not {'torch', 'wandb', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script, str(finished.folder)]
    subprocess.run(command, check=True, timeout=120, cwd=REPOSITORY, capture_output=True)
    lazily = "import sys, jobs.report; assert not {'matplotlib', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", lazily], check=True, timeout=120, cwd=REPOSITORY)
