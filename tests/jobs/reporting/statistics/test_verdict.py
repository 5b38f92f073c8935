"""What is said of the groups' differences."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from jobs.design.shard_sets import ShardSet
from jobs.reporting.statistics.verdict import Difference
from jobs.reporting.statistics.wording import numbers, p_number, sentence, verdict_of
from jobs.runs.trial import Sweep, Trial
from tests.jobs.reporting.written_sweep import DICE, Lab, board_of, finish, place, save_pictures


def test_groups_without_the_same_pictures_are_not_compared(finished: Sweep, page: Callable[[Sweep], str]) -> None:
    first, second = (t for t in finished.trials if place(t) == ("unet", "none") and t.axes["train.seed"] < 2)
    save_pictures(first, {"val": 0.9}, num_pictures=39)
    (second.folder / "per_image.npz").write_bytes(b"PK\x03\x04 cut off")
    board = board_of(finished)
    assert board.val
    assert [group.key for group in board.val.left_out] == [("unet", "none")]
    assert [group.key for group in board.val.groups] == list(DICE)[1:]
    assert board.main == []  # a design with a hole has no averages to compare
    text = page(finished)
    assert "Not compared, because the pictures of their per_image.npz are missing or others: unet · none." in text


def test_a_group_that_lacks_the_pictures_of_one_seed_is_not_compared(finished: Sweep) -> None:
    """The other seeds alone would claim more than they know."""
    (trial,) = (t for t in finished.trials if place(t) == ("unet", "none") and t.axes["train.seed"] == 1)
    (trial.folder / "per_image.npz").unlink()
    board = board_of(finished)
    assert board.val
    assert [group.key for group in board.val.left_out] == [("unet", "none")]
    assert [group.key for group in board.val.groups] == list(DICE)[1:]


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


def leads(lab: Lab, axes: dict[str, list[Any]], dice: Callable[[Trial], float | None]) -> str:
    """The verdict's first sentence, its numbers as `#`."""
    lab.axes = axes
    sweep = lab.plan()
    for trial in sweep.trials:
        if (value := dice(trial)) is not None:
            finish(trial, value)
    return re.sub(r"\d\.\d{4}( \[.*?\])?", "#", verdict_of(board_of(sweep)).lead)


TWO, SEEDS = {"model.arch": ["unet", "resnet34_unet"]}, {"train.seed": [0, 1, 2]}
MEANS = {"unet": 0.9, "resnet34_unet": 0.8}


def by_seed(trial: Trial) -> float:
    """0.9 or 0.8, a little more or less with each seed."""
    return MEANS[trial.axes["model.arch"]] + 0.001 * (trial.axes["train.seed"] - 1)


def test_the_lead_of_two_cells_names_the_other(lab: Lab) -> None:
    said = leads(lab, TWO | SEEDS, by_seed)
    assert said == (
        "unet has the highest mean val Dice, # (3 seeds, 40 pictures), and is shown to be better than resnet34_unet."
    )


def test_one_cell_alone_is_not_the_highest(lab: Lab, page: Callable[[Sweep], str]) -> None:
    said = leads(lab, SEEDS, lambda trial: 0.9 + 0.001 * trial.axes["train.seed"])
    assert said == (
        "all trials has a mean val Dice of # (3 seeds, 40 pictures). The sweep has no other cell to compare it with."
    )
    assert ">highest<" not in page(lab.plan())


def test_the_only_cell_with_a_result_is_compared_with_none(lab: Lab) -> None:
    said = leads(lab, TWO | SEEDS, lambda trial: by_seed(trial) if trial.axes["model.arch"] == "unet" else None)
    assert said == (
        "unet has a mean val Dice of # (3 seeds, 40 pictures). It is the only cell with a result so far, so it is "
        "compared with none."
    )


def test_one_seed_each_shows_no_difference(lab: Lab) -> None:
    said = leads(lab, TWO | {"train.seed": [0]}, lambda trial: MEANS[trial.axes["model.arch"]])
    assert said == (
        "unet has the highest mean val Dice, # (1 seed, 40 pictures), but with one seed each it is not known whether "
        "it is better: another seed may turn it round."
    )


def test_a_cell_of_one_seed_is_named(lab: Lab) -> None:
    def only_one_of_resnet(trial: Trial) -> float | None:
        return None if trial.axes["model.arch"] == "resnet34_unet" and trial.axes["train.seed"] else by_seed(trial)

    said = leads(lab, TWO | SEEDS, only_one_of_resnet)
    assert said == (
        "unet has the highest mean val Dice so far, # (1-3 seeds, 40 pictures), but resnet34_unet has one seed, so it "
        "is not known whether it is better."
    )


