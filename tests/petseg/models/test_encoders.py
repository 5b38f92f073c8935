"""Decoders of segmentation-models-pytorch on encoders of timm."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import segmentation_models_pytorch
import torch
from torch import nn

from jobs.design.expansion import expand
from jobs.design.spec import load_spec
from petseg.config import ModelConfig, RunConfig
from petseg.config.values import with_values
from petseg.models.build import build_model, count_parameters
from petseg.models.encoders import (
    DECODERS,
    PooledBatchNorm2d,
    _fit,
    _has_fixed_size,
    _switch_off_dropout,
    encoder_name,
    encoder_parameters,
)
from tests.petseg.tensors import assert_same_tensors

MOBILE = "tu-mobilenetv3_small_050"
LITE = "tu-tf_efficientnet_lite0"
SWEEP = Path(__file__).parents[3] / "jobs" / "sweeps" / "encoders.yaml"


def model_of(arch: str, encoder: str = MOBILE, px: int = 64, **more: str) -> torch.nn.Module:
    return build_model(ModelConfig(arch=arch, encoder=encoder, **more), image_size_px=px)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arch", "encoder", "px"),
    [
        *((arch, MOBILE, 64) for arch in DECODERS if arch not in ("dpt", "pan")),
        ("pan", MOBILE, 128),
        ("dpt", "vit_tiny_patch16_224", 64),
        ("smp_unet", "mit_b0", 64),
        ("segformer", "tu-convnext_atto", 64),
        ("fpn", "tu-swin_tiny_patch4_window7_224", 64),
        ("fpn", "efficientnet-b0", 64),
        ("pspnet", "resnet18", 64),
    ],
)
def test_architectures_train(arch: str, encoder: str, px: int) -> None:
    torch.manual_seed(0)
    model = model_of(arch, encoder, px)
    drawn = torch.random.get_rng_state()
    for batch in (2, 1):  # the last batch of an epoch may hold one picture
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            logits = model(torch.randn(batch, 3, px, px, generator=torch.Generator().manual_seed(1)))
        assert logits.shape == (batch, 2, px, px)
        logits.square().mean().backward()
    assert torch.equal(torch.random.get_rng_state(), drawn)  # no dropout: a checkpoint does not hold what it draws
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None] == []  # DDP would wait for it
    assert model.eval()(torch.zeros(1, 3, px, px)).shape == (1, 2, px, px)
    own = {id(p) for p in model.encoder.parameters()}
    assert 0 < len(encoder_parameters(model)) == len(own & {id(p) for _, p in trained}) < len(trained)


def test_modules_that_never_run_are_removed() -> None:
    """The decoder of PSPNet uses three of five stages."""
    assert count_parameters(model_of("pspnet", "resnet18")) < 1_000_000
    whole = segmentation_models_pytorch.FPN("resnet18", encoder_weights=None, classes=2)
    assert count_parameters(model_of("fpn", "resnet18")) == count_parameters(whole)


def test_the_lab_models_have_their_encoders_parameters_too() -> None:
    assert encoder_parameters(build_model(ModelConfig(width=4))) == []
    lab = build_model(ModelConfig(arch="resnet34_unet", width=4))
    assert len(encoder_parameters(lab)) == len(list(lab.encoder.parameters()))


def test_weights_follow_from_the_seed() -> None:
    first, again = (torch.manual_seed(seed) and model_of("fpn").state_dict() for seed in (3, 3))
    assert_same_tensors(again, first)


def test_a_model_can_be_counted_without_memory() -> None:
    with torch.device("meta"):
        model = model_of("segformer", "mit_b0")
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_model_is_tried_at_its_own_height_and_width() -> None:
    model = build_model(ModelConfig(arch="fpn", encoder=MOBILE), image_size_px=(64, 96))
    assert model.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 2, 64, 96)


def test_one_picture_behind_a_global_pooling_is_normalised_by_the_running_statistics() -> None:
    norm = PooledBatchNorm2d(2)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    one = torch.tensor([3.0, 2.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(norm(one).flatten(), torch.tensor([2.0, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        norm(torch.cat([one, one + 2])).flatten(), torch.tensor([-1.0, -1, 1, 1]), atol=1e-4, rtol=0
    )


class Pooling(nn.Module):
    """BatchNorm of a map, and of its mean over all pixels; one layer never runs, and one parameter is in no sum."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, stride)
        self.norm, self.pooled, self.never = (
            nn.BatchNorm2d(2, eps=0.1),
            nn.BatchNorm2d(2, momentum=0.3),
            nn.Linear(2, 2),
        )
        self.lonely = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x))
        return x + self.pooled(x.mean(dim=(2, 3), keepdim=True))


