"""What changes a sample, by whom and how far: laws of the draws, the field, and what they leave alone."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from petseg.augment.batch import apply, with_copies
from petseg.augment.draws import Change, _blur_noise, draw
from petseg.augment.warp import affine_grid, displacement
from petseg.config import AugmentConfig

SIZE = 64
POLICIES = [policy for policy in get_args(get_type_hints(AugmentConfig)["policy"]) if policy != "none"]
MOVING = ("elastic", "elastic_crop", "flip", "rotate", "scale", "strong")
STILL = [policy for policy in POLICIES if policy not in MOVING]
VALUES = (1, 2, 3)


def disks(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures that are white where their trimap is 1 and black where it is 2."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    centres = torch.linspace(20, 42, count).view(-1, 1, 1)
    inside = (x - centres) ** 2 + (y - 30) ** 2 < 15**2
    image = inside.float().unsqueeze(1).expand(-1, 3, -1, -1) * 255
    return image.contiguous(), torch.where(inside, 1, 2).to(torch.uint8)


def noise_pairs(count: int, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels as the loader gives them: pictures in channels_last memory."""
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=random)
    trimap = torch.randint(1, 4, (count, size, size), dtype=torch.uint8, generator=random)
    return image.permute(0, 3, 1, 2).float(), trimap


def geometry_only(policy: str) -> AugmentConfig:
    """Displaced so far that a mask left behind would show, and nothing done to colours."""
    return AugmentConfig(
        policy=policy, p=1.0, elastic_alpha=150, color_strength=0, blur_max_sigma_px=0, noise_max_std=0,
        cutout_max_side=0.001,
    )  # fmt: skip


@pytest.mark.parametrize("policy", MOVING)
def test_one_draw_moves_picture_and_trimap_together(policy: str) -> None:
    """The lab drew twice: 38 % of its augmented pairs did not fit together."""
    config = geometry_only(policy)
    image, trimap = disks(16)
    moved, labels = apply(draw(config, np.arange(16), seed=0, epoch=1, image_size_px=SIZE), image, trimap, config)
    assert sum((labels[i] != trimap[i]).any().item() for i in range(16)) >= 10  # some draws of strong move nothing
    certain = (moved[:, 0] < 64) | (moved[:, 0] > 191)  # bilinear grey at the edge may fall on either side
    agreement = ((moved[:, 0] > 127) == (labels == 1))[certain].float().mean()
    assert agreement > 0.9999  # strong hides one pixel of some
    assert certain.float().mean() > 0.9


def test_a_mask_moved_by_another_draw_does_not_fit() -> None:
    """The test above can fail."""
    config = geometry_only("elastic")
    image, trimap = disks(16)
    moved, _ = apply(draw(config, np.arange(16), 0, 1, SIZE), image, trimap, config)
    _, labels = apply(draw(config, np.arange(16), 1, 1, SIZE), image, trimap, config)
    certain = (moved[:, 0] < 64) | (moved[:, 0] > 191)
    assert ((moved[:, 0] > 127) == (labels == 1))[certain].float().mean() < 0.99


@pytest.mark.parametrize("policy", POLICIES)
def test_masks_stay_whole_numbers_and_pictures_within_0_to_255(policy: str) -> None:
    """The lab's bicubic interpolation left masks that were no longer 0 or 1."""
    config = AugmentConfig(policy=policy, p=1.0, elastic_alpha=200, color_strength=1, noise_max_std=200)
    image, trimap = noise_pairs(12)
    moved, labels = apply(draw(config, np.arange(12), 0, 1, SIZE), image, trimap, config)
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) == set(VALUES)
    assert moved.dtype == torch.float32
    assert moved.min() >= 0
    assert moved.max() <= 255
    assert sum(not torch.equal(a, b) for a, b in zip(moved, image, strict=True)) >= 8
    assert torch.equal(labels, trimap) == (policy in STILL)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=20)
@given(order=st.permutations(range(10)), cut=st.integers(0, 10), epoch=st.integers(1, 1000))
def test_a_sample_is_augmented_the_same_in_any_batch(policy: str, order: list[int], cut: int, epoch: int) -> None:
    """In another order, in two parts: the same bits. So the world size and a resume change no pixel."""
    config = AugmentConfig(policy=policy, p=0.6, elastic_alpha=100)
    image, trimap = noise_pairs(10, size=32)
    image[:, :, 8:24] = 255  # interpolated white was once above 255 in some batches
    together = apply(draw(config, np.arange(10), 5, epoch, 32), image, trimap, config)
    for part in (order[:cut], order[cut:]):
        if part:
            rows = torch.tensor(part)
            apart = apply(draw(config, np.array(part), 5, epoch, 32), image[rows], trimap[rows], config)
            assert torch.equal(apart[0], together[0][rows])
            assert torch.equal(apart[1], together[1][rows])


