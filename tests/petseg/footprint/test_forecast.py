"""The time of a step: by a GPU's data sheet, beside steps that an H100 took, and by passes on this CPU."""

from __future__ import annotations

import pytest

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.footprint.forecast import Forecast, forecast_on_cpu, forecast_on_gpu
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


def test_a_step_on_this_cpu_is_as_many_of_the_quickest_pass_as_its_samples_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two samples are timed; a step of three micro-batches of 8 takes twelve times as long."""
    passes = iter([(0.4, 0.2), (0.3, 0.1), (0.5, 0.3)])
    monkeypatch.setattr("petseg.footprint.forecast.time_pass", lambda config, model, samples, teacher: next(passes))
    config = with_values(RunConfig(), {"data.image_size_px": 32, "model.width": 4, "train.batch_size": 24})
    found = forecast_on_cpu(config, footprint(config, 8, "cpu"), 3)
    assert found == Forecast(pytest.approx(12 * 0.3), pytest.approx(0.1 / 2), found.known_by)
    assert found.known_by.startswith("a pass of 2 samples on this CPU, ")
