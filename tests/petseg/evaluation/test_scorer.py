"""Scores of a batch: each picture by the rows of its own kind, in chunks, and at its own size."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from petseg.data.inputs import IGNORE_INDEX
from petseg.data.ledger import Count, Ledger
from petseg.data.tars import Lost
from petseg.evaluation.protocol import CHUNK, COLUMNS, Measured, Protocol, Scorer, scores_of, why_not_native
from petseg.evaluation.report import Evaluated, as_json, report
from petseg.metrics.boundary import boundary_iou, hd95_px
from petseg.metrics.calibration import BinaryCalibration
from petseg.metrics.pixels import PerImage, Scores
from petseg.run.parts import Parts
from petseg.run_folder.checkout import running_code
from petseg.targets.target import Target
from shards.classes import ClassEntry
from shards.manifest import Manifest

CPU = torch.device("cpu")


def target_of_kinds() -> Target:
    """Label 7 is class 1 or 2 by the kind of the sample; label 9 counts with it by one rule, and not by the other."""
    classes = tuple(ClassEntry(name, value, (0, 0, 0)) for value, name in enumerate(("background", "low", "high")))
    tables = np.zeros((2, 2, 256), np.uint8)
    tables[:, 0, 7], tables[:, 1, 7] = 1, 2
    tables[0, :, 9], tables[1, :, 9] = tables[0, :, 7], IGNORE_INDEX
    return Target("finer", classes, {"in": tables[0], "out": tables[1]}, "in", ("a", "b"), "kind", {"any": 0})


def parts_of(target: Target) -> Any:
    tables = {name: torch.from_numpy(table) for name, table in target.rules.items()}
    config = SimpleNamespace(data=SimpleNamespace(fit="squash", image_size_px=64))
    return SimpleNamespace(target=target, tables=tables, device=CPU, config=config)


@pytest.fixture
def scorer() -> Any:
    with ThreadPoolExecutor(2) as pool:
        yield Scorer(cast(Parts, parts_of(target_of_kinds())), Protocol(boundary_ratio=0.1), pool)


def test_each_picture_is_scored_by_every_rule_of_its_own_kind(scorer: Scorer) -> None:
    """More pictures than a chunk holds, of both kinds, some without any class."""
    draw = torch.Generator().manual_seed(0)
    number = 2 * CHUNK + 3
    labels = torch.tensor([0, 7, 9], dtype=torch.uint8)[torch.randint(0, 3, (number, 12, 16), generator=draw)]
    labels[5] = 0
    predicted = torch.randint(0, 3, (number, 12, 16), generator=draw).to(torch.uint8)
    predicted[5] = 0
    rows = np.array([i % 3 % 2 for i in range(number)])
    found = scorer.score(predicted, labels, rows)
    assert found.shape == (number, 2 * 2 * COLUMNS)
    by_rule = scores_of(scorer.parts.target, found.numpy())
    assert list(by_rule) == ["in", "out"]
    for i, (rule, class_number) in (
        (i, one) for i in range(number) for one in (("in", 0), ("in", 1), ("out", 0), ("out", 1))
    ):
        own = class_number + 1
        counts = (labels[i] != 9) | (rule == "in")
        is_own = (labels[i] == 7) | ((labels[i] == 9) & (rule == "in"))
        truth = is_own & bool(rows[i] == class_number)
        ours = (predicted[i] == own) & counts
        scores = by_rule[rule]
        expected = [int((ours & truth).sum()), int((ours & ~truth).sum()), int((~ours & truth).sum())]
        assert scores.counts[i, class_number].tolist() == expected
        outlines = (1.0, 0.0)
        if any(expected):
            outlines = (boundary_iou(ours[None], truth[None], 0.1).item(), hd95_px(ours.numpy(), truth.numpy()))
        assert (scores.boundary_iou[i, class_number], scores.hd95_px[i, class_number]) == pytest.approx(outlines)
    assert not by_rule["in"].present[5].any()


def test_lost_labels_leave_the_others_in_their_places(scorer: Scorer) -> None:
    """Pictures of their own sizes; the second one is lost."""
    labels = [np.full((6, 8), 7, np.uint8), Lost("a.tar", "b", 512, "altered"), np.full((4, 10), 7, np.uint8)]
    logits = torch.zeros(3, 3, 4, 4)
    logits[0, 1], logits[2, 2] = 1.0, 1.0
    ledger = Ledger()
    found = scores_of(scorer.parts.target, scorer.score_native(logits, labels, np.array([0, 0, 1]), ledger).numpy())
    assert found["in"].counts.tolist() == [[[48, 0, 0], [0, 0, 0]], [[0, 0, 0]] * 2, [[0, 0, 0], [40, 0, 0]]]
    assert (ledger.count, ledger.lost) == (Count(lost=1, unnamed=1), [labels[1]])


def test_labels_of_an_unequal_number_are_refused(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="zip"):
        scorer.score_native(torch.zeros(2, 3, 4, 4), [np.zeros((4, 4), np.uint8)], None, Ledger())


def test_columns_are_by_rule_then_by_class() -> None:
    columns = np.arange(2 * 2 * 2 * COLUMNS, dtype=np.float64).reshape(2, -1)
    found = scores_of(target_of_kinds(), columns)
    assert found["in"].counts.tolist() == [[[0, 1, 2], [5, 6, 7]], [[20, 21, 22], [25, 26, 27]]]
    assert found["out"].boundary_iou.tolist() == [[13, 18], [33, 38]]
    assert found["out"].hd95_px.tolist() == [[14, 19], [34, 39]]
    assert scores_of(target_of_kinds(), np.zeros((2, 0))) == {}


def test_why_there_is_no_native_size_names_the_size_of_packing() -> None:
    packed = [SimpleNamespace(packer=packer) for packer in ({}, {"image_size_px": 0}, {"image_size_px": 96})]
    whole, said_whole, squashed = (why_not_native(cast(Manifest, one)) for one in packed)
    assert whole == said_whole == ""
    assert squashed == (
        "the shards hold pictures and masks squashed to 96 px: pack the set with --image-size-px 0 for numbers at "
        "native resolution"
    )


KEYS = ("v_1", "v_2", "w_1")


def evaluated(tmp_path: Any, temperature: float | None, no_native: str = "") -> tuple[Any, Evaluated]:
    classes = tuple(ClassEntry(name, value, (0, 0, 0)) for value, name in enumerate(("background", "road")))
    target = Target("packed", classes, {"": np.zeros((1, 256), np.uint8)}, "", labels={"any": 0})
    counts = np.array([[[8, 1, 1]], [[1, 1, 8]], [[5, 0, 0]]], np.int64)
    scores = Scores(counts, np.array([[0.5], [0.25], [1.0]]), np.array([[2.0], [9.0], [0.0]]))
    calibration = BinaryCalibration(CPU)
    calibration.add(torch.tensor([[[[0.0, 0.0]], [[2.0, -1.0]]]]), torch.tensor([[[1, 1]]]))
    per_image = PerImage(counts=counts, loss=np.array([0.1, 0.2, 0.3]), pixels=20)
    measured = Measured(target, per_image, {"": scores}, {}, calibration)
    parts = parts_of(target)
    groups = ("v", "v", "w")
    tars = SimpleNamespace(facts=lambda position: {"group": groups[position]})
    split = type("Split", (), {"__len__": lambda _: 3, "key": lambda _, i: KEYS[i], "tars": tars})()
    parts.splits, parts.folder = {"test": split}, tmp_path
    parts.manifest = SimpleNamespace(hash="abc123", classes=object())
    protocol = Protocol(tta="flips", boundary_ratio=0.03, keep_largest=True)
    return parts, Evaluated("test", "last", "step-00000004", protocol, no_native, measured, temperature)


def test_the_file_says_how_it_was_measured_and_has_every_picture(tmp_path: Any) -> None:
    parts, done = evaluated(tmp_path, 2.0)
    content = as_json(parts, done)
    told = {name: content[name] for name in list(content)[:11]}
    assert told == {
        "split": "test", "weights": "last", "protocol": "64 px, 3 pictures, TTA flips, largest part of each mask",
        "manifest_hash": "abc123", "checkpoint": "step-00000004", "checkout": vars(running_code()), "tta": "flips",
        "keep_largest": True, "boundary_ratio": 0.03, "no_native": "", "temperature_fitted_on": "val",
    }  # fmt: skip
    assert content["metrics"] == done.measured.metrics("test", 2.0)
    assert content["dice"] == pytest.approx({"v_1": 16 / 18, "v_2": 2 / 11, "w_1": 1.0})
    assert [row["key"] for row in content["worst"]] == ["v_2", "v_1", "w_1"]
    assert {name: group["pictures"] for name, group in content["groups"].items()} == {"v": 2, "w": 1}
    assert content["groups"]["v"]["hd95_px"] == 5.5
    assert "classes" not in content
    as_is, scaled = content["reliability"]["as_is"], content["reliability"]["scaled"]
    assert [row["pixels"] for row in as_is] == [row["pixels"] for row in scaled] == [1, 1]
    assert scaled[-1]["confidence"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-3)


def test_the_report_is_written_and_shown_with_what_is_missing(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, done = evaluated(tmp_path, None, no_native="not asked for")
    content = report(parts, done)
    assert json.loads((tmp_path / "evaluate-test.json").read_text()) == content
    assert (content["temperature_fitted_on"], content["reliability"]["scaled"]) == (None, [])
    shown = capsys.readouterr().out
    titles = ["test: 64 px, 3 pictures", "groups of lowest Dice", "the 3 pictures of lowest Dice"]
    assert sorted(shown.index(title) for title in titles) == [shown.index(title) for title in titles]
    assert shown.endswith(
        f"expected calibration error {content['metrics']['test/ece']:.4f}; no val split to fit a temperature on\n"
        "no numbers at native resolution: not asked for\n"
    )
