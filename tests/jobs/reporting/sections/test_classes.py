"""The report of a sweep on a set with classes whose pictures come in groups, and of other targets of pets."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.design.expansion import expand
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Spec
from jobs.report import leaderboard
from jobs.reporting.page import render_page
from jobs.reporting.sections.breakdown.by_group import build_by_group
from jobs.reporting.sections.breakdown.class_pictures import EACH, show_hardest
from jobs.reporting.sections.breakdown.classes import Classes, build_classes
from jobs.reporting.sections.breakdown.confusion import MAX_CLASSES, MAX_PAIRS, build_confusion
from jobs.reporting.sections.gallery import agreement, build_gallery
from jobs.reporting.sections.protocol import groups_text, protocol
from jobs.reporting.sections.samples import ValSplit, load_samples
from jobs.reporting.statistics.per_image import read_confusion, read_dice, read_per_image
from jobs.reporting.statistics.records import rank, read_records
from jobs.reporting.statistics.verdict import Leaderboard, build_leaderboard
from jobs.reporting.statistics.wording import verdict_of
from jobs.reporting.wandb_report.content import compose
from jobs.runs.sweep_file import find_sweep, load_sweep, save_sweep
from jobs.runs.trial import Sweep
from jobs.runs.trial_state import TrialState
from jobs.runs.trials import plan_sweep
from petseg.config.values import trial_id
from petseg.metrics.masks import load_masks
from petseg.run_folder.layout import claim_folder
from petseg.targets import TARGET_NAME
from petseg.targets.target import Target
from petseg.training.loop import train
from shards.classes import ClassEntry
from shards.manifest import load_manifest
from shards.pack import PackConfig, pack
from shards.terminal import Terminal
from tests.scenes import Scenes, encode
from tests.test_house import own_words

VIDEOS, FRAMES = {"train": 4, "val": 4}, 3
FIXED = {
    "data.threads": 1, "data.cache": "none", "model.width": 4, "train.budget_steps": 14, "train.batch_size": 6,
    "optim.lr": 0.02, "train.test": False, "tracking.overlays": 2,
}  # fmt: skip


def run_sweep(root: Path, shards: Path, axes: dict[str, list[Any]], size_px: int) -> None:
    spec = Spec("lab", axes, {"data.shards": str(shards), "data.image_size_px": size_px} | FIXED)
    manifest, cells = load_manifest(shards), expand(spec)
    sweep = plan_sweep(spec, cells, ShardSets({str(shards): manifest}), root / "runs" / "lab")
    save_sweep(sweep)
    configs = {trial_id(cell.config, manifest.hash): cell.config for cell in cells}
    for trial in sweep.trials:
        claim_folder(configs[trial.id], manifest.hash, trial.folder)
        train(configs[trial.id], trial.folder)
        trial.write_state(TrialState("done", host="node1", job_id="1"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards: frames of videos; runs/lab: two cells of two seeds, finished."""
    root = tmp_path_factory.mktemp("streets")
    scenes = Scenes(root / "scenes")
    for split, count in VIDEOS.items():
        for number in range(count * FRAMES):
            picture, mask = scenes.add(f"{split}-video{number // FRAMES}-{number}", split)
            values = np.asarray(Image.open(mask))[..., None].repeat(3, axis=2)
            picture.write_bytes(encode(Image.fromarray(28 * values), quality=92))  # which can be learnt
    pack(scenes.config(root / "shards", group_by=r"^\w+-video\d+"))
    run_sweep(root, root / "shards", {"augment.policy": ["none", "elastic"], "train.seed": [0, 1]}, 32)
    return root


