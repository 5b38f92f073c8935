"""Decoders of segmentation-models-pytorch on any encoder of that package or of timm, adapted to petseg's training.

They have no dropout or stochastic depth, whose random state is in no checkpoint, while a resumed run must end with the
same numbers; no modules that never run, for whose gradients DDP would wait; and BatchNorm behind a global pooling uses
its running statistics when a batch is a single picture, which has no variance.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import warnings
from typing import Any

import torch
from torch import nn

from petseg.config import ModelConfig
from petseg.config.sizes import ImageSize, Size, size_of
from petseg.models.layers import check_size

INSTALL = "pip install 'petseg[encoders]'"
# model.arch -> class of segmentation-models-pytorch
DECODERS = {
    "smp_unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "manet": "MAnet",
    "linknet": "Linknet",
    "fpn": "FPN",
    "pspnet": "PSPNet",
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3Plus",
    "pan": "PAN",
    "upernet": "UPerNet",
    "segformer": "Segformer",
    "dpt": "DPT",
}
DEFAULT_ENCODER = {"dpt": "tu-vit_small_patch16_224"}  # resnet34 for the others
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as petseg.data.inputs.normalise
# encoders of segmentation-models-pytorch whose ImageNet weights expect another normalisation
_HALF = ((0.5,) * 3, (0.5,) * 3)
_DPN = ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)
_STATISTICS = {"inception": _HALF, "xception": _HALF, "dpn": _DPN}


class EncoderModel(nn.Module):
    """A network of segmentation-models-pytorch with the inputs and outputs of the lab's networks.

    mean, std: (R, G, B) of the pictures that the encoder's weights were trained on

    Shape: (B, 3, H, W) normalised with ImageNet's mean and std -> logits (B, num_classes, H, W).
    Raises ValueError unless H and W are multiples of 32.
    """

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        # x is (p - m) / s; the encoder wants (p - mean) / std = x * s / std + (m - mean) / std
        self.scale = [s / wanted for s, wanted in zip(IMAGENET_STD, std, strict=True)]
        self.shift = [(m - wanted) / d for m, wanted, d in zip(IMAGENET_MEAN, mean, std, strict=True)]
        self.rescales = (mean, std) != (IMAGENET_MEAN, IMAGENET_STD)

    @property
    def encoder(self) -> nn.Module:
        return self.network.get_submodule("encoder")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_size(x)
        if self.rescales:  # no buffers: they would be averaged over the ranks like BatchNorm's
            scale, shift = (torch.tensor(v, dtype=x.dtype, device=x.device) for v in (self.scale, self.shift))
            x = x * scale.view(1, 3, 1, 1) + shift.view(1, 3, 1, 1)
        return self.network(x)


class PooledBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm of maps that may be one pixel: for a single picture it then uses the running statistics."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and x.numel() == x.shape[1]:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(x)


def build_encoder_model(config: ModelConfig, num_classes: int, image_size_px: ImageSize) -> EncoderModel:
    """The config's decoder on its encoder, with fresh weights from torch's global random state.

    Raises ValueError if the packages are missing, for an unknown encoder, and for one that does not work with the
    decoder or the size of the pictures.
    """
    smp, name = import_smp(), encoder_name(config)
    settings: dict[str, Any] = {}
    if _has_fixed_size(name):
        settings["img_size"] = image_size_px if isinstance(image_size_px, int) else size_of(image_size_px)
    what = f"model.encoder = {name!r} with model.arch = {config.arch!r}"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Encoder does not have prefix tokens")
        try:
            with torch.device("cpu"):  # some encoders compute while they are built, which the device meta cannot
                network = getattr(smp, DECODERS[config.arch])(
                    encoder_name=name, encoder_weights=None, classes=num_classes, **settings
                )
        except (ValueError, TypeError, RuntimeError, AttributeError, AssertionError, UserWarning) as error:
            raise ValueError(
                f"{what} cannot be built ({str(error) or type(error).__name__}): choose another of the two"
            ) from error
    _switch_off_dropout(network)
    try:
        with torch.enable_grad():
            _fit(network, size_of(image_size_px))
    except Exception as error:  # other packages' layers can raise anything for a size that they do not take
        raise ValueError(
            f"{what} does not work on pictures of {image_size_px} px ({str(error) or type(error).__name__}): "
            "choose another encoder, another architecture, or another data.image_size_px"
        ) from error
    mean, std = input_statistics(name) if config.weights != "none" else (IMAGENET_MEAN, IMAGENET_STD)
    model = EncoderModel(network, mean, std)
    return model.to("meta") if torch.get_default_device().type == "meta" else model


def encoder_name(config: ModelConfig) -> str:
    """The config's encoder as segmentation-models-pytorch spells it: one of its own, or a timm model as `tu-NAME`.

    Raises ValueError that lists similar names for an unknown one.
    """
    smp, timm = import_smp(), importlib.import_module("timm")
    given = config.encoder or DEFAULT_ENCODER.get(config.arch, "resnet34")
    # names with timm- are deprecated spellings of timm's names
    own = [name for name in smp.encoders.get_encoder_names() if not name.startswith("timm-")]
    name = given.removeprefix("tu-")
    base, _, tag = name.partition(".")
    if given in own and config.arch != "dpt":
        return given
    if not timm.is_model(base):
        wanted, choices = base.removeprefix("timm-"), sorted({*own, *timm.list_models()})
        longer = [choice for choice in choices if choice.startswith(wanted)]
        near = dict.fromkeys([*longer, *difflib.get_close_matches(wanted, choices, n=5, cutoff=0.5), *own])
        raise ValueError(
            f"there is no encoder {given!r}; near it: {', '.join(list(near)[:5])} "
            "(model.encoder is a name of segmentation-models-pytorch or of timm)"
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise ValueError(f"model.encoder = {given!r}: {base} has the weights {', '.join(tags) or 'none at all'}")
    return f"tu-{name}"


def input_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std), RGB in 0-1, of the pictures that the encoder's usual weights were trained on."""
    if name.startswith("tu-"):
        known = importlib.import_module("timm").models.get_pretrained_cfg(name.removeprefix("tu-"))
        return (tuple(known.mean), tuple(known.std)) if known else (IMAGENET_MEAN, IMAGENET_STD)
    return next((v for start, v in _STATISTICS.items() if name.startswith(start)), (IMAGENET_MEAN, IMAGENET_STD))


