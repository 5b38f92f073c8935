"""Masks of any picture by the model of a weights file, at the picture's own size.

The size rule, the views of test-time augmentation and the way back to native size are those of petseg.evaluation: the
masks are the ones that its numbers at native size count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from petseg.config.sizes import Size
from petseg.data.decode import Pixels, fit_into
from petseg.data.inputs import normalise, to_image
from petseg.inference.exported.onnx_file import SUFFIX as ONNX_SUFFIX
from petseg.inference.exported.onnx_file import load_onnx, read_onnx
from petseg.inference.header import Header
from petseg.inference.pictures import Picture, read_picture
from petseg.inference.weights_file import load_model, read_header
from petseg.metrics import Tta
from petseg.metrics.components import drop_small, keep_largest
from petseg.metrics.overlay import draw_mask
from petseg.metrics.pixels import predicted_classes, to_native
from petseg.metrics.tta import Model, predict_logits
from petseg.metrics.windows import windowed
from petseg.models.networks import Ensemble

PRECISIONS = ("as_trained", "no", "bf16", "fp16")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Options:
    """How masks are made of the network's logits."""

    tta: Tta = "none"
    keep_largest: bool = False  # of each class only the largest connected part
    min_area_px: int = 0  # connected parts of fewer pixels become background
    batch_size: int = 8  # pictures, or windows, that go through the network together


@dataclass(frozen=True, eq=False)
class Prediction:
    """The mask of one picture, which belongs to the picture as it is shown: turned by its EXIF orientation."""

    image: Pixels  # (H, W, 3) uint8
    mask: Pixels  # (H, W) uint8 classes
    header: Header
    logits: torch.Tensor  # (K, h, w) float32 on the CPU, at the network's size or by windows at native size

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """(K, H, W) float32, which add up to 1; before parts of the mask were removed."""
        native = _native(self.logits, self.mask.shape, self.header)
        probabilities: NDArray[np.float32] = native.softmax(dim=1)[0].numpy()
        return probabilities

    @property
    def confidence(self) -> float:
        """Mean over the pixels of the probability of the most probable class."""
        return float(self.probabilities.max(axis=0).mean(dtype=np.float64))

    @property
    def shares(self) -> dict[str, float]:
        """Share of the pixels of each class."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.header.classes))
        return {name: float(count / self.mask.size) for name, count in zip(self.header.names, counts, strict=True)}

    def overlay(self) -> Image.Image:
        """The picture tinted in the colours of its classes; the background stays as it is."""
        plain = [one.value for one in self.header.classes if one.value not in self.header.counted]
        colours = [one.colour for one in self.header.classes]
        return Image.fromarray(draw_mask(self.image, self.mask, colours, plain))

    def cutout(self, name: str = "") -> Image.Image:
        """RGBA: the picture with everything but a class transparent; by default with the background transparent.

        Raises ValueError that lists the classes for an unknown name.
        """
        if name and name not in self.header.names:
            raise ValueError(f"there is no class {name!r}: choose one of {', '.join(self.header.names)}")
        wanted = (self.header.names.index(name),) if name else self.header.counted
        alpha = np.where(np.isin(self.mask, np.array(wanted, np.uint8)), 255, 0).astype(np.uint8)
        return Image.fromarray(np.dstack([self.image, alpha]))

    def as_image(self) -> Image.Image:
        """The mask as a palette picture in the classes' colours."""
        drawn = Image.fromarray(self.mask)
        drawn.putpalette([level for one in self.header.classes for level in one.colour])
        return drawn


