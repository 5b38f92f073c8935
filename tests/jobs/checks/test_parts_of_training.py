"""The checks of training, labels and augmentation, part by part and without any training."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from jobs.checks import labels, training, transforms
from jobs.checks.setup import Command, Finding, Setup
from jobs.checks.training import FIT_MODELS, SURE_RATE, Fit, check_batchnorm, check_overfit, check_resume
from jobs.design.expansion import expand
from jobs.design.spec import Spec
from petseg.config import AugmentConfig, RunConfig
from petseg.data.store import LocalStore
from petseg.training import interrupt

LEARNT, NOT_LEARNT = Fit(5, (1.0, 0.4), (0.1, 0.8)), Fit(100, (1.0, 0.9), (0.1, 0.1))


@pytest.mark.parametrize(
    ("losses", "dices", "learnt"),
    [
        ((1.0, 0.49), (0.1, 0.2), True),
        ((1.0, 0.5), (0.1, 0.2), False),
        ((1.0, 0.1), (0.2, 0.2), False),  # the loss of something else
        ((-1.0, -0.4), (0.1, 0.2), False),
        ((1.0, math.nan), (0.1, 0.2), False),
    ],
)
def test_a_batch_is_learnt_if_its_loss_halves_and_its_masks_are_better(
    losses: tuple[float, float], dices: tuple[float, float], learnt: bool
) -> None:
    assert Fit(5, losses, dices).learnt is learnt
    assert str(LEARNT) == "loss 1.000 -> 0.400, Dice 0.10 -> 0.80 in 5 steps"


def setup_of(folder: Path, axes: dict[str, list[Any]], **fixed: Any) -> Setup:
    setup = Setup(Command(), folder, ("--set", "train.seed=3"))
    setup.cells = expand(Spec("lab", axes, {name.replace("__", "."): value for name, value in fixed.items()}))
    return setup


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Which rates learn a batch; what was tried."""
    noted: dict[str, Any] = {"learns": lambda rate: True, "tried": []}

    def fit(setup: Setup, config: RunConfig, rate: float) -> Fit:
        noted["tried"].append((config.model.width, pytest.approx(rate)))
        return LEARNT if noted["learns"](rate) else NOT_LEARNT

    monkeypatch.setattr(training, "fit_one_batch", fit)
    return noted


def test_the_first_models_are_tried_at_a_rate_that_fits_their_width(fitted: dict[str, Any], tmp_path: Path) -> None:
    """Seeds, sizes and rates make no other model."""
    axes = {"model.width": [8, 16, 32, 64, 128], "train.seed": [0, 1], "optim.lr": [0.25, 0.5]}
    finding = check_overfit(setup_of(tmp_path, axes))
    assert FIT_MODELS == 3
    assert fitted["tried"] == [(8, 0.25), (16, 0.25), (32, 0.5)]
    three = "; ".join([f"unet, ce: {LEARNT}"] * 3)
    assert (finding.status, finding.detail) == ("ok", f"{three}; 2 more models not tried")


def test_a_model_that_learns_at_a_sure_rate_only_has_a_doubtful_one(fitted: dict[str, Any], tmp_path: Path) -> None:
    setup = setup_of(tmp_path, {"train.loss": ["ce", "ce_dice"]}, optim__lr=0.25, model__width=16)
    fitted["learns"] = lambda rate: rate == SURE_RATE
    finding = check_overfit(setup)
    both = "; ".join(f"unet, {loss}: {NOT_LEARNT}; with lr 0.003, {LEARNT}" for loss in ("ce", "ce_dice"))
    assert (finding.status, finding.detail, finding.advice) == ("warn", both, "is optim.lr = 0.25 right?")
    fitted["learns"] = lambda rate: False
    finding = check_overfit(setup)
    said = f"unet, ce does not learn one batch: {NOT_LEARNT}; with lr 0.003, {NOT_LEARNT}"
    assert (finding.status, finding.detail) == ("FAIL", said)


@pytest.mark.parametrize(
    ("counts", "status", "detail"),
    [
        ((6, 12), "ok", "6 micro-batches an epoch counted, those of validation not"),
        ((6, 13), "FAIL", "after 2 epochs of 6 micro-batches it has counted 13: evaluation moves it"),
        ((5, 12), "FAIL", "after 1 epochs of 6 micro-batches it has counted 5: training leaves it in evaluation mode"),
        (None, "ok", "unet has no BatchNorm that counts"),
    ],
)
def test_batchnorm_counts_each_micro_batch_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int] | None, status: str, detail: str
) -> None:
    """20 samples in batches of 8, 8 and 4, each in two parts."""
    setup = setup_of(tmp_path, {}, train__accumulation_steps=2)
    setup.straight, setup.small_set = (tmp_path / "straight", None), tmp_path / "small"  # type: ignore[assignment]
    manifest = SimpleNamespace(splits={"train": SimpleNamespace(num_samples=20)})
    monkeypatch.setattr(training, "load_manifest", lambda folder: manifest)
    checkpoints = []
    for epoch, count in enumerate(counts or (1,), start=1):
        folder = tmp_path / f"step-{epoch}"
        folder.mkdir()
        name = "bn.num_batches_tracked" if counts else "conv.weight"
        save_file({name: torch.tensor(count), "w": torch.zeros(1)}, folder / "model.safetensors")
        checkpoints.append(SimpleNamespace(folder=folder, state={"epoch": epoch}))
    monkeypatch.setattr(training, "list_checkpoints", lambda folder: checkpoints)
    finding = check_batchnorm(setup)
    assert (finding.status, finding.detail) == (status, detail)


