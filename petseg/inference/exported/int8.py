"""Static quantisation to int8 by onnxruntime: weights per channel, activations by what calibration pictures show.

Convolutions compute with uint8 activations and int8 weights, as Jacob et al. 2018 ("Quantization and training of neural
networks for efficient integer-arithmetic-only inference") do. BatchNorm is folded into them when the graph is exported.
Activations are unsigned: with signed ones onnxruntime has no fast convolution for x86. Operators are quantised ones
(QLinearConv and so on), because pairs of QuantizeLinear and DequantizeLinear stay around padding and cost a third of
the time.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petseg.data.inputs import normalise, to_image
from petseg.inference.exported.agreement import Agreement, compare, of_logits
from petseg.inference.exported.onnx_file import OnnxModel, open_session, to_onnx, with_metadata
from petseg.inference.exported.packages import require
from petseg.inference.exported.program import Form, Program
from petseg.inference.header import Header
from petseg.inference.samples import Samples
from shards.files import write_whole

BATCH = 8  # calibration pictures that go through the network together
FORM = Form("logits", dynamic_size=False, precision="int8")


def write_int8(model: nn.Module, header: Header, samples: Samples, out: Path) -> Agreement:
    """Quantise a model with calibration pictures, and write it as an ONNX file, which appears whole.

    The agreement is with the model in float32, on the same pictures: it is for people to look at, and may be far.
    """
    content = to_int8(to_onnx(model, header, Form()), header, samples)
    exported = of_logits(OnnxModel(open_session(content, "the quantised graph"), header, FORM))
    agreement = compare(of_logits(Program(model, Form())), exported, samples, header)
    write_whole(out, content)
    return agreement


def to_int8(content: bytes, header: Header, samples: Samples) -> bytes:
    """The quantised graph of an ONNX file of the interface `logits`."""
    onnx, quantization = require("onnx"), require("onnxruntime.quantization")

    class Calibration(quantization.CalibrationDataReader):  # type: ignore[name-defined]  # a base that mypy cannot see
        """Normalised pictures, batch by batch; None after the last."""

        def __init__(self) -> None:
            self.batches = _batches(samples)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    logging.getLogger().addFilter(_is_ours)  # onnxruntime logs to the root about steps that are not needed here
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder) / "int8.onnx"
            quantization.quantize_static(
                onnx.load_model_from_string(content), path, Calibration(), per_channel=True,
                activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
                quant_format=quantization.QuantFormat.QOperator,
            )  # fmt: skip
            graph = onnx.load(path)
    finally:
        logging.getLogger().removeFilter(_is_ours)
    quantised: bytes = with_metadata(graph, header, FORM).SerializeToString()
    return quantised


def _batches(samples: Samples) -> Iterator[dict[str, Any]]:
    for images in samples.images.split(BATCH):
        yield {FORM.input: normalise(to_image(images, torch.device("cpu")), channels_last=False).numpy()}


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name != "root"