@pytest.mark.parametrize("policy", POLICIES)
def test_the_arguments_are_left_alone_and_so_are_samples_that_are_not_drawn(policy: str) -> None:
    config = AugmentConfig(policy=policy, p=0.4, strong_p=0.4)
    image, trimap = noise_pairs(20)
    before = image.clone(), trimap.clone()
    changes = draw(config, np.arange(20), 0, 1, SIZE)
    moved, labels = apply(changes, image, trimap, config)
    assert torch.equal(image, before[0])
    assert torch.equal(trimap, before[1])
    rows = {change.row for change in changes}
    assert 2 < len(rows) < 15
    for row in set(range(20)) - rows:
        assert torch.equal(moved[row], image[row])
        assert torch.equal(labels[row], trimap[row])


def test_draws_differ_by_epoch_seed_and_sample_and_hit_the_share_p() -> None:
    for config in (AugmentConfig(policy="elastic", p=0.2), AugmentConfig(policy="strong", p=0.9, strong_p=0.2)):
        keys = ((0, 1), (0, 2), (1, 1))
        rows = [{change.row for change in draw(config, np.arange(2000), s, e, 32)} for s, e in keys]
        assert rows[0] != rows[1]
        assert rows[0] != rows[2]
        for changed in rows:
            assert pytest.approx(len(changed), abs=4 * (2000 * 0.2 * 0.8) ** 0.5) == 0.2 * 2000


def test_policy_none_and_p_zero_change_nothing() -> None:
    image, trimap = disks(4)
    weight = torch.ones(4)
    for config in (AugmentConfig(policy="none", p=1.0), AugmentConfig(policy="elastic_crop", p=0.0)):
        changes = draw(config, np.arange(4), 0, 1, SIZE)
        assert changes == []
        assert apply(changes, image, trimap, config)[0] is image
        assert with_copies(changes, image, trimap, weight, config)[2] is weight


def test_a_change_that_changes_nothing_is_the_identity_bit_for_bit() -> None:
    image, trimap = noise_pairs(3)
    for still in (Change(0), Change(0, affine=np.eye(2, 3)), Change(0, bumps=np.zeros((2, 19, 19)))):
        moved, labels = apply([still], image, trimap, AugmentConfig())
        assert torch.equal(moved, image)
        assert torch.equal(labels, trimap)


def test_a_flip_is_an_exact_permutation_that_undoes_itself() -> None:
    config = AugmentConfig(policy="flip", p=0.5)
    image, trimap = noise_pairs(16, size=96)  # whose pixel centres are no binary fractions
    changes = draw(config, np.arange(16), 0, 1, 96)
    rows = torch.tensor([change.row for change in changes])
    moved, labels = apply(changes, image, trimap, config)
    assert torch.equal(moved[rows], image[rows].flip(3))
    assert torch.equal(labels[rows], trimap[rows].flip(2))
    again = apply(changes, moved, labels, config)
    assert torch.equal(again[0], image)
    assert torch.equal(again[1], trimap)


@pytest.mark.parametrize("policy", POLICIES)
def test_added_copies_leave_the_originals_and_the_sum_of_weights_as_they_are(policy: str) -> None:
    config = AugmentConfig(policy=policy, mode="add", p=0.5, strong_p=0.5)
    image, trimap = noise_pairs(12)
    weight = torch.ones(12)
    weight[3] = 0  # could not be read
    changes = draw(config, np.arange(12), 0, 1, SIZE)
    rows = [change.row for change in changes]
    assert 2 < len(rows) < 10
    pictures, labels, weights = with_copies(changes, image, trimap, weight, config)
    replaced = apply(changes, image, trimap, config)
    assert torch.equal(pictures[:12], image)
    assert torch.equal(labels[:12], trimap)
    assert torch.equal(pictures[12:], replaced[0][rows])
    assert torch.equal(labels[12:], replaced[1][rows])
    shares = weights[:12].clone()
    shares[rows] += weights[12:]
    assert torch.equal(shares, weight)
    assert torch.equal(weights[rows], weights[12:])


@pytest.mark.parametrize("policy", POLICIES)
def test_the_host_never_asks_for_a_value_of_the_device(policy: str) -> None:
    """Tensors on the meta device have none: reading one, as `.item()` or a boolean mask does, raises."""
    config = AugmentConfig(policy=policy, p=0.5)
    image, trimap = (tensor.to("meta") for tensor in noise_pairs(16))
    changes = draw(config, np.arange(16), 0, 1, SIZE)
    moved, labels = apply(changes, image, trimap, config)
    assert (moved.shape, labels.shape) == (image.shape, trimap.shape)
    assert len(with_copies(changes, image, trimap, torch.ones(16, device="meta"), config)[2]) == 16 + len(changes)


def test_the_affine_grid_is_torchs() -> None:
    affine = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = F.affine_grid(affine, [5, 1, 48, 48], align_corners=False).permute(0, 3, 1, 2)
    torch.testing.assert_close(affine_grid(affine, 48), expected)


