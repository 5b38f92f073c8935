"""The time of a step by a GPU's data sheet, beside steps that an H100 took."""

from __future__ import annotations

from dataclasses import replace

import pytest

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.footprint import forecast
from petseg.footprint.forecast import forecast_on_cpu, forecast_on_gpu
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


def test_a_cpus_passes_are_scaled_to_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over 4 samples take 0.2 s, or 0.1 s without a neighbour; a step has 3 micro-batches of 12."""
    passes = iter([(0.2, 0.04), (0.1, 0.02), (0.3, 0.06)])
    monkeypatch.setattr(forecast, "PROBE_PASSES", 3)
    monkeypatch.setattr(forecast, "PROBE_SAMPLES", 4)
    monkeypatch.setattr(forecast, "time_pass", lambda *_: next(passes))
    config = with_values(RunConfig(), {"model.width": 4, "data.image_size_px": 32})
    memory = replace(footprint(config, 4, "cpu"), micro_batch=12)
    predicted = forecast_on_cpu(config, memory, 3)
    assert predicted.step_s == pytest.approx(3 * 0.1 * 12 / 4)
    assert predicted.eval_s_per_sample == pytest.approx(0.02 / 4)
