"""Runs that learn from a teacher: the step, what the teacher must be, identity, and resumption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from petseg.config import RunConfig
from petseg.config.values import identity, trial_id, with_values
from petseg.evaluate import main as evaluate
from petseg.inference.winner import write_winner
from petseg.run.graphs import PassGraphs
from petseg.run.run import Run
from petseg.run_folder.layout import load_config, load_result, read_metrics
from petseg.training import step as step_module
from petseg.training.loop import train
from shards.command import run_command
from tests.petseg.run.test_graphs import Repeater
from tests.petseg.stopped_runs import final_weights, require_same_bits, same, stop_and_resume
from tests.petseg.test_processes import launch

Tiny = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def teachers(pet_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one.safetensors, of a run of width 6, and both.safetensors, the ensemble of two."""
    root = tmp_path_factory.mktemp("teachers")
    for seed in (0, 1):
        values = {
            "data.shards": str(pet_shards), "data.image_size_px": 64, "data.threads": 1, "model.width": 6,
            "train.epochs": 1, "train.batch_size": 8, "train.test": False, "train.seed": seed, "tracking.overlays": 0,
        }  # fmt: skip
        train(with_values(RunConfig(), values), root / f"seed-{seed}")
    write_winner([root / "seed-0"], root / "one.safetensors", "best", average=False, measurement=None)
    write_winner([root / "seed-0", root / "seed-1"], root / "both.safetensors", "best", average=False, measurement=None)
    return root


def test_without_a_teacher_no_field_of_the_group_is_part_of_a_trial() -> None:
    assert "distill" not in identity(RunConfig(), "m")
    idle = with_values(RunConfig(), {"distill.weight": 0.9, "distill.temperature": 4.0})
    assert trial_id(idle, "m") == trial_id(RunConfig(), "m")
    unheard = with_values(RunConfig(), {"distill.weight": 0.0, "distill.teacher": "gone.safetensors"})
    assert trial_id(unheard, "m") == trial_id(RunConfig(), "m")


