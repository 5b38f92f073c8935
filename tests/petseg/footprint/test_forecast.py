"""The time of a step by a GPU's data sheet, beside steps that an H100 took."""

from __future__ import annotations

from dataclasses import replace

import pytest

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.footprint import forecast
from petseg.footprint.forecast import forecast_on_cpu, forecast_on_gpu
from petseg.footprint.hardware import find_gpu
from petseg.footprint.memory import Footprint, footprint
from petseg.footprint.operations import Op

NOTHING = Footprint(
    micro_batch=4, num_classes=2, parameters=0, encoder_parameters=0, weights_bytes=0, teacher_bytes=0,
    gradient_bytes=0, optimizer_bytes=0, ema_bytes=0, activation_bytes=0, peak_bytes=0, eval_peak_bytes=0,
    pass_ops=(), update_ops=(), eval_ops=(),
)  # fmt: skip


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


def test_a_step_is_its_passes_and_one_update() -> None:
    """Operations that move memory alone: a pass takes 3 ms, the update 1 ms, the evaluation of 4 samples 2 ms."""
    h100 = find_gpu("H100")
    assert h100 is not None
    bytes_per_ms = h100.bandwidth_tb_s * 1e9 * forecast.BANDWIDTH_SHARE
    pass_ops, update_ops, eval_ops = ((Op(0, ms * bytes_per_ms, half=False),) for ms in (3, 1, 2))
    memory = replace(NOTHING, pass_ops=pass_ops, update_ops=update_ops, eval_ops=eval_ops)
    for micro_batches in (1, 5):
        predicted = forecast_on_gpu(memory, h100, micro_batches)
        assert predicted.step_s == pytest.approx(micro_batches * 3e-3 + 1e-3)
        assert predicted.eval_s_per_sample == pytest.approx(2e-3 / 4)


def test_arithmetic_of_half_precision_is_counted_at_its_own_rate() -> None:
    h100 = find_gpu("H100")
    assert h100 is not None
    for half, tflops in ((True, h100.half_tflops), (False, h100.full_tflops)):
        work = (Op(1e12 * tflops * forecast.MATH_SHARE, 0, half=half),)
        predicted = forecast_on_gpu(replace(NOTHING, pass_ops=work), h100, 1)
        assert predicted.step_s == pytest.approx(1.0)
