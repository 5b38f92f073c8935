import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg.config import DataConfig, ModelConfig, RunConfig, TrackingConfig
from petseg.config.training import OptimConfig, TrainConfig
from petseg.config.values import (
    config_from_dict,
    config_to_dict,
    flatten,
    identity,
    trial_id,
    with_values,
)

configs = st.builds(
    RunConfig,
    data=st.builds(DataConfig, shards=st.text(), image_size_px=st.integers(1, 40).map(lambda n: 32 * n)),
    model=st.builds(ModelConfig, arch=st.sampled_from(["unet", "resnet34_unet"]), width=st.sampled_from([2, 16, 64])),
    optim=st.builds(OptimConfig, lr=st.floats(1e-9, 10)),
    train=st.builds(TrainConfig, seed=st.integers(0, 2**31 - 1), epochs=st.integers(1, 999)),
    tracking=st.builds(TrackingConfig, project=st.text()),
)


@given(configs)
def test_a_config_survives_json(config: RunConfig) -> None:
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


@given(configs)
def test_identity_leaves_out_what_does_not_change_the_numbers(config: RunConfig) -> None:
    moved = replace(
        config,
        data=replace(config.data, shards="elsewhere", threads=7),
        tracking=TrackingConfig(wandb="offline", project="x"),
        train=replace(config.train, log_every=3),
    )
    assert trial_id(moved, "m") == trial_id(config, "m")


def test_identity_depends_on_the_rest_and_on_the_shard_set() -> None:
    base = RunConfig()
    others = [
        with_values(base, {"train.seed": 1}),
        with_values(base, {"model.arch": "resnet34_unet"}),
        with_values(base, {"data.border": "ignore"}),
        with_values(base, {"optim.lr": 2e-3}),
    ]
    ids = {trial_id(config, "m") for config in [base, *others]} | {trial_id(base, "another")}
    assert len(ids) == 6
    assert all(len(i) == 10 for i in ids)
    assert "shards" not in identity(base, "m")["data"]


def test_the_default_run_keeps_its_id() -> None:
    """A change of the identity's form would orphan every finished trial: change it deliberately."""
    assert trial_id(RunConfig(), "0" * 64) == "72448631b5"