def test_a_teacher_is_known_by_its_content(teachers: Path, tmp_path: Path) -> None:
    def config(path: Path, **more: float) -> RunConfig:
        return with_values(RunConfig(), {"distill.teacher": str(path), **more})

    copied = shutil.copy(teachers / "one.safetensors", tmp_path / "copy.safetensors")
    ids = [
        trial_id(config(path), "m") for path in (teachers / "one.safetensors", copied, teachers / "both.safetensors")
    ]
    assert ids[0] == ids[1] != ids[2]
    assert identity(config(copied), "m")["distill"]["teacher"].startswith("sha256:")
    assert trial_id(RunConfig(), "m") not in ids
    assert trial_id(config(copied, **{"distill.weight": 0.9}), "m") != ids[0]
    with pytest.raises(ValueError, match=r"distill.teacher = 'gone.safetensors': No such file"):
        trial_id(config(Path("gone.safetensors")), "m")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("distill.teacher", "a.pth", "give a weights file that ends in .safetensors"),
        ("distill.weight", -0.1, r"must lie in \[0, 1\]"),
        ("distill.weight", 1.1, r"must lie in \[0, 1\]"),
        ("distill.temperature", 0.0, "must be positive"),
        ("model.init", "a.pt", "give a weights file that ends in .safetensors"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=f"{name} = {value!r}: {said}"):
        with_values(RunConfig(), {name: value})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__image_size_px": 32}, "it has data.image_size_px 64, not 32"),
        ({"data__border": "ignore"}, "it has data.border 'fg', not 'ignore'"),
        ({"data__fit": "letterbox"}, "it has data.fit 'squash', not 'letterbox'"),
        ({"data__target": "trimap"}, r"it has classes \['background', 'pet'\], not \['background', 'pet', 'border'\]"),
    ],
)
def test_a_teacher_that_learnt_something_else_is_refused(
    tiny: Tiny, teachers: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    teacher = str(teachers / "one.safetensors")
    with pytest.raises(ValueError, match=f"distill.teacher = '{teacher}' does not fit this run: {said}"):
        train(tiny(distill__teacher=teacher, **changes), tmp_path)


def test_the_loss_is_the_weighted_sum(
    tiny: Tiny, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compute the loss of one step over the whole split from the logits that the step saw."""
    seen: list[tuple[torch.Tensor, ...]] = []
    plain = step_module.training_pass

    def spied(run: Run, is_last: bool, inputs: step_module.PassInputs) -> torch.Tensor:
        taught = step_module.teacher_logits(run, inputs.image)
        assert taught is not None
        assert run.teacher is not None
        assert not run.teacher.training
        logits: list[torch.Tensor] = []
        hook = run.parts.bare_model.register_forward_hook(lambda _, __, out: logits.append(out.detach()))
        sums = plain(run, is_last, inputs)
        hook.remove()
        seen.append((logits[0], taught, inputs.target, sums))
        return sums

    monkeypatch.setattr(step_module, "training_pass", spied)
    one = str(teachers / "one.safetensors")
    config = tiny(distill__teacher=one, distill__weight=0.3, distill__temperature=3.0, train__epochs=1)
    train(config, tmp_path)
    for logits, taught, target, sums in seen:
        divergence = nn.functional.kl_div(
            (logits / 3).log_softmax(1), (taught / 3).log_softmax(1), reduction="none", log_target=True
        ).sum(1)
        by_hand = 0.7 * nn.functional.cross_entropy(logits, target) + 0.3 * 9 * divergence.mean()
        assert float(sums[1] / sums[0]) == pytest.approx(float(by_hand), rel=1e-5)
    teacher = identity(config, "m")["distill"]
    assert load_config(tmp_path)["identity"]["distill"] == teacher


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__accumulation_steps": 2, "train__mixed_precision": "bf16", "train__start_size_px": 32},
    ],
)
def test_a_stopped_run_ends_with_the_same_bits(
    tiny: Tiny, teachers: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    both = str(teachers / "both.safetensors")
    config = tiny(distill__teacher=both, augment__policy="elastic_crop", augment__p=0.5, train__log_every=1, **changes)
    train(config, tmp_path / "calm")
    stop_and_resume(config, tmp_path / "stopped", 2)
    require_same_bits(tmp_path / "calm", tmp_path / "stopped")


def test_only_training_opens_the_teacher(tiny: Tiny, teachers: Path, tmp_path: Path) -> None:
    """A finished run needs it no more; an unfinished one says so, and never takes another in its place."""
    teacher = Path(shutil.copy(teachers / "one.safetensors", tmp_path / "teacher.safetensors"))
    config = tiny(distill__teacher=str(teacher), train__epochs=1)
    done = train(config, tmp_path / "done")
    teacher.unlink()
    assert run_command(evaluate, [str(tmp_path / "done"), "--split", "val", "--pictures", "1"]) == 0
    write_winner([tmp_path / "done"], tmp_path / "student.safetensors", "best", average=False, measurement=None)
    assert train(config, tmp_path / "done") == done
    (tmp_path / "done" / "result.json").unlink()
    with pytest.raises(ValueError, match=r"teacher.safetensors: there is no such file"):
        train(config, tmp_path / "done")
    assert load_result(tmp_path / "done") is None
    shutil.copy(teachers / "both.safetensors", teacher)
    with pytest.raises(ValueError, match=r"holds another run \(distill.teacher 'sha256:"):
        train(config, tmp_path / "done")


def test_a_run_starts_with_the_weights_of_a_file(tiny: Tiny, teachers: Path, tmp_path: Path) -> None:
    """With a rate of almost nothing it ends with them."""
    one = str(teachers / "one.safetensors")
    config = tiny(model__width=6, model__init=one, optim__name="sgd", optim__lr=1e-12, train__epochs=1)
    train(config, tmp_path / "run")
    ours, theirs = final_weights(tmp_path / "run"), final_weights(teachers / "seed-0")
    name = "segmentation_head.weight"
    torch.testing.assert_close(ours[name], theirs[name])
    assert json.loads((tmp_path / "run/config.json").read_text())["identity"]["model"]["init"].startswith("sha256:")


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("one", {"model__width": 4}, "it has model.width 6, not 4"),
        ("one", {"model__width": 6, "model__arch": "resnet34_unet"}, "it has model.arch 'unet', not 'resnet34_unet'"),
        ("one", {"model__width": 6, "data__target": "trimap"}, r"it has classes \['background', 'pet'\]"),
        ("both", {"model__width": 6}, "is an ensemble of 2 networks"),
    ],
)
def test_weights_of_another_network_are_refused(
    tiny: Tiny, teachers: Path, tmp_path: Path, file: str, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        train(tiny(model__init=str(teachers / f"{file}.safetensors"), **changes), tmp_path)


def test_a_graph_holds_the_teacher_too(
    tiny: Tiny, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(distill__teacher=str(teachers / "both.safetensors"), train__epochs=1)
    train(config, tmp_path / "plain")
    captures: list[Repeater] = []

    def with_stand_in(config: RunConfig, model: nn.Module, device: torch.device, world_size: int) -> PassGraphs:
        captures.append(Repeater(model))
        return PassGraphs(model, captures[-1])

    monkeypatch.setattr("petseg.run.run.build_pass_graphs", with_stand_in)
    train(config, tmp_path / "graphed")
    assert captures[0].captures == 2  # full batches, and the last one
    assert same(final_weights(tmp_path / "plain"), final_weights(tmp_path / "graphed"))


@pytest.mark.slow
def test_two_processes_learn_from_it_or_both_say_why_not(pet_shards: Path, teachers: Path, tmp_path: Path) -> None:
    flags = {"train.epochs": 1, "distill.teacher": teachers / "one.safetensors"}
    done = launch(2, pet_shards, tmp_path / "two", **flags)
    assert done.returncode == 0, done.stderr
    (row,) = read_metrics(tmp_path / "two" / "run")
    one = launch(1, pet_shards, tmp_path / "one", **flags)
    assert one.returncode == 0, one.stderr
    (alone,) = read_metrics(tmp_path / "one" / "run")
    assert row["train/loss"] == pytest.approx(alone["train/loss"], rel=0.1)  # BatchNorm sees half of a batch
    refused = launch(2, pet_shards, tmp_path / "other", **flags | {"data.image-size-px": 32})
    assert refused.returncode != 0
    assert refused.stderr.count("does not fit this run: it has data.image_size_px 64, not 32") == 2