def test_with_a_gpu_a_process_that_sees_none_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"status": "ok", "what": "resume", "detail": "same", "advice": "", "seconds": 2.5}
    asked: list[tuple[list[str], str]] = []
    answers = iter([json.dumps([told]), "no JSON"])

    def run(command: list[str], env: dict[str, str], **how: Any) -> SimpleNamespace:
        asked.append((command, env["CUDA_VISIBLE_DEVICES"]))
        return SimpleNamespace(stdout=next(answers), stderr="x" * 400 + "\n", returncode=1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(subprocess, "run", run)
    setup = setup_of(tmp_path, {})
    assert check_resume(setup) == Finding(**told)  # type: ignore[arg-type]
    flags = ["--set", "train.seed=3", "--only", "resume", "--skip", "", "--json"]
    assert asked == [([sys.executable, "-m", "jobs.doctor", *flags], "")]
    with pytest.raises(RuntimeError, match=rf"^exit code 1: {'x' * 300}$"):
        check_resume(setup)


def test_a_run_is_interrupted_at_its_second_question_and_is_left_alone_afterwards() -> None:
    before = interrupt.requested
    with training.interrupted_soon():
        assert [interrupt.requested() for _ in range(3)] == [False, True, True]
    assert interrupt.requested is before


@pytest.mark.parametrize(
    ("policy", "values", "result", "status", "detail"),
    [
        ("none", {}, None, "ok", "picture and mask agree after none"),
        ("elastic", {}, ("", 0.9987), "ok", "picture and mask agree after elastic 99.9 %"),
        ("elastic", {}, ("bad", 0.5), "FAIL", "elastic: bad"),
        ("elastic", {"augment.p": 0.0}, ("", 1.0), "warn", "elastic with augment.p = 0 changes nothing"),
        ("elastic", {"augment.strong_p": 0.0}, ("", 1.0), "ok", "picture and mask agree after elastic 100.0 %"),
        ("strong", {"augment.strong_p": 0.0}, ("", 1.0), "warn", "strong with augment.strong_p = 0 changes nothing"),
        ("strong", {"augment.p": 0.0}, ("", 1.0), "ok", "picture and mask agree after strong 100.0 %"),
    ],
)
def test_a_policy_that_changes_nothing_by_its_share_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    values: dict[str, float],
    result: Any,
    status: str,
    detail: str,
) -> None:
    monkeypatch.setattr(transforms, "try_policy", lambda config: result)
    setup = Setup(Command(), tmp_path)
    setup.cells = expand(Spec("lab", {"train.seed": [0, 1]}, {"augment.policy": policy} | values))
    finding = transforms.check_transforms(setup)
    assert (finding.status, finding.detail) == (status, detail)


def test_every_pair_is_moved_far_enough_for_a_mask_that_stays_behind_to_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours and holes only change the calls that are compared with one another."""
    given: list[AugmentConfig] = []

    def augmented(config: AugmentConfig, image: torch.Tensor, mask: torch.Tensor, epoch: int) -> tuple[Any, ...]:
        given.append(config)
        return image + 0.1 * epoch, mask

    monkeypatch.setattr(transforms, "_augmented", augmented)
    config = AugmentConfig(policy="elastic", p=0.25, elastic_alpha=1.0, elastic_sigma_px=2.0)
    assert transforms.try_policy(config) == ("", 1.0)
    still, moved, again, first, other = given
    assert (still.color_strength, still.blur_max_sigma_px, still.noise_max_std) == (0, 0, 0)
    assert still.cutout_max_side == 1e-3
    assert (moved.color_strength, moved.cutout_max_side) == (config.color_strength, config.cutout_max_side)
    assert {(one.p, one.strong_p, one.elastic_alpha) for one in (still, moved, again)} == {(1.0, 1.0, 80.0)}
    assert {(one.p, one.strong_p) for one in (first, other)} == {(0.5, 0.5)}


class Remote:
    """A store whose folder is not here."""

    location = "https://host/set"
    manifest = SimpleNamespace(hash="h")


def test_faults_of_a_set_are_a_warning_with_a_command_that_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = SimpleNamespace(kind="absent", count=1200, what="never occur", examples=tuple("abcd"), advice="merge")
    asked: list[Any] = []

    def faults(manifest: Any, duplicates: Any) -> list[Any]:
        asked.append((manifest, duplicates))
        return [fault, fault]

    monkeypatch.setattr(labels, "set_faults", faults)
    finding = labels._of_set(Remote(), "2 classes")  # type: ignore[arg-type]
    one = "absent (1,200): never occur, as a; b; c; and 1 more"
    assert (finding.status, finding.detail) == ("warn", f"{one}; {one} (2 classes)")
    assert finding.advice == "merge; `python -m shards.show https://host/set` shows them"
    assert asked == [(Remote.manifest, None)]
    monkeypatch.setattr(labels, "set_faults", lambda *_: [])
    assert labels._of_set(Remote(), "2 classes") == Finding("ok", "labels", "2 classes")  # type: ignore[arg-type]


def test_a_note_of_near_duplicates_is_read_where_the_set_lies_here(
    pet_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(str(pet_shards))
    try:
        asked: list[Any] = []
        monkeypatch.setattr(labels, "load_near_duplicates", lambda *given: asked.append(given) or "the note")
        assert labels._duplicates(store) == "the note"  # type: ignore[comparison-overlap]
        assert asked == [(pet_shards, store.manifest.hash)]

        def damaged(*given: Any) -> None:
            raise ValueError("damaged")

        monkeypatch.setattr(labels, "load_near_duplicates", damaged)
        assert labels._duplicates(store) is None
    finally:
        store.close()
