"""Updates of the weights: which batches make one, what it is of, and which weights are averaged."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.optim.ema import Ema
from petseg.run import parts as parts_module
from petseg.run.graphs import PassInputs
from petseg.run.progress import Progress
from petseg.run.run import Run
from petseg.run.schedule import Update, decay_at, update_at
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import read_metrics
from petseg.training import epoch as epoch_module
from petseg.training import interrupt
from petseg.training import step as step_module
from petseg.training.loop import train
from shards.command import Interrupted
from tests.petseg.normless import build_normless

Tiny = Callable[..., RunConfig]
LATE = st.floats(0.0, 0.99)


def config_of(**changes: Any) -> RunConfig:
    return with_values(RunConfig(), {f"train.{name}": value for name, value in changes.items()})


@given(st.integers(1, 7), LATE, st.integers(1, 9), st.integers(1, 60), st.integers(1, 30))
def test_updates_share_out_the_steps_and_samples_of_each_epoch(
    together: int, late: float, batch: int, samples: int, total: int
) -> None:
    config = config_of(late_batches=together, late_batches_from=late, batch_size=batch)
    progress = Progress(-(-samples // batch), total)
    for epoch in range(1, progress.epochs + 1):
        steps, used = progress.steps_of(epoch), 0
        updates = [update_at(config, progress, epoch, step, samples) for step in range(steps)]
        for one in dict.fromkeys(updates):
            assert updates[one.first : one.end] == [one] * (one.end - one.first)  # each of its steps says the same
            first_late = math.ceil(late * total) - progress.first_step(epoch)
            most = together if one.first >= first_late else 1
            assert one.end - one.first == min(most, steps - one.first)
            used += one.samples
        assert used == min(samples, steps * batch)


@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 50))
def test_progress_is_shared_once_in_each_interval(together: int, every: int, steps: int) -> None:
    updates = [Update(first, min(steps, first + together), 1) for first in range(0, steps, together)]
    shared = [one.end for one in updates if one.ends_interval(every)]
    intervals = [end // every for end in shared]
    assert intervals == sorted(set(intervals))
    assert sum(end % every < together for end in shared) == len(shared)  # at the first update after each interval
    if together == 1:
        assert shared == list(range(every, steps + 1, every))


@given(st.floats(0.01, 0.99), st.integers(1, 4), st.integers(1, 3))
def test_the_stochastic_average_is_the_mean_over_the_last_steps(start: float, together: int, epochs: int) -> None:
    config = config_of(swa_from=start, late_batches=together, late_batches_from=0.0, batch_size=1)
    progress, first = Progress(7, 7 * epochs), math.ceil(start * 7 * epochs)
    average, weights = -1.0, list[float]()  # the weight that each step of the run leads to
    for epoch in range(1, epochs + 1):
        for step in range(7):
            update = update_at(config, progress, epoch, step, 7)
            if step + 1 < update.end:
                continue
            decay = decay_at(config, progress, epoch, update)
            new = float(progress.first_step(epoch) + update.end) ** 2
            average = decay * average + (1 - decay) * new
            weights += [new] * (update.end - update.first)
            assert average == pytest.approx(np.mean(weights[first:] or [new]))


def weights_of(folder: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(folder / "checkpoints")[-1].folder / name)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_two_late_batches_are_one_of_twice_the_size(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation_steps: int
) -> None:
    """Without BatchNorm the gradient is that of all samples, the smaller last batch included: 27 in steps of 8."""
    monkeypatch.setattr(parts_module, "build_model", build_normless)
    shared = {"optim__name": "sgd", "optim__lr": 0.1, "optim__grad_clip": 1.0, "augment__policy": "flip"}
    steps = {"train__accumulation_steps": accumulation_steps}
    train(tiny(**shared, **steps, train__late_batches=2, train__late_batches_from=0.0), tmp_path / "late")
    train(tiny(**shared, train__batch_size=16), tmp_path / "large")
    ours, theirs = (weights_of(tmp_path / name) for name in ("late", "large"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            ours[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name} {text}"
        )
    rows = [read_metrics(tmp_path / name)[-1]["train/loss"] for name in ("late", "large")]
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)
    train(tiny(**shared), tmp_path / "small")
    apart = [(weights_of(tmp_path / "small")[name] - tensor).abs().max().item() for name, tensor in theirs.items()]
    assert max(apart) > 1e-3  # it does matter


def test_the_run_is_saved_between_updates_alone_and_resumes_to_the_same_weights(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(
        train__log_every=1,
        train__late_batches=3,
        train__late_batches_from=0.25,
        train__swa_from=0.5,
        optim__name="adamw",
    )  # four steps an epoch: updates of 1, 1, 2 and of 3, 1 steps
    saved = list[int]()
    save_within = epoch_module.save_within

    def noted(run: Run, partial: Any) -> None:
        saved.append(partial.steps)
        save_within(run, partial)

    monkeypatch.setattr(epoch_module, "save_within", noted)
    calm = train(config, tmp_path / "calm")
    for _ in range(2):  # the second point of the first epoch; after a resume, the first of the second epoch
        asked = iter(range(1, 100))
        with monkeypatch.context() as patch:
            patch.setattr(interrupt, "requested", lambda asked=asked: next(asked) == 2)
            with pytest.raises(Interrupted):
                train(config, tmp_path / "stopped")
    assert train(config, tmp_path / "stopped").metrics == calm.metrics
    assert saved == [2, 3]
    for name in ("model.safetensors", "training.safetensors", "optimizer.safetensors"):
        ours, theirs = (weights_of(tmp_path / folder, name) for folder in ("stopped", "calm"))
        assert [key for key, tensor in theirs.items() if not torch.equal(ours[key], tensor)] == []


def test_averages_of_the_last_steps_are_kept(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[torch.Tensor]()
    update = Ema.update

    def noted(ema: Ema, decay: float) -> None:
        update(ema, decay)
        seen.append(ema._model["segmentation_head.weight"].detach().clone())

    monkeypatch.setattr(Ema, "update", noted)
    train(tiny(train__swa_from=0.5, optim__lr=0.05), tmp_path)  # of eight steps
    kept = [
        weights_of(tmp_path, name)["segmentation_head.weight"] for name in ("model.safetensors", "training.safetensors")
    ]
    torch.testing.assert_close(kept[0], torch.stack(seen[4:]).mean(dim=0))
    assert torch.equal(kept[1], seen[-1])
    assert (kept[0] - kept[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swa_from": 1.0}, r"train\.swa_from = 1\.0: must lie in \[0, 1\)"),
        ({"swa_from": 0.5, "ema_decay": 0.9}, r"train\.swa_from = 0\.5: leave it out, or train\.ema_decay"),
        ({"late_batches": 0}, r"train\.late_batches = 0: must be at least 1"),
        ({"late_batches_from": 1.0}, r"train\.late_batches_from = 1\.0: must lie in \[0, 1\)"),
        ({"late_batches": 2, "budget_min": 1.0}, r"train\.late_batches = 2: leave it out with train\.budget_min"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**changes)


def test_gradients_are_exchanged_in_the_last_pass_of_an_update(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """27 samples in batches of 8, each in two passes, and two batches to an update from the second epoch on."""
    passes: list[bool] = []
    plain = step_module.training_pass

    def noted(run: Run, exchanges: bool, inputs: PassInputs) -> torch.Tensor:
        passes.append(exchanges)
        return plain(run, exchanges, inputs)

    monkeypatch.setattr(step_module, "training_pass", noted)
    train(
        tiny(train__accumulation_steps=2, train__late_batches=2, train__late_batches_from=0.5, train__log_every=1),
        tmp_path,
    )
    assert passes == [False, True] * 4 + [False, False, False, True] * 2
