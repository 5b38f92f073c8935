"""The models of the page: each a file, which predicts one picture at a time, and what the page says of it."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from petseg.inference.exported.hub import SIZE_RULES, Row, numbers
from petseg.inference.exported.onnx_file import SUFFIX as ONNX_SUFFIX
from petseg.inference.header import Header
from petseg.inference.pictures import decode_picture
from petseg.inference.predictor import Options, Prediction, Predictor, load_predictor

SPLITS = ("test", "val", "train")  # whose Dice stands in the chooser, if there are several
FLOAT32 = "no"  # mixed precision


@dataclass(frozen=True)
class Timed:
    """A prediction, and how long its parts took."""

    prediction: Prediction
    decode_s: float
    model_s: float  # with resizing to the network's size and back


@dataclass(frozen=True, eq=False)
class Model:
    """A weights file or an ONNX file, ready to predict."""

    name: str  # unlike that of any other model
    is_onnx: bool
    predictor: Predictor
    lock: threading.Lock = field(default_factory=threading.Lock)

    def predict(self, content: bytes) -> Timed:
        """Predict the picture whose file has these bytes; raises ValueError for what is no picture, or too large.

        Others wait meanwhile, so that memory holds one picture being decoded and predicted for each model.
        """
        with self.lock:
            began = time.perf_counter()
            pixels = decode_picture(content)
            decoded = time.perf_counter()
            (prediction,) = self.predictor.predictions([pixels], Options())
            return Timed(prediction, decoded - began, time.perf_counter() - decoded)

    def warm_up(self) -> None:
        """Predict a blank picture: the first prediction of a process takes longer than the others."""
        height, width = self.predictor.header.size_px
        file = io.BytesIO()
        Image.new("RGB", (width, height)).save(file, "JPEG")
        self.predict(file.getvalue())


def load_models(paths: Sequence[Path], device: str) -> list[Model]:
    """One model for each file. Raises ValueError, as `load_predictor`, for one that cannot be used."""
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    if repeated := next((name for name in names if names.count(name) > 1), ""):
        raise ValueError(f"--weights names {repeated} twice: name each file once")
    models = []
    for name, path in zip(names, paths, strict=True):
        models.append(Model(name, path.suffix == ONNX_SUFFIX, load_predictor([path], device)))
        models[-1].warm_up()
    return models


def facts_of(model: Model) -> dict[str, Any]:
    """What the page shows of a model, as JSON."""
    header = model.predictor.header
    height, width = header.size_px
    return {
        "name": model.name,
        "label": label_of(model),
        "network": _network(header),
        "size": f"{height} x {width} px{'' if height == width else ' (height x width)'}",
        "rule": SIZE_RULES[header.fit],
        "device": _device(model),
        "numbers": [_words(row) for row in numbers(header)] or ["Its file holds no measured Dice."],
        "classes": [
            {"name": one.name, "colour": "#{:02x}{:02x}{:02x}".format(*one.colour), "counts": one.value in counted}
            for counted in [header.counted]
            for one in header.classes
        ],
    }


def label_of(model: Model) -> str:
    """The Dice that the file holds, its own or that of the run that it comes from, and the name.

    The Dice is first: a narrow chooser cuts off the end of a long name.
    """
    header = model.predictor.header
    rows = [row for row in numbers(header) if not header.measured or row.of == "this file"]
    if not rows or (len(header.runs) > 1 and not header.measured):
        return model.name
    row = min(rows, key=lambda row: SPLITS.index(row.split))
    whose = "" if header.measured else "run's "  # which may be that of a larger model, before it was made smaller
    return f"{whose}{row.split} Dice {row.dice:.4f}: {model.name}"


def _network(header: Header) -> str:
    first = header.models[0]
    name = f"{first.arch} on {first.encoder}" if first.encoder else f"{first.arch} of width {first.width}"
    return f"{len(header.models)} networks, the first {name}" if len(header.models) > 1 else name


def _device(model: Model) -> str:
    if model.is_onnx:
        return "onnxruntime on the CPU"
    precision = model.predictor.precision
    return f"{model.predictor.device}, {'float32' if precision == FLOAT32 else precision}"


def _words(row: Row) -> str:
    interval = f" (95 % interval {row.interval})" if row.interval else ""
    protocol = f", {row.protocol}" if row.protocol else ""
    return f"Dice {row.dice:.4f}{interval} on {row.split}: {row.of}{protocol}"
