"""Groups of records without any folder: their spreads, ranks, tables, and the weights of effects."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.reporting.statistics.compare import LEVEL, Intervals
from jobs.reporting.statistics.per_image import PerImage
from jobs.reporting.statistics.records import Group, Record, axis_text, gather, rank, read_record, tabulate
from jobs.reporting.statistics.verdict import Difference, _weights, compare, differences_of
from jobs.runs.trial import Trial
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.layout import Result


def record(dice: float | None, status: str = "done", **values: Any) -> Record:
    result = None
    if dice is not None:
        metrics = {"val/dice": dice, "val/iou": dice / 2}
        result = Result("x", metrics, 2, 2, 1000, 1, "node1", "cpu", 100 * dice, 83.0, 0.01, 84.0)
    return Record(TrialStatus(Trial("x", {}, Path("none")), status), values, None, result, [])


def test_a_group_counts_its_finished_trials_alone() -> None:
    group = Group({"a": 1}, (record(0.5), record(None, "running"), record(0.75), record(0.25)))
    assert len(group.done) == 3
    spread = group.spread("val/dice")
    assert spread
    assert (spread.mean, spread.sd, spread.low, spread.high, spread.n) == (0.5, 0.25, 0.25, 0.75, 3)
    assert group.spread("test/dice") is None
    assert group.best() is group.records[2]
    assert group.mean("train_s") == 50
    unfinished = Group({}, (record(None, "running"),))
    assert (unfinished.best(), unfinished.mean("train_s"), unfinished.label) == (None, None, "all trials")


def test_records_are_gathered_by_their_values_without_those_stopped_early() -> None:
    one, two, other, stopped, bare = (
        record(0.5, lr=1, arch="unet", seed=0),
        record(0.6, lr=1, arch="unet", seed=1),
        record(0.7, lr=2, arch="unet", seed=0),
        record(None, "pruned", lr=1, arch="unet"),
        record(0.8, arch="unet"),
    )
    groups = gather(["arch", "lr"], [other, one, stopped, two, bare])
    assert [(group.axes, group.records) for group in groups] == [
        ({"arch": "unet", "lr": 2}, (other,)),
        ({"arch": "unet", "lr": 1}, (one, two)),
        ({"arch": "unet", "lr": None}, (bare,)),
    ]
    assert [group.label for group in groups] == ["unet · lr=2", "unet · lr=1", "unet · lr=?"]


def test_groups_are_ranked_from_the_highest_mean_and_the_unfinished_come_last() -> None:
    waiting = Group({"a": 0}, (record(None, "running"),))
    low, high = Group({"a": 1}, (record(0.5),)), Group({"a": 2}, (record(0.6), record(0.8)))
    ranking = rank([waiting, low, high])
    assert [(one.rank, one.group) for one in ranking] == [(1, high), (2, low), (0, waiting)]
    assert [one.val_dice.mean if one.val_dice else None for one in ranking] == [pytest.approx(0.7), 0.5, None]


def test_an_axis_value_in_words() -> None:
    assert [axis_text("model.arch", "unet"), axis_text("model.width", 8), axis_text("seed", None)] == [
        "unet",
        "width=8",
        "seed=?",
    ]


def table(places: list[tuple[Any, ...]], *axes: str) -> Any:
    groups = [Group(dict(zip(axes, place, strict=True)), ()) for place in places]
    return [
        (grid.title, grid.columns, [(name, [cell.key if cell else None for cell in line]) for name, line in grid.rows])
        for grid in tabulate(axes, groups)
    ]


def test_tables_of_one_two_and_three_axes() -> None:
    assert table([(1,), (2,)], "a") == [("", ("",), [("a=1", [(1,)]), ("a=2", [(2,)])])]
    assert table([()]) == [("", ("",), [("all trials", [()])])]
    assert table([(1, "x"), (1, "y"), (2, "y")], "a", "b") == [
        ("", ("x", "y"), [("a=1", [(1, "x"), (1, "y")]), ("a=2", [None, (2, "y")])])
    ]
    assert table([(1, "x", 5), (2, "x", 6)], "a", "b", "c") == [
        ("c=5", ("x",), [("a=1", [(1, "x", 5)]), ("a=2", [None])]),
        ("c=6", ("x",), [("a=1", [None]), ("a=2", [(2, "x", 6)])]),
    ]


def test_a_table_needs_a_quarter_of_its_cells_and_at_most_twelve_are_shown() -> None:
    assert len(table([(i, i) for i in range(4)], "a", "b")) == 1  # 4 of 16 cells
    assert table([(i, i) for i in range(5)], "a", "b") == []  # 5 of 25
    assert [title for title, *_ in table([(0, 0, i) for i in range(13)], "a", "b", "c")] == [
        f"c={i}" for i in range(12)
    ]


@pytest.mark.parametrize(
    ("low", "high", "p", "finding"),
    [
        (-0.001, 0.001, None, "unknown"),
        (-0.001, 0.001, LEVEL, "same"),
        (0.001, 0.002, 0.049, "apart"),
        (-0.001, 0.003, 0.5, "open"),
        (-0.003, 0.001, 0.5, "open"),
    ],
)
def test_the_finding_at_its_limits(low: float, high: float, p: float | None, finding: str) -> None:
    assert Difference("a", "b", 0.0, low, high, p).finding == finding


def test_a_difference_turned_swaps_its_names_and_its_ends() -> None:
    below = Difference("a", "b", -0.2, -0.5, 0.1, 0.3)
    above = Difference("b", "a", 0.2, -0.1, 0.5, 0.3)
    assert below.turned == below.upright == above == above.upright
    tie = Difference("a", "b", 0.0, -0.1, 0.1, 0.3)
    assert tie.upright is tie


def test_differences_of_sets_of_pictures_are_unknown_without_a_p_value() -> None:
    value, low, high, p = (np.array(x) for x in ([0.1, 0.2], [-0.1, 0.0], [0.3, 0.4], [0.5, np.nan]))
    assert differences_of(("a", "b"), Intervals(value=value, low=low, high=high, p=p, pictures_only=np.isnan(p))) == [
        Difference("a", "b", 0.1, -0.1, 0.3, 0.5),
        Difference("a", "b", 0.2, 0.0, 0.4, None),
    ]


def test_weights_of_a_main_effect_and_of_an_interaction() -> None:
    positions = {(a, b): 0 for a in ("u", "v", "w") for b in (1, 2)}
    assert _weights(positions, {0: {"u": 1.0, "v": -1.0}}) == [0.5, 0.5, -0.5, -0.5, 0, 0]
    assert _weights(positions, {1: {1: 1.0, 2: -1.0}}) == pytest.approx([1 / 3, -1 / 3] * 3)
    assert _weights(positions, {0: {"u": 1.0, "w": -1.0}, 1: {1: 1.0, 2: -1.0}}) == [1, -1, 0, 0, -1, 1]


def test_dice_of_pictures_with_several_classes() -> None:
    counts = np.array(
        [
            [[2, 1, 1], [0, 0, 3]],  # 2/3 of the first class, 0 of the second, which the truth alone has
            [[4, 0, 0], [0, 0, 0]],  # without the second class
            [[0, 0, 0], [0, 0, 0]],
            [[0, 2, 0], [1, 0, 0]],
        ],
        dtype=float,
    )
    one = PerImage(("a", "b", "c", "d"), counts)
    assert one.class_dice == pytest.approx(np.array([[2 / 3, 0], [1, 1], [1, 1], [0, 1]]))
    assert one.dice == pytest.approx([1 / 3, 1, 1, 0.5])
    assert one.truth.tolist() == [[True, True], [True, False], [False, False], [False, True]]
    assert one.called.tolist() == [[True, False], [True, False], [False, False], [True, True]]
    assert PerImage(("a", "b"), counts[1:3, 1:]).dice.tolist() == [1, 1]


def measured(folder: Path, label: str, hits: list[list[int]], keys: str = "", groups: list[str] | None = None) -> Group:
    """A group of one trial per list: hits of 10 on each of its pictures, which are the letters of keys."""
    records = []
    for seed, each in enumerate(hits):
        place = folder / f"{label}{seed}"
        place.mkdir()
        arrays = {"val/keys": np.array(list(keys or "ab")), "val/counts": np.array([[n, 20 - 2 * n, 0] for n in each])}
        np.savez(
            place / "per_image.npz", allow_pickle=False, **arrays | ({"val/groups": np.array(groups)} if groups else {})
        )
        one = record(float(np.mean(each)) / 10)
        status = TrialStatus(Trial(label, {}, place), "done")
        records.append(Record(status, {}, None, one.result, []))
    return Group({"arch": label}, tuple(records))


def test_groups_are_compared_on_the_pictures_that_most_of_them_share(tmp_path: Path) -> None:
    low, high = measured(tmp_path, "low", [[2, 4], [3, 5]]), measured(tmp_path, "high", [[7, 9]])
    odd = measured(tmp_path, "odd", [[9, 9, 9]], "abc")
    found = compare([odd, low, high], "val")
    assert found
    assert (found.groups, found.left_out, found.num_pictures) == ((high, low), (odd,), 2)
    assert [found.means[key].value for key in (("high",), ("low",))] == pytest.approx([0.8, 0.35])
    assert [one.pictures_only for one in found.means.values()] == [True, False]
    assert all(0.0 <= one.low < one.value < one.high <= 1.0 for one in found.means.values())
    assert (found.units, found.unit, found.num_groups, found.noise) == (None, "pictures", 0, None)
    gap = found.from_best(low)
    assert gap
    assert (gap.name, gap.other, gap.p) == ("low", "high", None)
    assert gap.value == pytest.approx(-0.45)
    assert found.from_best(high) is found.from_best(odd) is None
    assert (found.mean(odd), found.positions) == (None, {("high",): 0, ("low",): 1})
    assert compare([odd, low, high], "test") is None
    assert compare([measured(tmp_path, "tiny", [[5]], "a")], "val") is None


def test_groups_of_pictures_are_the_units_where_pictures_have_them(tmp_path: Path) -> None:
    films = ["f", "f", "g", "h"]
    one = measured(tmp_path, "one", [[6, 8, 5, 9], [6, 7, 5, 9]], "abcd", films)
    two = measured(tmp_path, "two", [[4, 4, 5, 6], [3, 4, 6, 6]], "abcd", films)
    found = compare([two, one], "val")
    assert found
    assert (found.num_pictures, found.num_groups, found.unit) == (4, 3, "groups of pictures")
    assert found.units is not None
    assert len(set(found.units[:2].tolist())) == 1
    assert len(set(found.units.tolist())) == 3
    assert found.noise
    assert found.noise.unit == "groups of pictures"


def test_the_rows_of_a_record_are_in_order_and_the_last_of_an_epoch_counts(tmp_path: Path) -> None:
    rows: list[Any] = [{"epoch": 2, "x": 1}, {"epoch": 1, "x": 2}, {"x": 3}, 4, {"epoch": 2, "x": 5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status = TrialStatus(Trial("x", {"a": 1}, tmp_path), "done")
    assert read_record(status).rows == [{"epoch": 1, "x": 2}, {"epoch": 2, "x": 5}]
    assert read_record(status, epochs=False) == Record(status, {"a": 1}, None, None, [])
