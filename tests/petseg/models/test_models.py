import subprocess
import sys

import pytest
import torch
from torch import nn

from petseg.config import ModelConfig
from petseg.models.build import build_model, count_parameters
from petseg.models.layers import PointwiseConv2d, ReflectConv2d, build_upsample


@pytest.mark.parametrize(
    ("arch", "up", "parameters"),
    [
        ("unet", "bilinear", 17_263_042),
        ("unet", "transposed", 31_037_698),
        ("resnet34_unet", "bilinear", 23_621_122),
        ("resnet34_unet", "transposed", 26_456_898),
    ],
)
def test_parameter_counts(arch: str, up: str, parameters: int) -> None:
    assert count_parameters(build_model(ModelConfig(arch=arch, up=up))) == parameters


def test_the_encoder_is_a_resnet34() -> None:
    """torchvision's ResNet34 without its classifier, parameter for parameter."""
    from torchvision.models import resnet34

    theirs = resnet34()
    theirs.fc = torch.nn.Identity()
    assert count_parameters(build_model(ModelConfig(arch="resnet34_unet")).encoder) == count_parameters(theirs)


@pytest.mark.parametrize("arch", ["unet", "resnet34_unet"])
@pytest.mark.parametrize("up", ["bilinear", "transposed"])
@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_logits_have_the_pictures_size(arch: str, up: str, size: tuple[int, int]) -> None:
    model = build_model(ModelConfig(arch=arch, up=up, width=4), num_classes=5)
    assert model(torch.zeros(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("arch", ["unet", "resnet34_unet"])
def test_the_config_decides_on_the_way_up(arch: str) -> None:
    rises = {
        up: sum(
            isinstance(m, nn.ConvTranspose2d) for m in build_model(ModelConfig(arch=arch, up=up, width=4)).modules()
        )
        for up in ("bilinear", "transposed")
    }
    assert rises == {"bilinear": 0, "transposed": {"unet": 4, "resnet34_unet": 5}[arch]}


@pytest.mark.parametrize("arch", ["unet", "resnet34_unet"])
def test_another_size_is_an_error_that_says_so(arch: str) -> None:
    model = build_model(ModelConfig(arch=arch, width=4))
    with pytest.raises(ValueError, match="input of 48x64 pixels: height and width must be multiples of 32"):
        model(torch.zeros(1, 3, 48, 64))


def test_an_unknown_way_to_upsample_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"model\.up = 'nearest': choose one of bilinear, transposed"):
        build_upsample(4, 4, "nearest")


@pytest.mark.parametrize("arch", ["unet", "resnet34_unet"])
def test_every_parameter_gets_a_gradient(arch: str) -> None:
    model = build_model(ModelConfig(arch=arch, width=4))
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("arch", "count"), [("unet", 18), ("resnet34_unet", 49)])
def test_every_batchnorm_is_as_torch_builds_it(arch: str, count: int) -> None:
    norms = [
        module
        for module in build_model(ModelConfig(arch=arch, width=4)).modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    assert len(norms) == count
    assert {(norm.momentum, norm.eps, norm.affine, norm.track_running_stats) for norm in norms} == {
        (0.1, 1e-5, True, True)
    }


def test_reflecting_at_the_edge_is_torchs_reflect_padding() -> None:
    ours = ReflectConv2d(3, 4, 3)
    theirs = torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", bias=False)
    theirs.weight = ours.weight
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(ours(x), theirs(x))


def test_a_strided_pointwise_convolution_is_the_usual_one() -> None:
    ours = PointwiseConv2d(5, 7, 1, 2, bias=False)
    theirs = nn.Conv2d(5, 7, 1, 2, bias=False)
    theirs.load_state_dict(ours.state_dict())
    for size in (8, 9):
        x = torch.randn(3, 5, size, size)
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.slow
def test_small_channels_do_not_corrupt_memory_on_two_threads() -> None:
    """In a process of its own, which oneDNN brought down through the strided shortcuts of the encoder."""
    code = (
        "import torch\n"
        "from petseg.models.resnet34_unet import ResNet34UNet\n"
        "torch.set_num_threads(2)\n"
        "model = ResNet34UNet(4).to(memory_format=torch.channels_last)\n"
        "for batch in (11, 3, 5, 7) * 3:\n"
        "    x = torch.randn(batch, 3, 64, 64).to(memory_format=torch.channels_last)\n"
        "    model(x).square().mean().backward()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