def test_messages_for_no_finished_trial_and_for_a_single_picture(lab: Lab) -> None:
    assert leads(lab, TWO, lambda _: None) == "Nothing can be compared yet: no trial has finished."
    sweep = lab.plan()
    for trial in sweep.trials:
        finish(trial, 0.9)
        save_pictures(trial, {"val": 0.9}, num_pictures=1)
    assert verdict_of(board_of(sweep)).lead == (
        "Nothing can be compared: no finished cell has the Dice of two val pictures or more, in each of its trials."
    )


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (["synthetic-pets"], " Measured on drawn pictures: it says nothing about real ones."),
        (["synthetic-pets", "Oxford-IIIT Pet"], " Measured in part (1 of 2 shard sets) on drawn pictures: it says"),
        (["Oxford-IIIT Pet"], ""),
        ([""], ""),
    ],
)
def test_the_verdict_mentions_drawn_pictures(finished: Sweep, sources: list[str], said: str) -> None:
    sets = tuple(ShardSet(str(i), "shards", source) for i, source in enumerate(sources))
    lead = verdict_of(board_of(replace(finished, shard_sets=sets))).lead
    assert said in lead
    assert ("drawn" in lead) == bool(said)


def test_identical_runs_cause_a_warning(lab: Lab) -> None:
    lab.axes = TWO | SEEDS
    sweep = lab.plan()
    for trial in sweep.trials:
        alike = trial.axes["model.arch"] == "unet"
        finish(trial, 0.9 if alike else by_seed(trial))
        save_pictures(replace(trial, id="0" * 10) if alike else trial, {"val": 0.9 if alike else by_seed(trial)})
    doubts = [point for point in verdict_of(board_of(sweep)).points if "as if they had one seed" in point]
    assert [point.split(" have ")[0] for point in doubts] == ["The runs of unet"]


def test_the_verdict_says_what_such_a_sweep_shows(finished: Sweep) -> None:
    (said,) = (point for point in verdict_of(board_of(finished)).points if "is shown in 80 % of sweeps" in point)
    size = re.fullmatch(
        r"With 3 seeds and 40 val pictures a difference of about (\S+) Dice between two of the 4 cells is shown in "
        r"80 % of sweeps \(by the spreads of these trials: standard deviation of runs 0\.\d{4}, of pictures in a cell "
        r"0\.\d{3}\)\. 0\.0030 would .*; 0\.00\d\d, the gap between the first two, would .*\.",
        said,
    )
    assert size
    assert 0.005 < float(size[1]) < 0.05


def test_numbers_near_0_and_5_per_cent_have_enough_digits() -> None:
    assert numbers(Difference("a", "b", 0.004, 0.00002, 0.008, 0.0499)) == "0.0040 [0.00002, 0.0080], p = 0.04990"
    assert [p_number(p) for p in (0.04996, 0.05, 0.0494, 0.0004, 1.0)] == [
        "0.04996",
        "0.050",
        "0.049",
        "<0.001",
        "1.000",
    ]


@pytest.mark.parametrize(
    ("low", "high", "finding"),
    [(-0.03, 0.001, "open"), (-0.001, 0.03, "open"), (-0.002, 0.001, "same"), (-0.003, 0.001, "open")],
)
def test_same_requires_both_ends_within_the_noise(low: float, high: float, finding: str) -> None:
    """A group that is below the best has a negative difference, whose far end is the lower one."""
    difference = Difference("fcn", "unet", (low + high) / 2, low, high, 0.3)
    assert difference.finding == difference.turned.finding == finding


def test_cells_that_tie_to_the_last_digit_share_the_highest_mean(lab: Lab) -> None:
    lab.axes = {"model.arch": ["unet", "resnet34_unet"], "augment.policy": ["none", "elastic"]} | SEEDS
    sweep = lab.plan()
    for trial in sweep.trials:
        dice = by_seed(trial)
        finish(trial, dice)
        save_pictures(replace(trial, id="0" * 10), {"val": dice})
    lead = re.sub(r"\d\.\d{4}( \[.*?\])?", "#", verdict_of(board_of(sweep)).lead)
    assert lead == (
        "unet · none has the highest mean val Dice, # (3 seeds, 40 pictures); so has unet · elastic. It is shown to be "
        "better than 2 of 3 others."
    )


def test_the_highest_compared_cell_is_not_called_the_highest_of_all(finished: Sweep) -> None:
    for trial in finished.trials:
        if place(trial) == ("unet", "none"):
            save_pictures(trial, {"val": 0.9}, num_pictures=39)
    lead = verdict_of(board_of(finished)).lead
    assert lead.startswith("Of the cells measured on the same pictures unet · elastic has the highest mean val Dice, ")
