"""The rows of a leaderboard, beside the differences and means that they are made of."""

from __future__ import annotations

import pytest

from jobs.reporting.rows import MARGINAL, SIMULTANEOUS, ranged, rows_of
from jobs.reporting.statistics.records import read_records
from jobs.reporting.statistics.verdict import build_leaderboard
from jobs.reporting.statistics.wording import FINDINGS
from jobs.runs.trial import Sweep


def test_a_row_has_the_numbers_of_its_difference_and_its_means(finished: Sweep) -> None:
    board = build_leaderboard(finished, read_records(finished))
    rows = rows_of(board)
    assert [row["val_dice"] for row in rows] == pytest.approx([0.901, 0.900, 0.880, 0.860])
    assert board.val is not None
    compared = 0
    for row in rows:
        (group,) = (one for one in board.groups if all(row[name] == value for name, value in one.axes.items()))
        mean, test, difference = board.mean("val", group), board.mean("test", group), board.val.from_best(group)
        assert mean is not None
        assert (row["val_dice_low"], row["val_dice_high"]) == (mean.low, mean.high)
        assert (row["rank_best"], row["rank_worst"], row["interval_kind"]) == (*mean.ranks, MARGINAL)
        assert (row["test_dice_low"], row["test_dice_high"]) == ((test.low, test.high) if test else (None, None))
        names = ("from_best", "from_best_low", "from_best_high", "p_adjusted", "finding", "from_best_kind")
        if difference is None:
            assert [row[name] for name in names] == [None] * 6
            continue
        compared += 1
        kind = MARGINAL if difference.p is None else SIMULTANEOUS
        assert [row[name] for name in names] == [
            difference.value, difference.low, difference.high, difference.p, FINDINGS[difference.finding], kind
        ]  # fmt: skip
    assert compared == 3


def test_a_number_is_shown_with_its_interval() -> None:
    row = {"dice": 0.901, "dice_low": 0.897, "dice_high": 0.905, "gain": 0.001, "gain_low": -0.003, "gain_high": 0.005}
    assert ranged(row, "dice") == "0.9010 [0.8970, 0.9050]"
    assert ranged(row, "gain", "+") == "+0.0010 [-0.0030, +0.0050]"
    assert ranged(row | {"dice_low": None, "dice_high": None}, "dice") == "0.9010"
    assert ranged(row | {"dice": None}, "dice") == ""