def test_rotation_and_scale_stay_within_their_limits_and_in_the_picture() -> None:
    config = AugmentConfig(policy="scale", p=1.0, scale_min=0.7, scale_max=1.4)
    affines = [change.affine for change in draw(config, np.arange(500), 0, 1, SIZE)]
    zoom = np.array([1 / affine[0, 0] for affine in affines if affine is not None])
    shift = np.array([np.abs(affine[:, 2]).max() for affine in affines if affine is not None])
    assert 0.7 <= zoom.min() < 0.72
    assert 1.36 < zoom.max() <= 1.4
    assert abs(np.median(zoom) - (0.7 * 1.4) ** 0.5) < 0.05  # as often smaller as larger
    assert (shift <= np.abs(1 - 1 / zoom) + 1e-12).all()
    config = AugmentConfig(policy="rotate", p=1.0, rotate_max_deg=20)
    turns = [change.affine for change in draw(config, np.arange(500), 0, 1, SIZE)]
    degrees = np.degrees([np.arctan2(turn[1, 0], turn[0, 0]) for turn in turns if turn is not None])
    assert -20 <= degrees.min() < -19
    assert 19 < degrees.max() <= 20
    assert all(np.allclose(turn[:, :2] @ turn[:, :2].T, np.eye(2)) for turn in turns if turn is not None)


def test_a_rotation_by_90_degrees_is_torchs() -> None:
    image, trimap = noise_pairs(1)
    quarter = Change(0, affine=np.array([[0.0, -1, 0], [1, 0, 0]]))
    moved, labels = apply([quarter], image, trimap, AugmentConfig())
    torch.testing.assert_close(moved, image.rot90(1, (2, 3)), atol=1e-2, rtol=0)
    assert torch.equal(labels, trimap.rot90(1, (1, 2)))


@pytest.mark.parametrize(("alpha", "sigma"), [(30.0, 5.0), (20.0, 3.0)])
def test_displacement_is_as_strong_and_as_smooth_as_torchvisions(alpha: float, sigma: float) -> None:
    """Same rms in pixels and same autocorrelation, that of a Gaussian of sqrt(2) sigma: exp(-d^2 / (4 sigma^2))."""
    from torchvision.transforms import v2

    size, count = 160, 32
    theirs = v2.ElasticTransform(alpha=alpha, sigma=sigma)
    torch.manual_seed(0)
    fields = [theirs.make_params([torch.zeros(3, size, size)])["displacement"] for _ in range(count)]
    expected = torch.cat(fields).permute(0, 3, 1, 2) * (size / 2)  # from grid_sample's units to pixels
    config = AugmentConfig(policy="elastic", p=1.0, elastic_alpha=alpha, elastic_sigma_px=sigma)
    bumps = [change.bumps for change in draw(config, np.arange(count), 0, 1, size)]
    ours = displacement(torch.from_numpy(np.stack([b for b in bumps if b is not None])).float(), config, size)
    middle = slice(24, -24)  # torchvision's blur reflects at the edge, which doubles the noise there
    inner, outer = ours[:, :, middle, middle], expected[:, :, middle, middle]
    assert inner.std().item() == pytest.approx(outer.std().item(), rel=0.04)
    for distance in (1, 3, 5, 8, 12):
        for dim in (2, 3):
            wanted = np.exp(-(distance**2) / (4 * sigma**2))
            assert autocorrelation(inner, distance, dim) == pytest.approx(wanted, abs=0.05)
            assert autocorrelation(inner, distance, dim) == pytest.approx(
                autocorrelation(outer, distance, dim), abs=0.05
            )
    assert ours.std(dim=(0, 1)).min() > 0.6 * ours.std()  # as strong at the edge as inside


def autocorrelation(field: torch.Tensor, distance: int, dim: int) -> float:
    length = field.shape[dim] - distance
    pairs = field.narrow(dim, 0, length) * field.narrow(dim, distance, length)
    return (pairs.mean() / field.square().mean()).item()


def test_blur_and_noise_are_drawn_over_their_whole_ranges() -> None:
    config, rng = AugmentConfig(blur_max_sigma_px=2.0, noise_max_std=8.0), np.random.default_rng(0)
    drawn = [_blur_noise(rng, config, 64) for _ in range(2000)]
    sigmas = [fields["blur_sigma_px"] for fields in drawn if "blur_sigma_px" in fields]
    stds = [fields["noise_std"] for fields in drawn if "noise_std" in fields]
    assert len(sigmas) == pytest.approx(1000, abs=100)
    assert len(sigmas) + len(stds) == 2000
    assert (min(sigmas), max(sigmas)) == (pytest.approx(1.0, abs=0.02), pytest.approx(2.0, abs=0.02))
    assert (min(stds), max(stds)) == (pytest.approx(0.0, abs=0.1), pytest.approx(8.0, abs=0.1))
