from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from petseg.data.inputs import IGNORE_INDEX
from petseg.metrics.calibration import GRID, TEMPERATURES, BinaryCalibration, MulticlassCalibration


def calibration_of(logits: torch.Tensor, target: torch.Tensor) -> BinaryCalibration:
    calibration = BinaryCalibration(torch.device("cpu"))
    calibration.add(logits, target)
    return calibration


def drawn(seed: int, spread: float, temperature: float, size: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, 2, size, size) logits and targets that fall as often as the logits say once divided by the temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(1, 2, size, size, generator=generator)
    chance = ((logits[:, 1] - logits[:, 0]) / temperature).sigmoid()
    return logits, (torch.rand(chance.shape, generator=generator) < chance).long()


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_ece_is_that_of_torchmetrics(spread: float, temperature: float) -> None:
    """Logits are moderate: torchmetrics sums in float32, where a confidence near 1 leaves the last bin."""
    logits, target = drawn(0, spread, temperature, size=64)
    ours = calibration_of(logits, target).reliability().ece
    theirs = multiclass_calibration_error(logits.softmax(dim=1), target, num_classes=2, n_bins=15, norm="l1")
    assert ours == pytest.approx(theirs.item(), abs=1e-6)


def test_ece_of_large_logits_is_that_of_a_plain_loop() -> None:
    logits, target = drawn(5, 6.0, 2.0, size=64)
    confidence, predicted = (x.flatten().numpy() for x in logits.double().softmax(dim=1).max(dim=1))
    right = predicted == target.flatten().numpy()
    ece = 0.0
    for low, high in pairwise(np.linspace(0, 1, 16)):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_of(logits, target).reliability().ece == pytest.approx(ece, abs=1e-12)


def test_ece_by_hand() -> None:
    """Four pixels called with 0.9, three of them rightly, and two with 0.6, one rightly."""
    nine, six = float(np.log(9)), float(np.log(1.5))
    difference = torch.tensor([nine, nine, -nine, nine, six, -six])
    logits = torch.stack([torch.zeros(6), difference])[None, :, None, :]
    target = torch.tensor([[[1, 1, 0, 0, 1, 1]]])
    reliability = calibration_of(logits, target).reliability()
    assert reliability.ece == pytest.approx((abs(3 - 3.6) + abs(1 - 1.2)) / 6, abs=1e-6)
    low, high = reliability.rows()  # 0.6 = 9 / 15 may fall to either side of its edge
    assert (low["pixels"], high["pixels"]) == (2, 4)
    assert high["confidence"] == pytest.approx(0.9, abs=1e-6)
    assert high["accuracy"] == 0.75
    assert (high["from"], high["to"]) == (pytest.approx(13 / 15), pytest.approx(14 / 15))


def test_ignored_pixels_do_not_count_and_parts_add_up() -> None:
    logits, target = drawn(1, 2.0, 1.5, size=64)
    logits, target = (torch.cat([x, x.flip(-1)]) for x in (logits, target))
    target[:, 10:20] = IGNORE_INDEX
    whole = calibration_of(logits, target)
    parts = BinaryCalibration(torch.device("cpu"))
    for i in range(2):
        parts.add(logits[i : i + 1], target[i : i + 1])
    assert whole.reliability().pixels.sum() == 2 * 54 * 64
    np.testing.assert_allclose(parts.reliability().confidence, whole.reliability().confidence, rtol=1e-12)
    assert parts.fit_temperature() == pytest.approx(whole.fit_temperature(), rel=1e-9)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found_again(temperature: float) -> None:
    calibration = calibration_of(*drawn(2, 3.0, temperature, size=512))
    found = calibration.fit_temperature()
    assert found == pytest.approx(temperature, rel=0.02)
    assert calibration.scaled(found).ece < 0.003
    if temperature != 1.0:
        assert calibration.reliability().ece > 0.02


def test_the_histogram_gives_the_curve_of_all_pixels() -> None:
    """Against LBFGS and cross-entropy over the pixels themselves."""
    logits, target = drawn(3, 2.0, 2.0)
    calibration = calibration_of(logits, target)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=50, tolerance_grad=1e-10, tolerance_change=1e-12)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits.double() / log_t.exp(), target)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = calibration.fit_temperature()
    assert found == pytest.approx(log_t.exp().item(), rel=1e-4)
    divided = calibration_of(logits.double() / found, target).reliability()
    assert calibration.scaled(found).ece == pytest.approx(divided.ece, abs=2e-4)
    assert calibration.scaled(1.0).ece == pytest.approx(calibration.reliability().ece, abs=2e-4)


def test_a_temperature_beyond_the_range_is_its_end() -> None:
    logits, target = drawn(4, 2.0, 1.0, size=16)
    right = (logits[:, 1] > logits[:, 0]).long()
    assert calibration_of(logits, right).fit_temperature() == pytest.approx(TEMPERATURES[0])
    assert calibration_of(logits, 1 - right).fit_temperature() == pytest.approx(TEMPERATURES[1])
    nothing = calibration_of(logits, torch.full_like(target, IGNORE_INDEX))
    assert nothing.fit_temperature() == 1.0
    assert nothing.reliability().ece == 0.0
    assert nothing.reliability().rows() == []


def test_logits_beyond_the_histogram_and_of_low_precision_are_taken() -> None:
    logits = torch.tensor([[-500.0, 500.0], [500.0, -500.0]]).T.reshape(1, 2, 1, 2).bfloat16()
    sure = calibration_of(logits, torch.tensor([[[1, 1]]]))
    assert sure.reliability().ece == pytest.approx(0.5)
    assert sure.fit_temperature() == pytest.approx(TEMPERATURES[1])


def drawn_classes(temperature: float, num_classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, K, 384, 384) logits, and classes that fall as often as the logits say once divided by the temperature."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(2, num_classes, 384, 384, generator=generator)
    chance = (logits / temperature).softmax(dim=1).permute(0, 2, 3, 1).reshape(-1, num_classes)
    return logits, torch.multinomial(chance, 1, generator=generator).view(2, 384, 384)


def test_ece_of_several_classes_is_that_of_torchmetrics_without_ignored_pixels() -> None:
    logits, target = drawn_classes(1.5)
    target[:, :20] = IGNORE_INDEX
    calibration = MulticlassCalibration(torch.device("cpu"))
    calibration.add(logits, target)
    theirs = multiclass_calibration_error(
        logits.softmax(dim=1), target, num_classes=5, n_bins=15, norm="l1", ignore_index=IGNORE_INDEX
    )
    assert calibration.reliability().ece == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_the_temperature_of_several_classes_is_found_again(temperature: float) -> None:
    logits, target = drawn_classes(temperature)
    calibration = MulticlassCalibration(torch.device("cpu"))
    assert calibration.fit_temperature() == 1.0
    calibration.add(logits, target)
    fitted = calibration.fit_temperature()
    assert fitted in GRID
    assert fitted == pytest.approx(temperature, rel=0.11)
    # 4,608 pixels are sampled: their curve is off by chance
    assert calibration.scaled(fitted).ece < 0.05
    if temperature != 1.0:
        assert calibration.scaled(fitted).ece < calibration.scaled(1.0).ece
