"""The largest part of a mask."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from petseg.metrics.components import drop_small, keep_largest, largest_components


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[pixel == "#" for pixel in row] for row in rows])


def test_by_hand() -> None:
    """Corners connect; of equally large parts the first stays; an empty mask stays empty."""
    given_masks = torch.stack([
        mask("##..", "..#.", "...."),
        mask("#..#", "#..#", "...#"),
        mask("#..#", "#..#", "...."),
        mask("....", "....", "...."),
    ])  # fmt: skip
    expected = torch.stack([
        mask("##..", "..#.", "...."),
        mask("...#", "...#", "...#"),
        mask("#...", "#...", "...."),
        mask("....", "....", "...."),
    ])  # fmt: skip
    assert torch.equal(largest_components(given_masks), expected)


@given(st.integers(0, 2**32 - 1))
def test_what_is_kept_is_one_part_that_no_other_exceeds(seed: int) -> None:
    masks = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(seed)) < 0.4
    kept = largest_components(masks)
    assert not (kept & ~masks).any()
    for one, whole in zip(kept.numpy(), masks.numpy(), strict=True):
        labels, count = ndimage.label(whole, structure=[[1] * 3] * 3)
        sizes = [int((labels == label).sum()) for label in range(1, count + 1)]
        assert int(one.sum()) == max(sizes, default=0)
        assert ndimage.label(one, structure=[[1] * 3] * 3)[1] == min(count, 1)


def test_small_parts_of_each_class_become_background() -> None:
    classes = torch.zeros(1, 6, 10, dtype=torch.uint8)
    classes[0, 0:2, 0:2] = 1  # 4 pixels
    classes[0, 4, 0:3] = 1  # 3 pixels
    classes[0, 0:3, 6:9] = 2  # 9 pixels, around one of class 1
    classes[0, 1, 7] = 1
    kept = drop_small(classes, 3, min_area_px=4)
    expected = classes.clone()
    expected[0, 4, 0:3] = 0
    expected[0, 1, 7] = 0
    assert torch.equal(kept, expected)
    assert torch.equal(drop_small(classes, 3, min_area_px=1), classes)


def test_the_largest_part_of_each_class_is_kept_in_each_picture() -> None:
    classes = torch.zeros(2, 4, 8, dtype=torch.uint8)
    classes[0, 0, :3], classes[0, 2, :2], classes[0, :, 5] = 1, 1, 2
    classes[0, 3, 7], classes[1, 1, 1] = 2, 3
    kept = keep_largest(classes, 4)
    expected = classes.clone()
    expected[0, 2, :2] = expected[0, 3, 7] = 0
    assert torch.equal(kept, expected)
    assert kept.dtype == torch.uint8
    assert torch.equal(keep_largest(classes, 3), expected * (expected < 3))  # of the classes 0 to 2


def test_parts_of_as_many_pixels_as_asked_for_stay() -> None:
    classes = torch.zeros(2, 3, 9, dtype=torch.uint8)
    classes[0, 0, :3], classes[0, 0, 5:9], classes[1, 2, 0], classes[1, 1, 1] = 1, 1, 2, 2  # corners connect
    before = classes.clone()
    for area, gone in ((1, []), (2, []), (3, [(1, 2)]), (4, [(1, 2), (0, 1)]), (5, [(1, 2), (0, 1)])):
        kept = drop_small(classes, 3, area)
        pixels = {(i, one): int((kept[i] == one).sum()) for i, one in ((0, 1), (1, 2))}
        assert pixels == {(0, 1): {True: 0 if area == 5 else 4, False: 7}[(0, 1) in gone], (1, 2): 0 if gone else 2}
    assert torch.equal(classes, before)