@pytest.fixture
def sweep(made: Path, tmp_path: Path) -> Iterator[Sweep]:
    """A copy to be spoilt."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    return find_sweep("lab", tmp_path / "runs")


def board_of(sweep: Sweep) -> Leaderboard:
    return build_leaderboard(sweep, read_records(sweep))


def classes_of(sweep: Sweep) -> Classes:
    classes = build_classes(board_of(sweep))
    assert classes
    return classes


def test_the_page_speaks_of_classes_and_groups(sweep: Sweep) -> None:
    text = render_page(sweep, read_records(sweep), shards=sweep.shards)
    words = re.sub(r"data:image[^\"]+|<style>.*?</style>|<[^>]*>", " ", text, flags=re.DOTALL)
    for expected in ("By class", "By group", "What ", "Most confused", "Worst pictures of the hardest classes"):
        assert expected in words
    assert "12 pictures in 4 groups" in words
    assert "One class everywhere" in words
    assert own_words(text_of(text)) == []
    assert text.count("% of the picture is called another class") > 8
    assert text.count('class="swatch hatched"') == 1


def text_of(page: str) -> str:
    """What a page says, also in labels and tooltips: without pictures, looks and scripts."""
    return re.sub(r"data:image[^\"]+|<(style|script)\b.*?</\1>", " ", page, flags=re.DOTALL)


def test_no_report_of_classes_speaks_of_another_data_set(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    """On the page, on the terminal and in wandb, also before the first trial has begun, and with overlays alone."""
    records = read_records(sweep)
    Terminal().print(leaderboard(sweep, records))
    assert "one class everywhere" in (printed := capsys.readouterr().out)
    assert own_words(printed) == []
    assert own_words(str(compose(sweep, records, board_of(sweep)))) == []
    for trial in sweep.trials:
        (trial.folder / "per_image.npz").unlink()
    without_dice = text_of(render_page(sweep, read_records(sweep), shards=sweep.shards))
    assert "The same pictures, side by side" in without_dice
    assert own_words(without_dice) == []
    for trial in sweep.trials:
        shutil.rmtree(trial.folder)
    planned = text_of(render_page(sweep, read_records(sweep), shards=sweep.shards))
    assert "One class everywhere" in planned
    assert own_words(planned) == []


def test_protocol_of_a_set_with_classes(sweep: Sweep) -> None:
    records, board = read_records(sweep), board_of(sweep)
    facts = dict(protocol(sweep, records, board.val))
    assert facts["Target"] == "as_packed, 3 classes: road, tree, car"
    assert facts["Averaging"].startswith("Dice and IoU per picture, the mean over the 3 classes that are in its truth")
    assert "12 val pictures in 4 groups (--group-by): intervals and tests are for other groups" in facts["Groups"]
    assert facts["Shard set"] == "scenes"
    assert not {"Border", "All-pet guess"} & set(facts)
    caption = str(leaderboard(sweep, records, board).caption)
    assert "one class everywhere: 0." in caption
    for trial in sweep.trials:
        shutil.rmtree(trial.folder)
    planned = load_sweep(sweep.folder)  # what was noted at submission is known before a trial has begun
    assert planned.shard_sets[0].num_classes == 3
    facts = dict(protocol(planned, read_records(planned)))
    assert "classes" in facts["Averaging"]
    assert "Border" not in facts


def test_groups_are_the_units_of_intervals(sweep: Sweep) -> None:
    val = board_of(sweep).val
    assert val
    assert (val.num_pictures, val.num_groups, val.cells.num_pictures) == (12, 4, 4)
    assert "12 pictures in 4 groups" in verdict_of(board_of(sweep)).lead
    pictures = read_per_image(sweep.trials[0].folder, "val")
    assert pictures
    assert pictures.groups == tuple(key.rpartition("-")[0] for key in pictures.keys)
    for trial in sweep.trials:  # as in a set that was packed without --group-by
        with np.load(trial.folder / "per_image.npz") as arrays:
            kept = {name: arrays[name] for name in arrays if not name.endswith("groups")}
        np.savez(trial.folder / "per_image.npz", **kept)
    single = board_of(sweep).val
    assert single
    assert (single.units, single.num_groups, single.cells.num_pictures) == (None, 0, 12)
    assert single.cells.mean == pytest.approx(val.cells.mean, abs=1e-12)
    assert build_by_group(board_of(sweep), sweep) is None  # no shards are opened that nobody named
    by_group = build_by_group(board_of(sweep), sweep, sweep.shards)
    assert by_group
    assert [by_group.noun, *sorted(row.name for row in by_group.rows)] == ["group", *sorted(set(pictures.groups))]


def test_a_single_group_says_nothing_about_others(sweep: Sweep) -> None:
    val = board_of(sweep).val
    assert val
    one, each = replace(val, units=None, num_groups=1), replace(val, units=None, num_groups=12)
    assert groups_text(one).startswith("12 val pictures in 1 group (--group-by): intervals are for other pictures of")
    assert groups_text(each) == "12 val pictures in 12 groups (--group-by): each picture is a group by itself"


def test_dice_is_that_of_the_result(sweep: Sweep) -> None:
    for record in read_records(sweep):
        assert record.result
        found = read_dice(record.trial.folder, "val")
        assert found
        assert found[1].mean() == pytest.approx(record.result.metrics["val/dice"], abs=1e-12)


def test_classes_by_hand(sweep: Sweep) -> None:
    classes = classes_of(sweep)
    runs = [[read_per_image(record.trial.folder, "val") for record in group.done] for group in classes.cells]
    for one in classes.rows:
        number = one.entry.value  # all classes count
        shown = runs[0][0].truth[:, number]
        means = [np.mean([run.class_dice[shown, number] for run in own]) for own in runs]
        assert one.row
        assert one.difference
        assert one.row.num_pictures == shown.sum() == 12
        assert [mean.value for mean in one.row.means] == pytest.approx(means)
        assert one.difference.value == pytest.approx(means[0] - means[1])
        assert one.difference.low <= one.difference.value <= one.difference.high
    assert sum(one.share or 0 for one in classes.rows) == pytest.approx(1)
    first = [one.row.means[0].value for one in classes.rows if one.row]
    assert first == sorted(first)
    assert classes.confusion
    best = classes.cells[0].best()
    assert best
    pixels = read_confusion(best.trial.folder, "val")
    assert pixels is not None
    for (entry, cells), row in zip(classes.confusion.rows, pixels, strict=True):
        assert [cell.share for cell in cells] == pytest.approx((row / row.sum()).tolist())
        assert [cell.is_right for cell in cells] == [value == entry.value for value in range(3)]


def test_cells_that_learnt_other_classes_are_not_beside_them(sweep: Sweep) -> None:
    """Even if there are as many."""
    first, second = classes_of(sweep).cells
    for record in second.done:
        path = record.trial.folder / TARGET_NAME
        path.write_text(path.read_text().replace(classes_of(sweep).target.classes[2].name, "another"))
    assert [group.key for group in classes_of(sweep).cells] == [first.key]


def test_truth_is_decoded_by_the_target_of_the_run(sweep: Sweep) -> None:
    record = read_records(sweep)[0]
    masks = load_masks(record.trial.folder)
    pictures = read_per_image(record.trial.folder, "val")
    assert masks
    assert pictures
    where = ValSplit(record, sweep.manifest_hash, sweep.shards)
    samples, trouble = load_samples(where, dict(enumerate(masks.keys)))
    assert trouble == ""
    for i, sample in samples.items():
        for value in range(3):
            truth, predicted = sample.classes == value, (masks.of(i) == value) & sample.counted
            counts = [(truth & predicted).sum(), (predicted & ~truth).sum(), (truth & ~predicted).sum()]
            assert counts == pictures.counts[i, value].tolist()
    (record.trial.folder / TARGET_NAME).unlink()
    _, trouble = load_samples(where, {0: masks.keys[0]})
    assert "which says what the run learnt" in trouble


def test_worst_pictures_of_a_class_come_first(sweep: Sweep) -> None:
    gallery = build_gallery(rank(board_of(sweep).groups), sweep, sweep.shards)
    assert gallery
    assert gallery.wanted == ""
    rows = show_hardest(gallery.cell, sweep, sweep.shards)
    assert {row.entry.name for row in rows} == {"road", "tree", "car"}
    for row in rows:
        assert len(row.shots) == EACH
        assert [shot.dice for shot in row.shots] == sorted(shot.dice for shot in row.shots)
    assert show_hardest(gallery.cell, sweep, "") == ()


def test_agreement_of_two_masks_by_hand() -> None:
    one, other = np.array([[0, 1, 1, 2]], np.uint8), np.array([[0, 1, 2, 2]], np.uint8)
    assert agreement(one, other, (1,)) == pytest.approx(2 / 3)
    assert agreement(one, other, (1, 2)) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert agreement(one, other, (0, 1, 3)) == pytest.approx((1 + 2 / 3) / 2)
    assert agreement(one, one, (0, 1, 2)) == 1


def test_confusion_of_many_classes() -> None:
    count = MAX_CLASSES + 5
    classes = tuple(ClassEntry(f"class{value}", value, (value, 0, 0)) for value in range(count))
    target = Target("many", classes, {"": np.zeros((1, 256), np.uint8)}, "")
    pixels = np.diag(np.arange(count, dtype=np.int64) * 100)  # class0 is nowhere
    pixels[44, 3] = 50
    confusion = build_confusion(target, pixels)
    assert confusion
    assert len(confusion.classes) == MAX_CLASSES
    assert confusion.left_out == count - 1 - MAX_CLASSES
    assert "class0" not in {one.name for one in confusion.classes}
    ((pair),) = confusion.pairs
    assert (pair.truth.name, pair.called.name) == ("class44", "class3")
    assert pair.share == pytest.approx(50 / 4450)
    assert len(build_confusion(target, pixels + 1).pairs) == MAX_PAIRS  # type: ignore[union-attr]
    assert build_confusion(target, 0 * pixels) is None


def test_other_targets_of_pets(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    pack(PackConfig(out=shards, synthetic=40, seed=3, image_size_px=32, samples_per_shard=64, workers=1))
    run_sweep(tmp_path, shards, {"data.target": ["pet", "trimap", "species"], "train.seed": [0]}, 32)
    sweep = find_sweep("lab", tmp_path / "runs")
    records = read_records(sweep)
    facts = dict(protocol(sweep, records))
    assert "pet, 2 classes: background, pet" in facts["Target"]
    assert "trimap, 3 classes: background, pet, border" in facts["Target"]
    assert facts["Border"] == "border counts as pet (fg)"
    assert "the 2 of 3 classes that count (all but background)" in facts["Averaging"]
    text = render_page(sweep, records, shards=sweep.shards)
    assert "The trials differ in target (pet, trimap, species)" in text
    for record in records:  # each by itself, whichever is the first of the leaderboard
        where = ValSplit(record, sweep.manifest_hash, sweep.shards)
        masks = load_masks(record.trial.folder)
        pictures = read_per_image(record.trial.folder, "val")
        assert masks
        assert pictures
        samples, trouble = load_samples(where, dict(enumerate(masks.keys)))
        assert trouble == ""
        truth = np.array([[(sample.classes == value).sum() for value in (1, 2)] for sample in samples.values()])
        counted = pictures.counts.shape[1]
        assert truth[:, :counted].tolist() == (pictures.counts[..., 0] + pictures.counts[..., 2]).tolist()
