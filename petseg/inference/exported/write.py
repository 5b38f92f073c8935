"""Writes a model for other programs. A program that does not compute what the model does is never written."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from petseg.config.sizes import SIZE_MULTIPLE_PX
from petseg.inference.exported.agreement import (
    Agreement,
    Probabilities,
    compare,
    of_logits,
    of_pixels,
    require_agreement,
)
from petseg.inference.exported.onnx_file import OnnxModel, open_session, to_onnx
from petseg.inference.exported.program import Form, Program, dynamic_shapes, example_of, form_to_json
from petseg.inference.header import Header, to_json
from petseg.inference.samples import Samples
from shards.files import write_whole

FACTS = "petseg.json"  # in a .pt2 file: header and form


def write_onnx(model: nn.Module, header: Header, form: Form, samples: Samples, out: Path) -> Agreement:
    """Write an ONNX file, which appears whole; raises ValueError if it does not compute what the model does."""
    content = to_onnx(model, header, form)
    agreement = checked(model, run_by_onnxruntime(content, header, form), samples, header, form)
    write_whole(out, content)
    return agreement


def write_torch(model: nn.Module, header: Header, form: Form, samples: Samples, out: Path) -> Agreement:
    """Write a program of torch.export (.pt2); raises as `write_onnx`."""
    example = (example_of(form, header.size_px),)
    file = io.BytesIO()
    facts = json.dumps({"header": to_json(header), "form": form_to_json(form)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own exporter
        try:
            exported = torch.export.export(Program(model, form), example, dynamic_shapes=dynamic_shapes(form))
        except RuntimeError as error:  # torch._dynamo's are of this kind
            raise ValueError(f"torch cannot export this model: {str(error).splitlines()[0][:200]}") from None
        torch.export.save(exported, file, extra_files={FACTS: facts})
        file.seek(0)
        again = torch.export.load(file).module()
    run = of_logits(again) if form.interface == "logits" else of_pixels(again)
    agreement = checked(model, run, samples, header, form)
    write_whole(out, file.getvalue())
    return agreement


def checked(model: nn.Module, exported: Probabilities, samples: Samples, header: Header, form: Form) -> Agreement:
    """How far an exported program agrees with its model, which it must; of dynamic sizes at another size too."""
    eager = of_logits(Program(model, Form()))
    agreement = compare(eager, exported, samples, header)
    require_agreement(agreement)
    if form.dynamic_size:
        other = F.pad(samples.images[:2], (0, 0, 0, 2 * SIZE_MULTIPLE_PX, 0, SIZE_MULTIPLE_PX))
        try:
            require_agreement(compare(eager, exported, Samples(other, None), header))
        except Exception as error:  # the network's own, or onnxruntime's, which has a class for each of its codes
            height, width = other.shape[1:3]
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(
                f"this model can be exported for one size only (at {height}x{width} pixels: {why[:200]}): "
                "leave out --dynamic-size"
            ) from None
    return agreement


def run_by_onnxruntime(content: bytes, header: Header, form: Form) -> Probabilities:
    """An ONNX graph, as it is compared."""
    session = open_session(content, "the exported graph")
    if form.interface == "logits":
        return of_logits(OnnxModel(session, header, form))

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities, classes = session.run(list(form.outputs), {form.input: images.numpy()})
        return torch.from_numpy(probabilities), torch.from_numpy(classes)

    return of_pixels(run)
