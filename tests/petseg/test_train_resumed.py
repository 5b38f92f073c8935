"""What happens after a kill or an interrupt: the same command goes on, and ends with the same numbers."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from petseg.config import RunConfig
from petseg.run import parts as parts_module
from petseg.run.parts import Parts
from petseg.run_folder.layout import read_metrics
from petseg.training import interrupt
from petseg.training import loop as train_module
from petseg.training.loop import train
from shards.command import INTERRUPTED, Interrupted, run_command
from tests.petseg.normless import build_normless
from tests.petseg.stopped_runs import final_weights, require_same_bits, same, stop_and_resume, stop_when, without_clock

Tiny = Callable[..., RunConfig]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_killed_run_ends_with_the_same_numbers(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    config = tiny(
        train__epochs=3, optim__schedule="cosine", augment__policy="elastic_crop", augment__p=0.5,
        train__mixed_precision=precision,
    )  # fmt: skip
    calm = train(config, tmp_path / "calm")

    validate, calls = train_module.validate, []

    def killed_in_epoch_two(parts: Parts) -> dict[str, float]:
        calls.append(parts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(parts)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "validate", killed_in_epoch_two)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "killed")
    assert len(read_metrics(tmp_path / "killed")) == 1
    resumed = train(config, tmp_path / "killed")
    assert same(final_weights(tmp_path / "calm"), final_weights(tmp_path / "killed"))
    assert without_clock(tmp_path / "calm") == without_clock(tmp_path / "killed")
    assert resumed.metrics == calm.metrics


def test_a_model_without_batchnorm_resumes_within_an_epoch(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no statistics to be saved."""
    monkeypatch.setattr(parts_module, "build_model", build_normless)
    config = tiny(train__epochs=1, train__log_every=1)
    train(config, tmp_path / "calm")
    stop_and_resume(config, tmp_path / "stopped", 2)
    assert same(final_weights(tmp_path / "calm"), final_weights(tmp_path / "stopped"))


def test_the_same_command_again_is_a_no_op(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tiny(), tmp_path)
    monkeypatch.setattr(train_module, "build_parts", lambda *_: pytest.fail("it trained again"))
    assert train(tiny(), tmp_path) == first


def test_a_fresh_run_never_continues_from_an_old_file(tiny: Tiny, tmp_path: Path) -> None:
    """In the lab a run silently went on from whatever weights lay in its folder."""
    train(tiny(train__epochs=1), tmp_path)
    with pytest.raises(ValueError, match=r"holds another run \(train.seed 0 -> 1\): choose another folder"):
        train(tiny(train__epochs=1, train__seed=1), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has checkpoints but no config\.json"):
        train(tiny(train__epochs=1), tmp_path)


@pytest.mark.parametrize(("number", "requeue"), [(signal.SIGUSR2, True), (signal.SIGTERM, False)])
def test_only_the_signal_of_the_time_limit_asks_for_a_requeue(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, requeue: bool
) -> None:
    monkeypatch.setattr(interrupt, "_received", [number])
    with pytest.raises(Interrupted) as stopped:
        train(tiny(train__log_every=1), tmp_path)
    assert stopped.value.requeue is requeue


def test_an_interrupt_loses_no_step_and_the_numbers_stay_the_same(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(train__log_every=1, optim__schedule="cosine", augment__policy="elastic_crop", augment__p=0.5)
    calm = train(config, tmp_path / "calm")
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_when(patch, 3, 4)  # in the third of the four steps, and at once when it goes on
        with pytest.raises(Interrupted, match="saved up to epoch 0 and 3 steps: run the same command to go on"):
            train(config, folder)
    with monkeypatch.context() as patch:
        stop_when(patch, 1)  # in the last step of the epoch: it is ended first
        with pytest.raises(Interrupted, match="saved up to epoch 1: run the same command"):
            train(config, folder)
    with monkeypatch.context() as patch:
        stop_when(patch, 2)
        assert run_command(lambda _: train(config, folder) and 0, []) == INTERRUPTED
    assert "interrupted:" in capsys.readouterr().err
    assert train(config, folder).metrics == calm.metrics
    assert same(final_weights(tmp_path / "calm"), final_weights(folder))
    assert without_clock(tmp_path / "calm") == without_clock(folder)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_every_optimizer_resumes_with_the_same_bits(tiny: Tiny, tmp_path: Path, name: str) -> None:
    config = tiny(
        model__arch="resnet34_unet", optim__name=name, optim__encoder_lr_factor=0.1, optim__grad_clip=1.0,
        train__log_every=1, train__loss="lovasz", train__border_weight=2.0,
    )  # fmt: skip
    train(config, tmp_path / "calm")
    stop_and_resume(config, tmp_path / "stopped", 3)
    require_same_bits(tmp_path / "calm", tmp_path / "stopped")
