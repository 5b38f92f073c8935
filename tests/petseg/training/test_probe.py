"""The probe takes a training step as a run does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from petseg.config import RunConfig
from petseg.footprint.hardware import find_gpu
from petseg.training import needs
from petseg.training import probe as probe_module
from petseg.training.probe import Probe, probe_step

Tiny = Callable[..., RunConfig]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_probe_measures_steps_and_evaluation_and_leaves_the_random_state(tiny: Tiny, precision: str) -> None:
    before = torch.get_rng_state()
    probe = probe_step(tiny(train__mixed_precision=precision), 2, torch.device("cpu"), seconds=0)
    assert min(probe.first_s, probe.step_s, probe.eval_s_per_sample) > 0
    assert probe.peak_bytes == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_the_gpu_that_is_here_is_measured_and_another_looked_up(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config, h100, a100 = tiny(), find_gpu("H100"), find_gpu("A100")
    predicted = needs.footprint(config, 8, "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(needs, "probe_step", lambda *_, **__: Probe(9.0, 0.5, 0.1, 0))
    measured = needs.forecast(config, predicted, h100, 2)
    assert (measured.step_s, measured.eval_s_per_sample) == (1.0, 0.1)
    assert measured.known_by == "steps measured on this H100"
    assert "A100" in needs.forecast(config, predicted, a100, 2).known_by

    def out_of_memory(*_: object, **__: object) -> Probe:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(needs, "probe_step", out_of_memory)
    assert "arithmetic" in needs.forecast(config, predicted, h100, 2).known_by


@pytest.mark.parametrize(("compile_", "compiled"), [("no", 0), ("auto", 0), ("always", 1)])
def test_a_probe_compiles_only_what_always_is(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, compile_: str, compiled: int
) -> None:
    shapes: list[set[tuple[int, ...]]] = []
    monkeypatch.setattr(probe_module, "compile_forward", lambda model, of, cache_dir: shapes.append(of))
    probe_step(tiny(train__compile=compile_), 2, torch.device("cpu"), seconds=0)
    assert shapes == [{(2, 3, 64, 64)}] * compiled
