"""What is said of the groups' differences."""

from collections.abc import Callable

import pytest

from jobs.reporting.verdict import Difference
from jobs.reporting.verdict_words import sentence
from jobs.trial import Sweep
from tests.jobs.reporting.written_sweep import DICE, Lab, board_of, finish, place, save_pictures


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


def test_a_group_that_lacks_the_pictures_of_one_seed_is_not_compared(finished: Sweep) -> None:
    """The other seeds alone would claim more than they know."""
    (trial,) = (t for t in finished.trials if place(t) == ("unet", "none") and t.axes["train.seed"] == 1)
    (trial.folder / "per_image.npz").unlink()
    board = board_of(finished)
    assert board.val
    assert [group.place for group in board.val.left_out] == [("unet", "none")]
    assert [group.place for group in board.val.groups] == list(DICE)[1:]


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


@pytest.mark.parametrize(
    ("low", "high", "finding"),
    [(-0.03, 0.001, "open"), (-0.001, 0.03, "open"), (-0.002, 0.001, "same"), (-0.003, 0.001, "open")],
)
def test_the_same_is_said_only_where_both_ends_are_within_the_noise(low: float, high: float, finding: str) -> None:
    """A group that is below the best has a negative difference, whose far end is the lower one."""
    difference = Difference("fcn", "unet", (low + high) / 2, low, high, 0.3)
    assert difference.finding == difference.turned.finding == finding
