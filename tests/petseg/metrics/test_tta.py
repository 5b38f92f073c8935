import pytest
import torch
import torch.nn.functional as F

from petseg.metrics.tta import SCALES, predict_logits, scaled_px


def pointwise(image: torch.Tensor) -> torch.Tensor:
    """Each pixel's logits depend on that pixel alone: equivariant under flips."""
    return torch.stack([image.sum(dim=1), image[:, 0] * image[:, 1]], dim=1)


def from_the_left(image: torch.Tensor) -> torch.Tensor:
    """Sums from the left edge: a mirrored picture gives something else."""
    return torch.stack([torch.zeros_like(image[:, 0]), image[:, 0].cumsum(dim=-1)], dim=1)


def random_images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_without_views_the_models_own_logits_come_back() -> None:
    image = random_images()
    assert torch.equal(predict_logits(pointwise, image, "none"), pointwise(image))


def test_flips_change_nothing_for_an_equivariant_function() -> None:
    image = random_images()
    ours = predict_logits(pointwise, image, "flips").softmax(dim=1)
    torch.testing.assert_close(ours, pointwise(image).softmax(dim=1), atol=1e-6, rtol=0)


def test_flips_average_the_probabilities_of_both() -> None:
    image = random_images()
    there = from_the_left(image).softmax(dim=1)
    back = from_the_left(image.flip(-1)).softmax(dim=1).flip(-1)
    assert not torch.allclose(there, back)
    ours = predict_logits(from_the_left, image, "flips").softmax(dim=1)
    torch.testing.assert_close(ours, (there + back) / 2, atol=1e-6, rtol=0)


def test_scales_are_seen_at_sizes_that_networks_take() -> None:
    seen = []

    def model(image: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(image.shape[-2:]))
        return pointwise(image)

    image = torch.full((1, 3, 128, 128), 0.3)
    ours = predict_logits(model, image, "scales")
    assert seen == [(96, 96), (128, 128), (160, 160)]
    torch.testing.assert_close(ours.softmax(dim=1), pointwise(image).softmax(dim=1), atol=1e-6, rtol=0)
    seen.clear()
    predict_logits(model, image, "flips_scales")
    assert len(seen) == 6
    assert [scaled_px(64, scale) for scale in SCALES] == [64, 64, 96]


def test_each_side_of_a_picture_that_is_no_square_is_scaled() -> None:
    seen = []

    def model(image: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(image.shape[-2:]))
        return pointwise(image)

    image = torch.full((1, 3, 64, 128), 0.3)
    assert predict_logits(model, image, "scales").shape == (1, 2, 64, 128)
    assert seen == [(64, 96), (64, 128), (96, 160)]


def test_a_smaller_view_is_antialiased() -> None:
    views, image = [], random_images().repeat(1, 1, 2, 2)

    def model(view: torch.Tensor) -> torch.Tensor:
        views.append(view)
        return pointwise(view)

    predict_logits(model, image, "scales")
    smaller = min(views, key=lambda view: view.shape[-1])
    assert smaller.shape[-1] < image.shape[-1]
    assert torch.equal(smaller, F.interpolate(image, smaller.shape[-2:], mode="bilinear", antialias=True))


def test_certain_probabilities_stay_finite() -> None:
    def sure(image: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.full_like(image[:, 0], -1e4), torch.full_like(image[:, 0], 1e4)], dim=1)

    assert predict_logits(sure, random_images(), "flips").isfinite().all()


@pytest.mark.parametrize(
    ("side", "scale", "px"),
    [(64, 1.0, 64), (50, 1.0, 50), (64, 0.75, 64), (128, 0.75, 96), (129, 0.75, 128), (64, 1.25, 96)],
)
def test_sides_are_rounded_up_to_what_networks_take(side: int, scale: float, px: int) -> None:
    assert scaled_px(side, scale) == px


def test_scaled_views_come_back_at_the_pictures_size_and_as_probabilities() -> None:
    def model(image: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros_like(image[:, 0]), image[:, 0] * 0 + image.shape[-1] / 64], dim=1)

    found = predict_logits(model, torch.zeros(1, 3, 64, 128), "scales").exp()
    shares = [torch.tensor([0.0, width / 64]).softmax(dim=0)[1].item() for width in (96, 128, 160)]
    assert found.shape == (1, 2, 64, 128)
    assert found[0, 1].unique().tolist() == pytest.approx([sum(shares) / 3])


def test_probabilities_of_scaled_views_are_bilinear_between_their_pixels() -> None:
    image = torch.randn(1, 3, 64, 128, generator=torch.Generator().manual_seed(3))
    views = [image]
    for size, smaller in (((64, 96), True), ((96, 160), False)):
        views.append(F.interpolate(image, size, mode="bilinear", antialias=smaller))
    back = [F.interpolate(pointwise(view).softmax(dim=1), (64, 128), mode="bilinear") for view in views]
    found = predict_logits(pointwise, image, "scales").exp()
    torch.testing.assert_close(found, torch.stack(back).mean(dim=0), atol=1e-6, rtol=1e-5)


def test_a_picture_that_no_network_takes_is_left_at_its_size_where_nothing_scales_it() -> None:
    """It is cut into windows: see petseg.metrics.windows."""
    seen = []

    def model(image: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(image.shape[-2:]))
        return pointwise(image)

    predict_logits(model, torch.zeros(1, 3, 40, 50), "flips_scales")
    assert seen == [(32, 64), (40, 50), (64, 64)] * 2
