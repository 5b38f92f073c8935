"""ONNX files of petseg: a graph, and in its metadata the header of the weights file and how the graph is called.

A graph that could be a stranger's is read as data: tensors outside the file are refused, no library of operators is
loaded, and inputs and outputs must be those that its metadata announce. onnxruntime then runs this graph, and a graph
can ask for any amount of time and memory.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petseg.inference.exported.packages import require
from petseg.inference.exported.program import Form, Program, dynamic_shapes, example_of, form_from_json, form_to_json
from petseg.inference.header import Header, NewerFormat, from_json, to_json
from shards.files import NotRegular, parse_json, read_regular

SUFFIX = ".onnx"
HEADER, FORM = "petseg", "petseg_form"  # entries of the metadata
OPSET = 18  # of 2022: what most runtimes have
MAKE_ONE = "make one with `python -m petseg.export`"
TYPES = {"image": "FLOAT", "pixels": "UINT8", "logits": "FLOAT", "probabilities": "FLOAT", "classes": "UINT8"}
DOMAINS = ("", "ai.onnx", "com.microsoft", "ai.onnx.ml")  # of operators; the others would need a library


class OnnxModel(nn.Module):
    """A graph with the interface `logits`, run by onnxruntime on the CPU: (B, 3, H, W) -> (B, K, H, W) float32."""

    def __init__(self, session: Any, header: Header, form: Form) -> None:
        super().__init__()
        self.session, self.size_px, self.form = session, header.size_px, form
        self.num_classes = len(header.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = (x.shape[-2], x.shape[-1])
        if not self.form.dynamic_size and size != self.size_px:
            height, width = self.size_px
            raise ValueError(
                f"this ONNX file takes {height}x{width} pixels, not {size[0]}x{size[1]}: export it with --dynamic-size"
            )
        image = x.detach().float().contiguous().cpu().numpy()
        try:
            (logits,) = self.session.run(list(self.form.outputs), {self.form.input: image})
        except Exception as error:  # onnxruntime has a class for each of its status codes
            raise ValueError(f"the ONNX file failed while onnxruntime ran it ({_line(error)}): {MAKE_ONE}") from None
        if logits.shape != (wanted := (len(x), self.num_classes, *size)):
            raise ValueError(f"the ONNX file gave logits of shape {logits.shape}, not {wanted}: {MAKE_ONE}")
        return torch.from_numpy(logits).to(x.device)


def to_onnx(model: nn.Module, header: Header, form: Form) -> bytes:
    """The content of an ONNX file. Raises ValueError if the model cannot be exported in this form."""
    require("onnx")
    require("onnxscript")
    for name in ("onnx_ir", "onnxscript"):  # which tell of each of their passes
        logging.getLogger(name).setLevel(logging.WARNING)
    program, example = Program(model, form), example_of(form, header.size_px)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own exporter
            exported = torch.onnx.export(
                program, (example,), dynamo=True, dynamic_shapes=dynamic_shapes(form), opset_version=OPSET,
                input_names=[form.input], output_names=list(form.outputs), verbose=False,
            )  # fmt: skip
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise ValueError(f"this model cannot be exported to ONNX: {_line(error)}") from None
    assert exported is not None
    return with_metadata(exported.model_proto, header, form).SerializeToString()


def with_metadata(graph: Any, header: Header, form: Form) -> Any:
    """Replace all metadata of a ModelProto by petseg's; returns the ModelProto."""
    onnx = require("onnx")
    graph.producer_name, graph.producer_version = "petseg", header.petseg
    facts = {HEADER: json.dumps(to_json(header)), FORM: json.dumps(form_to_json(form))}
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, facts)
    return graph


def load_onnx(path: Path) -> tuple[Header, OnnxModel]:
    """An ONNX file's header and its model, ready to predict on the CPU.

    Raises ValueError in one line for a file that is missing, damaged, of a later petseg, or not for prediction by
    petseg.
    """
    header, form, content = read_onnx(path)
    if form.interface != "logits":
        raise ValueError(f"{path} takes {form.interface}, for other programs: export it again without --end-to-end")
    return header, OnnxModel(open_session(content, str(path)), header, form)


def read_onnx(path: Path) -> tuple[Header, Form, bytes]:
    """Header, form and content of an ONNX file whose graph is what they say; raises as `load_onnx`."""
    onnx = require("onnx")
    try:
        content = read_regular(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file (from {Path.cwd()}); {MAKE_ONE}") from None
    except NotRegular as error:
        raise ValueError(f"{error}: {MAKE_ONE}") from None
    try:
        graph = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's, whose class depends on how it is built
        raise ValueError(f"{path} is damaged, or no ONNX file ({_line(error)}): {MAKE_ONE}") from None
    facts = {one.key: one.value for one in graph.metadata_props}
    if HEADER not in facts or FORM not in facts:
        raise ValueError(f"{path} was not written by petseg: {MAKE_ONE}")
    try:
        header = from_json(parse_json(facts[HEADER], path))
        form = form_from_json(parse_json(facts[FORM], path))
    except NewerFormat as error:
        raise ValueError(f"{path} was written by a later petseg ({error}): update petseg") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({_line(error)}): {MAKE_ONE}") from None
    if problem := _problem(graph, header, form):
        raise ValueError(f"{path} cannot be used ({problem}): {MAKE_ONE}")
    return header, form, content


def open_session(content: bytes, name: str) -> Any:
    """An InferenceSession on the CPU, with torch's number of threads, which sleep between runs."""
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what is wrong is raised
    # without it, a file that is a flatbuffer too is run as that, and none of its flatbuffer was checked
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each of its status codes
        raise ValueError(f"{name} cannot be run by onnxruntime ({_line(error)}): {MAKE_ONE}") from None


def _problem(model: Any, header: Header, form: Form) -> str:
    """What keeps a graph from being run, in words; empty if nothing does."""
    if foreign := next((one.domain for one in model.opset_import if one.domain not in DOMAINS), None):
        return f"operators of {foreign!r:.60}"
    if any(tensor.data_location or tensor.external_data for tensor in _tensors(model)):
        return "tensors outside the file"
    inputs, outputs = [one.name for one in model.graph.input], [one.name for one in model.graph.output]
    if inputs != [form.input] or outputs != list(form.outputs):
        return f"inputs {inputs!s:.60} and outputs {outputs!s:.60}"
    kinds = {number: name for name, number in require("onnx").TensorProto.DataType.items()}
    for one in (*model.graph.input, *model.graph.output):
        if (kind := kinds.get(one.type.tensor_type.elem_type, "unknown")) != TYPES[one.name]:
            return f"{one.name} of type {kind.lower()}"
    shape = [one.dim_value for one in model.graph.output[0].type.tensor_type.shape.dim]
    if len(shape) != 4 or shape[1] != len(header.classes):
        return f"{form.outputs[0]} of shape {shape!s:.60}, and {len(header.classes)} classes"
    return ""


def _tensors(model: Any) -> Iterator[Any]:
    """All tensors of a model: of its graph, of graphs within, and of its functions."""
    yield from _tensors_of(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Any) -> Iterator[Any]:
    for attribute in (one for node in nodes for one in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors_of(graph)


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
