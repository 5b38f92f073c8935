"""The time of a step by a GPU's data sheet, beside steps that an H100 took."""

from __future__ import annotations

import pytest

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.footprint.forecast import forecast_on_gpu
from petseg.footprint.hardware import find_gpu
from petseg.footprint.memory import footprint


@pytest.mark.parametrize(
    ("arch", "batch", "measured_s"),
    [
        ("resnet34_unet", 32, 0.0226),
        pytest.param("resnet34_unet", 128, 0.0732, marks=pytest.mark.slow),
        ("unet", 32, 0.0415),
    ],
)
def test_a_step_is_predicted_within_a_quarter_of_what_an_h100_took(arch: str, batch: int, measured_s: float) -> None:
    """GPU time of eager steps in bf16 at 256 px, with padding by slices and upsampling by products: see LOG.md."""
    h100 = find_gpu("H100")
    assert h100 is not None
    config = with_values(RunConfig(), {"model.arch": arch, "train.batch_size": batch, "train.mixed_precision": "bf16"})
    predicted = forecast_on_gpu(footprint(config, batch, "cuda"), h100, 1)
    assert predicted.step_s == pytest.approx(measured_s, rel=0.25)