def encoder_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of a (bare) model's encoder; [] for the lab's unet, which has no separate encoder."""
    encoder = getattr(model, "encoder", None)
    return [p for p in encoder.parameters() if p.requires_grad] if isinstance(encoder, nn.Module) else []


def import_smp() -> Any:
    """segmentation_models_pytorch, imported only when it is used, since that takes seconds."""
    try:
        importlib.import_module("timm")
        return importlib.import_module("segmentation_models_pytorch")
    except ModuleNotFoundError as error:
        raise ValueError(f"this model.arch needs {error.name}, which is not installed: {INSTALL}") from None


def _has_fixed_size(name: str) -> bool:
    """Whether the encoder is built for one size of pictures (most transformers of timm)."""
    if not name.startswith("tu-"):
        return False
    known = importlib.import_module("timm").models.get_pretrained_cfg(name.removeprefix("tu-"))
    return bool(known and known.fixed_input_size)


def _switch_off_dropout(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        # stochastic depth, as timm's DropPath and EfficientNet name it
        for name in ("drop_prob", "_drop_connect_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _fit(network: nn.Module, size: Size) -> None:
    """Run a copy forward and backward on the device meta, and replace modules that would not train well.

    Raises ValueError for logits of another size, and whatever the layers raise.
    """
    shadow = copy.deepcopy(network).to("meta").train()
    called, pooled = set(), set()
    for name, module in shadow.named_modules():

        def note(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            called.add(name)
            if isinstance(module, nn.BatchNorm2d) and args[0].shape[-2:].numel() == 1:
                pooled.add(name)

        module.register_forward_pre_hook(note)
    logits = shadow(torch.empty(2, 3, *size, device="meta"))
    if tuple(logits.shape[-2:]) != size:
        raise ValueError(f"its logits are {logits.shape[-2]}x{logits.shape[-1]} pixels")
    logits.sum().backward()
    for name in pooled:
        old = network.get_submodule(name)
        assert isinstance(old, nn.BatchNorm2d)
        new = PooledBatchNorm2d(old.num_features, old.eps, old.momentum, device=old.weight.device)
        new.load_state_dict(old.state_dict())
        network.set_submodule(name, new)
    unused = {name for name, parameter in shadow.named_parameters() if parameter.grad is None}
    for name, module in list(network.named_modules()):
        inner = [f"{name}.{p}" for p, _ in module.named_parameters()]
        if name and name not in called and inner and unused.issuperset(inner):
            network.set_submodule(name, nn.Identity())
            unused.difference_update(inner)
    for name in unused:
        network.get_parameter(name).requires_grad_(False)
