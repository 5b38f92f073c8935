import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance
from scipy.ndimage import binary_erosion, gaussian_filter

from petseg.metrics.boundary import boundary_iou, boundary_width_px, hd95_px, inner_boundary, outline_points

SHAPES = ((16, 16), (40, 57), (96, 64))


def blobs(seed: int, shape: tuple[int, int], share: float) -> np.ndarray:
    """A drawn-looking mask: smooth noise above a level."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 3)
    return noise > np.quantile(noise, 1 - share)


def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Random and blob-like masks, some at the picture's edge, some a pixel."""
    found = []
    for seed, shape in enumerate(SHAPES * 3):
        random = np.random.default_rng(seed)
        found.append((random.random(shape) > 0.7, random.random(shape) > 0.5))
        found.append((blobs(seed, shape, 0.4), blobs(seed + 100, shape, 0.3)))
        one = np.zeros(shape, bool)
        one[0, shape[1] - 1] = True
        found.append((one, blobs(seed, shape, 0.2)))
    return found


def batched(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None]


def cheng(prediction: np.ndarray, truth: np.ndarray, ratio: float) -> float:
    """The paper's code: as many erosions by a 3 x 3 square, the picture framed by background."""
    times = max(1, round(ratio * math.sqrt(prediction.shape[0] ** 2 + prediction.shape[1] ** 2)))
    edges = [m & ~binary_erosion(m, np.ones((3, 3)), iterations=times, border_value=0) for m in (prediction, truth)]
    return float((edges[0] & edges[1]).sum() / (edges[0] | edges[1]).sum())


@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.1])
def test_boundary_iou_is_that_of_the_paper(ratio: float) -> None:
    for prediction, truth in pairs():
        ours = boundary_iou(batched(prediction), batched(truth), ratio).item()
        assert ours == pytest.approx(cheng(prediction, truth, ratio), abs=1e-12)


@pytest.mark.filterwarnings("ignore:monai.metrics.utils:FutureWarning")  # of an argument that MONAI itself passes
def test_hd95_is_that_of_monai() -> None:
    for prediction, truth in pairs():
        ours, theirs = hd95_px(prediction, truth), monai_hd95(prediction, truth)
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)


def monai_hd95(prediction: np.ndarray, truth: np.ndarray) -> float:
    masks = (batched(mask)[None].float() for mask in (prediction, truth))
    return compute_hausdorff_distance(*masks, include_background=True, percentile=95).item()


def test_by_hand() -> None:
    one, other = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    one[1, 1], other[4, 5] = True, True
    assert hd95_px(one, other) == 5.0
    # 6 x 6 pixels have a ring of 20 within one pixel of the outline; moved by one column the rings share 10
    left, right = np.zeros((1, 10, 10), bool), np.zeros((1, 10, 10), bool)
    left[0, 2:8, 1:7], right[0, 2:8, 2:8] = True, True
    assert inner_boundary(torch.from_numpy(left), 1).sum() == 20
    assert boundary_iou(torch.from_numpy(left), torch.from_numpy(right), 0.02).item() == pytest.approx(10 / 30)
    assert hd95_px(left[0], right[0]) == 1.0
    assert len(outline_points(np.ones((4, 4), bool))) == 12  # the picture's edge is part of an outline


def test_95_of_100_distances_count_and_the_farthest_do_not() -> None:
    truth, prediction = np.zeros((3, 400), bool), np.zeros((3, 400), bool)
    truth[1, :100] = True
    prediction[1, :103] = True
    prediction[1, 300] = True  # one stray pixel among 104
    assert hd95_px(prediction, truth) < 1
    assert hd95_px(truth[:, :50], prediction[:, :50]) == 0.0


def test_nothing_there_is_defined() -> None:
    nothing, square = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    square[10:20, 10:20] = True
    assert hd95_px(nothing, nothing) == 0.0
    assert hd95_px(square, nothing) == hd95_px(nothing, square) == 50.0  # the diagonal
    masks = torch.from_numpy(np.stack([nothing, square]))
    none = torch.zeros_like(masks)
    assert boundary_iou(masks, none).tolist() == [1.0, 0.0]
    assert boundary_iou(none, masks).tolist() == [1.0, 0.0]


@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 0.99))
def test_laws(seed: int, share: float) -> None:
    one, other = blobs(seed, (24, 31), share), blobs(seed + 1, (24, 31), 1 - share)
    assert hd95_px(one, one) == 0.0
    assert hd95_px(one, other) == hd95_px(other, one) <= math.hypot(24, 31)
    assert boundary_iou(batched(one), batched(one)).item() == 1.0
    there, back = (boundary_iou(batched(a), batched(b)).item() for a, b in ((one, other), (other, one)))
    assert there == back
    mirrored = boundary_iou(batched(one[:, ::-1].copy()), batched(other[:, ::-1].copy())).item()
    assert there == mirrored


def test_the_boundary_is_at_least_one_pixel_wide() -> None:
    assert boundary_width_px((16, 16), 0.001) == 1
    assert boundary_width_px((256, 256), 0.02) == 7
    assert boundary_width_px((300, 400), 0.02) == 10


@pytest.mark.parametrize(
    ("size", "ratio", "px"),
    [((30, 40), 0.02, 1), ((30, 40), 0.03, 2), ((30, 40), 0.05, 2), ((30, 40), 0.07, 4), ((1, 1), 0.5, 1)],
)
def test_the_width_of_a_boundary_is_a_share_of_the_diagonal(size: tuple[int, int], ratio: float, px: int) -> None:
    assert boundary_width_px(size, ratio) == px


def test_a_boundary_begins_at_the_edge_of_the_picture_in_both_directions() -> None:
    mask = torch.ones(1, 5, 8, dtype=torch.bool)
    for width_px, rows, columns in ((1, 3, 6), (2, 1, 4), (3, 0, 0)):
        ring = inner_boundary(mask, width_px)
        assert int((mask & ~ring).sum()) == rows * columns