def test_yaml_readings_are_put_right() -> None:
    config = with_values(
        RunConfig(),
        {"optim.lr": "1e-4", "train.mixed_precision": False, "augment.policy": None, "optim.grad_clip": 1},
    )
    assert config.optim.lr == 1e-4
    assert config.train.mixed_precision == "no"
    assert config.augment.policy == "none"
    assert config.optim.grad_clip == 1.0
    assert type(config.optim.grad_clip) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.arc": "unet"}, "no config field 'model.arc'; near it: model.arch"),
        ({"arch": "unet"}, "no config field 'arch'"),
        ({"model": "unet"}, "no config field 'model'"),
        ({"model.arch": "vgg"}, "model.arch = 'vgg': choose one of unet, resnet34_unet"),
        ({"train.epochs": "three"}, "train.epochs = 'three': must be of type int"),
        ({"train.epochs": 1.5}, "train.epochs = 1.5: must be of type int"),
        ({"train.epochs": True}, "train.epochs = True: must be of type int"),
        ({"train.test": 1}, "train.test = 1: must be of type bool"),
        ({"optim.lr": "fast"}, "optim.lr = 'fast': must be of type float"),
        ({"optim.lr": 0.0}, "optim.lr = 0.0: must be positive"),
        ({"data.image_size_px": 100}, "data.image_size_px = 100: must be a multiple of 32"),
        ({"train.batch_size": 10, "train.accumulation_steps": 4}, "must be a multiple of train.accumulation_steps = 4"),
        ({"augment.p": 1.5}, r"augment.p = 1.5: must lie in \[0, 1\]"),
        ({"model.width": 7}, "model.width = 7: must be even"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_values(RunConfig(), values)


def test_the_defaults_that_no_id_tells_stay() -> None:
    """The default run's id covers the other fields: a changed default here would go unseen, and could reach wandb."""
    config = RunConfig()
    said = flatten(identity(config, ""))
    assert {name: value for name, value in flatten(config_to_dict(config)).items() if name not in said} == {
        "data.shards": "data/shards", "data.fit": "squash", "data.rare_crops": 0.0, "data.threads": 2,
        "data.cache": "auto", "data.cache_dir": "",
        "data.cache_gb": 50.0,
        "augment.mode": "replace", "augment.strong_p": 1.0, "augment.rotate_max_deg": 20.0, "augment.scale_min": 0.7,
        "augment.scale_max": 1.4, "augment.color_strength": 0.3, "augment.blur_max_sigma_px": 1.0,
        "augment.noise_max_std": 15.0, "augment.cutout_max_side": 0.4,
        "model.encoder": "", "model.weights": "none", "model.init": "",
        "optim.momentum": 0.9, "optim.encoder_lr_factor": 1.0,
        "train.budget_steps": 0, "train.budget_min": 0.0, "train.start_size_px": 0, "train.full_size_from": 0.5,
        "train.focal_gamma": 2.0, "train.label_smoothing": 0.0, "train.border_weight": 1.0, "train.border_px": 3,
        "distill.teacher": "", "distill.weight": 0.5, "distill.temperature": 2.0,
        "train.ema_decay": 0.0, "train.swa_from": 0.0, "train.late_batches": 1, "train.late_batches_from": 0.5,
        "train.grad_checkpointing": False, "train.compile": "no",
        "train.cuda_graphs": True, "train.cudnn_benchmark": True, "train.deterministic": False, "train.tf32": True,
        "train.sync_batchnorm": False, "train.log_every": 10, "train.save_every_min": 10.0,
        "tracking.wandb": "disabled", "tracking.project": "petseg", "tracking.entity": "", "tracking.overlays": 8,
            "data.target": "auto", "train.class_weights": "none",
        "tracking.tensorboard": False, "tracking.wandb_wait_s": 10.0, "tracking.artifacts": "none",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("train.focal_gamma", 1.0, 0.99),
        ("train.label_smoothing", 0.0, 1.0),
        ("train.border_weight", 0.0, -0.01),
        ("train.border_px", 1, 0),
        ("train.full_size_from", 1.0, 0.0),
        ("data.threads", 1, 0),
        ("data.shuffle_window_shards", 1, 0),
        ("data.cache_gb", 0.01, 0.0),
        ("data.max_lost_samples", 0, -1),
        *(
            (f"augment.{name}", bound, beyond)
            for name in ("p", "strong_p")
            for bound, beyond in ((0.0, -0.01), (1.0, 1.01))
        ),
        *((f"augment.{name}", 0.0, -0.01) for name in ("elastic_alpha", "blur_max_sigma_px", "noise_max_std")),
        *((f"augment.{name}", 0.0, math.inf) for name in ("elastic_alpha", "blur_max_sigma_px", "noise_max_std")),
        ("augment.elastic_sigma_px", 1.0, 0.99),
        ("augment.crop_min_area", 1.0, 0.0),
        ("augment.crop_min_area", 0.01, 1.01),
        ("augment.rotate_max_deg", 0.0, -1.0),
        ("augment.rotate_max_deg", 180.0, 181.0),
        ("augment.scale_min", 0.1, 0.09),
        ("augment.scale_min", 1.4, 1.41),  # augment.scale_max is 1.4
        ("augment.scale_max", 10.0, 10.1),
        ("augment.color_strength", 0.0, -0.01),
        ("augment.color_strength", 1.0, 1.01),
        ("augment.cutout_max_side", 1.0, 0.0),
        ("augment.cutout_max_side", 0.01, 1.01),
        ("model.width", 2, 0),
        ("optim.lr", 1e-9, 0.0),
        ("optim.lr", 1.0, math.inf),
        ("optim.weight_decay", 0.0, -0.01),
        ("optim.momentum", 0.0, 1.0),
        ("optim.encoder_lr_factor", 0.0, math.inf),
        ("optim.warmup", 0.0, 1.0),
        ("optim.grad_clip", 0.0, -0.01),
        ("train.seed", 2**31 - 1, 2**31),
        ("train.ema_decay", 0.0, 1.0),
        ("tracking.overlays", 0, -1),
        ("tracking.wandb_wait_s", 0.1, 0.0),
    ],
)
def test_the_bound_itself_is_allowed_where_the_message_says_so(name: str, allowed: float, refused: float) -> None:
    with_values(RunConfig(), {name: allowed})
    with pytest.raises(ValueError, match=rf"^{name} "):
        with_values(RunConfig(), {name: refused})


def test_only_architectures_with_an_encoder_take_one_and_its_weights() -> None:
    for values in ({"model.encoder": "resnet18"}, {"model.weights": "imagenet"}, {"model.weights": "w.safetensors"}):
        (name,) = values
        with pytest.raises(ValueError, match=rf"^{name} .*has its own, from scratch"):
            with_values(RunConfig(), values)
        with_values(RunConfig(), values | {"model.arch": "fpn"})


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("model.weights", "w.safetensors.bak"),
        ("model.weights", "w.npz"),
        ("model.init", "w.safetensors.bak"),
        ("model.init", "w.pth"),
    ],
)
def test_weights_are_files_of_a_known_kind(name: str, refused: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} = '{refused}': .*ends? in"):
        with_values(RunConfig(), {"model.arch": "fpn", name: refused})
    with_values(RunConfig(), {"model.arch": "fpn", name: "w.safetensors"})