class Predictor:
    """A model ready to predict, on one device."""

    def __init__(self, header: Header, model: nn.Module, device: torch.device, precision: str) -> None:
        self.header, self.device = header, device
        self.precision = header.mixed_precision if precision == "as_trained" else precision
        self.model = model.to(device).eval()
        if header.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.header.names

    @overload
    def predict(self, images: Picture, **options: Any) -> Prediction: ...

    @overload
    def predict(self, images: Sequence[Picture], **options: Any) -> list[Prediction]: ...

    def predict(self, images: Any, **options: Any) -> Any:
        """The mask of a picture; of a list of pictures a list, in its order, computed in batches.

        images: a path, PIL image, (H, W, 3) or (H, W) uint8 array, (3, H, W) uint8 tensor, or a list of these
        options: fields of Options: tta, keep_largest, min_area_px, batch_size
        Raises ValueError for what is no picture.
        """
        wanted = Options(**options)
        if not isinstance(images, list | tuple):
            return next(iter(self.predictions([read_picture(images)], wanted)))
        found: list[Prediction] = []
        for first in range(0, len(images), wanted.batch_size):
            batch = images[first : first + wanted.batch_size]
            found += self.predictions([read_picture(one) for one in batch], wanted)
        return found

    @torch.inference_mode()
    def predictions(self, pictures: Sequence[Pixels], options: Options) -> Iterator[Prediction]:
        """The masks of the (H, W, 3) uint8 pictures of one batch."""
        for image, logits in zip(pictures, self._logits(pictures, options), strict=True):
            native = _native(logits, image.shape[:2], self.header)
            mask = predicted_classes(native)
            if options.keep_largest:
                mask = keep_largest(mask, len(self.header.classes))
            if options.min_area_px:
                mask = drop_small(mask, len(self.header.classes), options.min_area_px)
            yield Prediction(image, mask[0].cpu().numpy(), self.header, logits.float().cpu())

    def _logits(self, pictures: Sequence[Pixels], options: Options) -> Iterator[torch.Tensor]:
        """(K, h, w) of each picture: at the network's size, or with windows at its own."""
        if self.header.fit == "crop":
            network: Model = windowed(self.model, self.header.size_px, options.batch_size)
            for picture in pictures:  # one at a time, as in evaluation: memory depends on the largest
                yield self._forward(network, torch.from_numpy(picture)[None], options.tta)[0]
            return
        batch = torch.empty((len(pictures), *self.header.size_px, 3), dtype=torch.uint8)
        for out, picture in zip(batch.numpy(), pictures, strict=True):
            fit_into(picture, out, letterbox=self.header.fit == "letterbox")
        yield from self._forward(self.model, batch, options.tta)

    def _forward(self, network: Model, batch: torch.Tensor, tta: Tta) -> torch.Tensor:
        image = normalise(to_image(batch, self.device), self.header.channels_last)
        with self._autocast():
            return predict_logits(network, image, tta).float()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "no":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.precision])


def load_predictor(paths: Sequence[Path], device: str = "auto", precision: str = "as_trained") -> Predictor:
    """The model of a weights file or an ONNX file, or the ensemble of several.

    Raises ValueError for files that cannot be used.
    """
    if not paths:
        raise ValueError("name a weights file: make one with `python -m petseg.best`")
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    loaded = [load_file(path) for path in paths]
    header, model = loaded[0]
    for path, (other, _) in zip(paths[1:], loaded[1:], strict=True):
        if rule_of(other) != rule_of(header):
            raise ValueError(f"{paths[0]} and {path} do not fit together: {rule_of(header)} and {rule_of(other)}")
    if len(loaded) > 1:
        model = Ensemble([one for _, one in loaded])
    chosen = choose_device(device)
    if precision == "fp16" and chosen.type == "cpu":
        raise ValueError("precision fp16 needs a GPU: use bf16 or no here")
    return Predictor(header, model, chosen, precision)


def load_file(path: Path) -> tuple[Header, nn.Module]:
    """Header and model of a weights file, or of an ONNX file of petseg, which runs in float32 on the CPU."""
    if path.suffix != ONNX_SUFFIX:
        return load_model(path)
    header, model = load_onnx(path)
    return replace(header, mixed_precision="no", channels_last=False), model


def read_file_header(path: Path) -> Header:
    """The header of a weights file or of an ONNX file, without its model; raises as `load_predictor`."""
    return read_onnx(path)[0] if path.suffix == ONNX_SUFFIX else read_header(path)


def rule_of(header: Header) -> str:
    """What files must share to be used together, in words."""
    return f"{', '.join(header.names)} at {header.image_size_px} px, {header.fit}"


def choose_device(name: str) -> torch.device:
    """The device by its name; raises ValueError for one that torch does not know or that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r}: {str(error).splitlines()[0]}") from None
    return device


def _native(logits: torch.Tensor, size: Sequence[int], header: Header) -> torch.Tensor:
    """(K, h, w) -> (1, K, H, W) float32 at the size (H, W) of the picture, as evaluation counts it."""
    native: Size = (size[0], size[1])
    if tuple(logits.shape[-2:]) == native:
        return logits[None].float()
    return to_native(logits, native, header.fit)
