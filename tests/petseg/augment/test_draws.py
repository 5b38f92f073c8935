"""The numbers that are drawn: from which ranges, as often as the config says, and for which sample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from petseg.augment import batch as batch_module
from petseg.augment.appearance import NOISE_OFFSETS, color_matrix
from petseg.augment.batch import augment_batch, with_copies
from petseg.augment.draws import HUE_DEG, POLICIES, STRONG, Change, draw, generator
from petseg.augment.warp import bumps_per_side
from petseg.config import AugmentConfig, RunConfig
from petseg.config.values import with_values
from petseg.data.plan import Ids

SIZE = (48, 80)


def drawn(policy: str, number: int = 800, **settings: Any) -> list[Change]:
    config = AugmentConfig(policy=policy, p=1.0, **settings)  # type: ignore[arg-type]
    return draw(config, np.arange(number), 3, 1, SIZE)


def affines(changes: list[Change]) -> np.ndarray:
    return np.array([change.affine for change in changes if change.affine is not None])


def test_numbers_hang_on_seed_epoch_and_sample_alone() -> None:
    places = [(seed, epoch, sample) for seed in (0, 1) for epoch in (0, 1) for sample in (0, 1)]
    first = {place: generator(*place).random() for place in places}
    assert len(set(first.values())) == 8
    assert generator(2, 3, 4).random() == generator(2, 3, 4).random()
    key = np.array([(2 << 32) | 3, 4], dtype=np.uint64)
    assert generator(2, 3, 4).random() == np.random.Generator(np.random.Philox(key=key)).random()


def test_changes_name_rows_of_the_batch_and_are_drawn_by_sample() -> None:
    config = AugmentConfig(policy="rotate", p=0.5)
    whole = {int(sample): change for sample, change in zip(range(40), drawn_rows(config, range(40)), strict=True)}
    ids = [31, 4, 17, 17]
    assert [None if one is None else one.tolist() for one in drawn_rows(config, ids)] == [
        None if whole[sample] is None else whole[sample].tolist() for sample in ids
    ]


def drawn_rows(config: AugmentConfig, ids: Any) -> list[Any]:
    """The affine map of each row of a batch, None where it is not changed."""
    by_row: list[Any] = [None] * len(ids)
    for change in draw(config, np.array(ids), 3, 1, SIZE):
        by_row[change.row] = change.affine
    return by_row


def test_a_crop_is_a_part_of_the_picture_of_the_same_shape_in_half_of_the_draws() -> None:
    changes = drawn("elastic_crop", crop_min_area=0.36)
    maps = affines(changes)
    assert len(maps) == pytest.approx(400, abs=60)
    assert all((change.affine is None) != (change.bumps is None) for change in changes)
    scale = maps[:, 0, 0]
    assert np.array_equal(scale, maps[:, 1, 1])
    assert not maps[:, 0, 1].any()
    assert not maps[:, 1, 0].any()
    assert (scale.min(), scale.max()) == (pytest.approx(0.6, abs=0.01), pytest.approx(1, abs=0.01))
    assert (scale**2).mean() == pytest.approx((0.36 + 1) / 2, abs=0.03)  # areas are drawn, not sides
    share = maps[:, :, 2] / (1 - scale[:, None])  # -1 at the left and upper edge, 1 at the other ones
    assert np.abs(share).max() <= 1
    assert (share.min(), share.max()) == (pytest.approx(-1, abs=0.02), pytest.approx(1, abs=0.02))
    assert abs(np.corrcoef(share.T)[0, 1]) < 0.15


def test_a_scaled_picture_keeps_its_shape_about_a_point_anywhere_in_it() -> None:
    maps = affines(drawn("scale", scale_min=0.5, scale_max=2.0))
    shrunk = maps[:, 0, 0]
    assert np.array_equal(shrunk, maps[:, 1, 1])
    assert not maps[:, 0, 1].any()
    assert not maps[:, 1, 0].any()
    assert (shrunk.min(), shrunk.max()) == (pytest.approx(0.5, abs=0.01), pytest.approx(2, abs=0.03))
    assert np.log(shrunk).mean() == pytest.approx(0, abs=0.05)
    point = maps[:, :, 2] / (1 - shrunk[:, None])  # which stays where it is
    assert (point.min(), point.max()) == (pytest.approx(-1, abs=0.02), pytest.approx(1, abs=0.02))
    assert abs(np.corrcoef(point.T)[0, 1]) < 0.15


def test_bumps_are_standard_normal_on_a_grid_of_the_pictures_shape() -> None:
    changes = drawn("elastic", 60, elastic_sigma_px=5.0)
    bumps = np.array([change.bumps for change in changes])
    assert bumps.shape == (60, 2, bumps_per_side(48, 5.0), bumps_per_side(80, 5.0)) == (60, 2, 16, 22)
    assert (bumps.mean(), bumps.std()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))
    assert not np.array_equal(bumps[:, 0], bumps[:, 1])


def test_rotations_are_as_far_to_either_side() -> None:
    maps = affines(drawn("rotate", rotate_max_deg=30.0))
    degrees = np.degrees(np.arctan2(maps[:, 1, 0] * SIZE[0] / SIZE[1], maps[:, 0, 0]))
    assert (degrees.min(), degrees.max()) == (pytest.approx(-30, abs=0.5), pytest.approx(30, abs=0.5))
    assert degrees.mean() == pytest.approx(0, abs=2)
    assert not maps[:, :, 2].any()


def test_a_strong_map_is_a_rotation_of_a_scaled_picture() -> None:
    rng, again = np.random.default_rng(1), np.random.default_rng(1)
    config = AugmentConfig(rotate_max_deg=40.0)
    (rotate_scale,) = (change for change, _ in STRONG if change.__name__ == "_rotate_scale")
    found = rotate_scale(rng, config, SIZE)["affine"]
    rotation, scaling = (POLICIES[name](again, config, SIZE)["affine"] for name in ("rotate", "scale"))
    whole = [np.vstack([part, [0, 0, 1]]) for part in (rotation, scaling)]
    np.testing.assert_allclose(found, (whole[0] @ whole[1])[:2])


def test_colours_are_drawn_within_their_strength() -> None:
    """A matrix of four numbers gives them back: brightness times contrast, saturation and the turn of the hue."""
    config, rng, again = AugmentConfig(color_strength=0.4), np.random.default_rng(2), np.random.default_rng(2)
    for _ in range(50):
        found = POLICIES["color"](rng, config, SIZE)["color"]
        factors = again.uniform(0.6, 1.4, size=3)
        np.testing.assert_allclose(found, color_matrix(*factors, again.uniform(-18.0, 18.0)))
    assert HUE_DEG * 0.4 == 18.0


def test_windows_of_noise_lie_in_the_whole_bank() -> None:
    changes = drawn("blur_noise", 1500, noise_max_std=5.0)
    corners = np.array([change.noise_at for change in changes if change.noise_std])
    assert (corners.min(), corners.max()) == (0, NOISE_OFFSETS - 1)
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.1
    assert all(bool(change.noise_std) != bool(change.blur_sigma_px) for change in changes)


@pytest.mark.parametrize(
    ("longest", "high", "wide"), [(0.5, (12, 24), (20, 40)), (0.01, (1, 1), (1, 1)), (1.0, (24, 48), (40, 80))]
)
def test_a_hole_has_half_to_all_of_the_longest_sides_and_lies_anywhere_inside(
    longest: float, high: tuple[int, int], wide: tuple[int, int]
) -> None:
    holes = np.array([change.hole for change in drawn("cutout", cutout_max_side=longest)])
    heights, widths = (holes[:, 2:] - holes[:, :2]).T
    assert (heights.min(), heights.max()) == high
    assert (widths.min(), widths.max()) == wide
    assert (holes[:, 0].min(), holes[:, 2].max()) == (0, 48)
    assert (holes[:, 1].min(), holes[:, 3].max()) == (0, 80)


def test_only_strong_has_a_share_of_its_own() -> None:
    for policy, share in (("flip", 0.25), ("strong", 0.75)):
        config = AugmentConfig(policy=policy, p=0.25, strong_p=0.75)  # type: ignore[arg-type]
        assert len(draw(config, np.arange(400), 0, 1, SIZE)) == pytest.approx(400 * share, abs=50)


def test_a_share_of_one_is_each_sample() -> None:
    assert [change.row for change in drawn("flip", 200)] == list(range(200))


@pytest.mark.parametrize("mode", ["replace", "add"])
def test_a_batch_is_changed_by_the_runs_own_settings(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def noted(config: AugmentConfig, ids: Ids, *rest: Any) -> list[Change]:
        asked.append((config.policy, ids.tolist(), *rest))
        return [Change(1, flip=True)]

    monkeypatch.setattr(batch_module, "draw", noted)
    values = {"augment.policy": "rotate", "augment.mode": mode, "train.seed": 11, "data.image_size_px": "32x64"}
    config = with_values(RunConfig(), values)
    image, labels = torch.rand(2, 3, 32, 64), torch.randint(0, 9, (2, 32, 64), dtype=torch.uint8)
    weight = torch.tensor([1.0, 0.5])
    pictures, moved, weights = augment_batch(config, np.array([40, 7]), 6, image, labels, weight)
    assert asked == [("rotate", [40, 7], 11, 6, "32x64")]
    assert torch.equal(pictures[0], image[0])
    assert torch.equal(pictures[-1], image[1].flip(-1))
    assert torch.equal(moved[-1], labels[1].flip(-1))
    assert weights.tolist() == ([1.0, 0.5] if mode == "replace" else [1.0, 0.25, 0.25])
    assert weight.tolist() == [1.0, 0.5]


def test_copies_stand_behind_the_batch_in_the_order_of_their_originals() -> None:
    image = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    labels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1).expand(4, 2, 2)
    changes = [Change(1), Change(3)]
    pictures, copies, weights = with_copies(changes, image, labels, torch.ones(4), AugmentConfig())
    assert pictures[:, 0, 0, 0].tolist() == copies[:, 0, 0].tolist() == [0, 1, 2, 3, 1, 3]
    assert weights.tolist() == [1, 0.5, 1, 0.5, 0.5, 0.5]


def test_a_turn_of_the_hue_by_a_third_moves_red_to_another_primary() -> None:
    matrix = color_matrix(1, 1, 1, 120.0)[:, :3]
    turned = matrix @ np.array([1.0, 0.0, 0.0])
    assert turned.argmax() == 2  # the plane of YIQ is turned from I to Q
    np.testing.assert_allclose(matrix @ matrix @ matrix, np.eye(3), atol=1e-9)
    grey = color_matrix(0.5, 0.25, 1.0, 0.0)
    np.testing.assert_allclose(grey @ np.ones(6), [0.5] * 3, atol=1e-9)  # a grey picture is as bright all over
    assert math.isclose(grey[0, 0], 0.125)
