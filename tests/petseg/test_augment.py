import numpy as np
import pytest
import torch

from petseg.augment import Draws, apply, displacement, draw
from petseg.config import AugmentConfig

SIZE = 64


def disks(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures that are white where their trimap is 1 and black where it is 2."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    centres = torch.linspace(20, 44, count).view(-1, 1, 1)
    inside = (x - centres) ** 2 + (y - 30) ** 2 < 15**2
    image = inside.float().unsqueeze(1).expand(-1, 3, -1, -1) * 255
    return image.contiguous(), torch.where(inside, 1, 2).to(torch.uint8)


@pytest.mark.parametrize("policy", ["elastic", "elastic_crop"])
def test_one_draw_moves_picture_and_trimap_together(policy: str) -> None:
    """The lab drew twice: 38 % of its augmented pairs did not fit together."""
    config = AugmentConfig(policy=policy, p=1.0, elastic_alpha=150)
    image, trimap = disks(16)
    draws = draw(config, np.arange(16), seed=0, epoch=1, image_size_px=SIZE)
    moved, labels = apply(draws, image, trimap, config)
    assert all((labels[i] != trimap[i]).any() for i in range(16))
    certain = (moved[:, 0] < 64) | (moved[:, 0] > 191)  # bilinear grey at the edge may fall on either side
    assert torch.equal((moved[:, 0] > 127)[certain], (labels == 1)[certain])
    assert certain.float().mean() > 0.9


def test_a_mask_moved_by_another_draw_does_not_fit() -> None:
    """The test above can fail."""
    config = AugmentConfig(policy="elastic", p=1.0, elastic_alpha=150)
    image, trimap = disks(16)
    moved, _ = apply(draw(config, np.arange(16), 0, 1, SIZE), image, trimap, config)
    _, labels = apply(draw(config, np.arange(16), 1, 1, SIZE), image, trimap, config)
    certain = (moved[:, 0] < 64) | (moved[:, 0] > 191)
    assert not torch.equal((moved[:, 0] > 127)[certain], (labels == 1)[certain])


def test_masks_stay_whole_numbers() -> None:
    """The lab's bicubic interpolation left masks that were no longer 0 or 1."""
    config = AugmentConfig(policy="elastic_crop", p=1.0, elastic_alpha=200)
    trimap = torch.randint(1, 4, (8, SIZE, SIZE), dtype=torch.uint8)
    image = torch.rand(8, 3, SIZE, SIZE) * 255
    moved, labels = apply(draw(config, np.arange(8), 0, 1, SIZE), image, trimap, config)
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) == {1, 2, 3}
    assert moved.min() >= 0
    assert moved.max() <= 255


def test_a_sample_is_augmented_the_same_in_any_batch() -> None:
    config = AugmentConfig(policy="elastic_crop", p=0.5, elastic_alpha=100)
    image, trimap = disks(12)
    together = apply(draw(config, np.arange(12), 5, 2, SIZE), image, trimap, config)
    for i in range(12):
        alone = apply(draw(config, np.array([i]), 5, 2, SIZE), image[i : i + 1], trimap[i : i + 1], config)
        assert torch.equal(alone[1][0], together[1][i])
        torch.testing.assert_close(alone[0][0], together[0][i])


def test_draws_differ_by_epoch_seed_and_sample_and_hit_the_share_p() -> None:
    config = AugmentConfig(policy="elastic", p=0.2)
    rows = [set(draw(config, np.arange(2000), s, e, 32).rows.tolist()) for s, e in ((0, 1), (0, 2), (1, 1))]
    assert rows[0] != rows[1]
    assert rows[0] != rows[2]
    for changed in rows:
        assert pytest.approx(len(changed), abs=4 * (2000 * 0.2 * 0.8) ** 0.5) == 0.2 * 2000


def test_policy_none_and_p_zero_change_nothing() -> None:
    image, trimap = disks(4)
    for config in (AugmentConfig(policy="none", p=1.0), AugmentConfig(policy="elastic_crop", p=0.0)):
        draws = draw(config, np.arange(4), 0, 1, SIZE)
        assert draws is None
        assert apply(draws, image, trimap, config)[0] is image


def test_no_displacement_and_no_crop_is_the_identity() -> None:
    image, trimap = disks(3)
    draws = Draws(torch.arange(3), torch.eye(2, 3).expand(3, 2, 3), torch.zeros(3, 2, 20, 20))
    moved, labels = apply(draws, image, trimap, AugmentConfig(policy="elastic", elastic_sigma_px=5))
    torch.testing.assert_close(moved, image, atol=1e-2, rtol=0)
    assert torch.equal(labels, trimap)


@pytest.mark.parametrize(("alpha", "sigma"), [(30.0, 5.0), (20.0, 3.0)])
def test_displacement_is_as_strong_as_torchvisions(alpha: float, sigma: float) -> None:
    """Same rms and same smoothness (mean square difference of neighbours), in pixels."""
    from torchvision.transforms import v2

    size = 128
    theirs = v2.ElasticTransform(alpha=alpha, sigma=sigma)
    torch.manual_seed(0)
    fields = [theirs.make_params([torch.zeros(3, size, size)])["displacement"] for _ in range(24)]
    expected = torch.cat(fields) * (size / 2)  # from grid_sample's units to pixels
    config = AugmentConfig(policy="elastic", p=1.0, elastic_alpha=alpha, elastic_sigma_px=sigma)
    draws = draw(config, np.arange(24), 0, 1, size)
    ours = displacement(draws.noise, config, size)
    middle = slice(24, -24)  # torchvision's blur reflects at the border, which doubles the noise there
    inner, outer = ours[:, middle, middle], expected[:, middle, middle]
    assert inner.std().item() == pytest.approx(outer.std().item(), rel=0.08)
    steepness = [f.diff(dim=1).square().mean().sqrt().item() for f in (inner, outer)]
    assert steepness[0] == pytest.approx(steepness[1], rel=0.08)