def test_what_would_not_train_is_replaced_and_nothing_else() -> None:
    network = Pooling()
    network.pooled.running_mean.fill_(0.5)
    _fit(network, (32, 64))
    assert type(network.norm) is nn.BatchNorm2d
    assert type(network.pooled) is PooledBatchNorm2d
    assert (network.pooled.eps, network.pooled.momentum) == (1e-5, 0.3)
    assert network.pooled.running_mean.tolist() == [0.5, 0.5]
    assert type(network.never) is nn.Identity
    trained = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    assert trained.pop("lonely") is False
    assert all(trained.values())
    assert len(trained) == 6


def test_logits_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^its logits are 16x32 pixels$"):
        _fit(Pooling(stride=2), (32, 64))


def test_transformers_are_built_for_the_size_of_the_pictures() -> None:
    assert _has_fixed_size("tu-vit_tiny_patch16_224")
    assert not any(_has_fixed_size(name) for name in ("tu-resnet18", "resnet18", "tu-nothing", "vit_tiny_patch16_224"))


def test_dropout_and_stochastic_depth_are_off() -> None:
    layers = nn.ModuleDict({"a": nn.Dropout(0.5), "b": nn.Dropout2d(0.2), "c": nn.Identity(), "d": nn.ReLU()})
    layers["c"].drop_prob, layers["d"]._drop_connect_rate = 0.1, 0.2
    _switch_off_dropout(layers)
    assert (layers["a"].p, layers["b"].p, layers["c"].drop_prob, layers["d"]._drop_connect_rate) == (0, 0, 0, 0)


def test_deprecated_names_are_told_as_timms() -> None:
    """timm- is how segmentation-models-pytorch once spelt what timm has; up to five names are near an unknown one."""
    with pytest.raises(ValueError, match=r"no encoder 'timm-resnest14d'; near it: resnest14d, .*") as caught:
        encoder_name(ModelConfig(arch="fpn", encoder="timm-resnest14d"))
    assert str(caught.value).split("near it: ")[1].split(" (")[0].count(",") == 4


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", "resnet34"),
        ("mit_b0", "mit_b0"),
        ("mobilenetv3_small_050", MOBILE),
        ("tu-resnet18", "tu-resnet18"),
        ("convnext_tiny.fb_in22k", "tu-convnext_tiny.fb_in22k"),
    ],
)
def test_encoders_are_known_by_either_packages_names(given: str, found: str) -> None:
    assert encoder_name(ModelConfig(arch="fpn", encoder=given)) == found


@pytest.mark.parametrize(
    ("arch", "encoder", "message"),
    [
        ("fpn", "mobilenetv3_smal_050", "there is no encoder 'mobilenetv3_smal_050'; near it: mobilenetv3_small_050"),
        ("fpn", "tu-swin_tiny", "near it: swin_tiny_patch4_window7_224"),
        ("fpn", "timm-mobilenetv3_small_050", "near it: mobilenetv3_small_050"),
        ("fpn", "resnet18.zz", "resnet18 has the weights a1_in1k"),
        (
            "linknet",
            "mit_b0",
            r"model.encoder = 'mit_b0' with model.arch = 'linknet' cannot be built \(Encoder `mit_b0`",
        ),
        ("deeplabv3", "swin_tiny_patch4_window7_224", "cannot be built .*output_stride"),
        ("pan", MOBILE, "does not work on pictures of 64 px .*: choose another encoder"),
        ("dpt", "resnet18", "with model.arch = 'dpt' "),
    ],
)
def test_combinations_that_do_not_work_are_named(arch: str, encoder: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(arch, encoder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.encoder": "resnet18"}, "model.encoder = 'resnet18': model.arch = unet has its own"),
        ({"model.weights": "imagenet"}, "model.weights = 'imagenet': model.arch = unet has its own, from scratch"),
        (
            {"model.arch": "fpn", "model.weights": "imagnet"},
            "choose none, imagenet, or a file that ends in .safetensors",
        ),
    ],
)
def test_a_wrong_config_is_an_error(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_values(RunConfig(), values)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(
        ValueError, match=r"needs segmentation_models_pytorch, which is not installed: pip install 'petseg"
    ):
        model_of("fpn")


def test_a_size_that_is_no_multiple_of_32_is_an_error() -> None:
    with pytest.raises(ValueError, match="input of 48x64 pixels"):
        model_of("fpn")(torch.zeros(1, 3, 48, 64))


def test_the_sweep_expands() -> None:
    spec = load_spec(SWEEP)
    assert len(expand(spec)) == 3 * 5 * 2
    for name in spec.axes["model.encoder"]:
        assert encoder_name(ModelConfig(arch="fpn", encoder=str(name)))
