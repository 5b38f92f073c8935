"""How far two programs agree, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from petseg.inference.exported.agreement import MAX_DIFFERENCE, Agreement, compare, require_agreement
from petseg.inference.samples import Samples
from tests.petseg.inference.test_export import header_of

Program = Callable[[torch.Tensor], torch.Tensor]
COUNT, SIDE = 6, 4


def numbered(with_classes: bool) -> Samples:
    """Picture i has the level i; the truth is class 1 everywhere."""
    images = torch.arange(COUNT, dtype=torch.uint8).view(-1, 1, 1, 1).expand(COUNT, SIDE, SIDE, 3).contiguous()
    return Samples(images, torch.ones(COUNT, SIDE, SIDE, dtype=torch.uint8) if with_classes else None)


def program_of(sizes: list[int], differing: dict[int, tuple[int, float]] | None = None) -> Program:
    """Gives class 1 with 0.6; in the pictures `differing`, so many pixels have class 0 with more than class 1 by so
    much."""

    def run(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        found = torch.tensor([0.3, 0.6, 0.1]).view(1, 3, 1, 1).repeat(len(images), 1, SIDE, SIDE)
        for row, number in enumerate(images[:, 0, 0, 0].tolist()):
            pixels, by = (differing or {}).get(number, (0, 0.0))
            found[row, 0].view(-1)[:pixels] = 0.6 + by
        return found

    return run


def test_all_pictures_are_compared_in_batches_of_four_and_of_one() -> None:
    sizes: list[int] = []
    found = compare(program_of(sizes), program_of([], {0: (8, 0.1), 5: (1, 0.2)}), numbered(True), header_of())
    assert sizes == [4, 1, 1]
    assert found.pictures == COUNT
    assert found.max_difference == pytest.approx(0.5)  # 0.3 and 0.8
    assert found.other_pixels == pytest.approx(9 / (COUNT * SIDE * SIDE))
    assert found.dice is not None
    assert found.dice[0] == 1.0
    assert found.dice[1] == pytest.approx((4 + 2 * 8 / 24 + 2 * 15 / 31) / 6)
    assert found.lines()[1].startswith("Dice 1.000000 of the model, 0.")


def test_without_classes_there_is_no_dice() -> None:
    found = compare(program_of([]), program_of([]), numbered(False), header_of())
    assert found == Agreement(COUNT, 0.0, 0.0, None)
    assert found.lines() == [
        "compared on 6 pictures: probabilities differ by 0.00e+00 at most, 0.0000% of the pixels have another class"
    ]


@pytest.mark.parametrize(
    ("difference", "agrees"), [(0.0, True), (MAX_DIFFERENCE, True), (1.01e-3, False), (float("nan"), False)]
)
def test_a_difference_of_a_thousandth_is_the_most(difference: float, agrees: bool) -> None:
    found = Agreement(1, difference, 0.0, None)
    if agrees:
        require_agreement(found)
    else:
        with pytest.raises(ValueError, match=r"more than 0\.001: nothing was written"):
            require_agreement(found)
