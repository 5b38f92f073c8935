"""A stranger's ONNX file is data: it is refused in one line, and what was checked is what runs."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

import petseg
from petseg.inference.exported.onnx_file import FORM, HEADER, load_onnx, read_onnx
from petseg.inference.exported.program import Form, form_to_json
from petseg.inference.header import to_json
from tests.petseg.inference.test_export import header_of


def graph_with(tmp_path: Path, change: Callable[[Any], None]) -> Path:
    """A graph that copies its input, with petseg's metadata, and a change."""
    shape = ["batch", 3, 64, 64]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "logits")]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "zero"], ["logits"])], "g", *([t] for t in tensors), [zero]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    facts = {HEADER: json.dumps(to_json(header_of())), FORM: json.dumps(form_to_json(Form()))}
    helper.set_model_props(model, facts)
    change(model)
    path = tmp_path / "strange.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def outside(model: Any) -> None:
    (tensor,) = model.graph.initializer
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def hidden_outside(model: Any) -> None:
    """In a constant of a graph within a node."""
    inner = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.FLOAT, [1], [0.0]))
    inner.attribute[0].t.data_location = TensorProto.EXTERNAL
    inner.attribute[0].t.external_data.add(key="location", value="/etc/passwd")
    branch = helper.make_graph([inner], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["condition"], ["unused"], then_branch=branch, else_branch=branch))


def as_type(part: str, kind: int) -> Callable[[Any], None]:
    return lambda model: setattr(getattr(model.graph, part)[0].type.tensor_type, "elem_type", kind)


CHANGES = {
    "no metadata": (lambda m: m.metadata_props.pop(), "was not written by petseg"),
    "tensors elsewhere": (outside, "tensors outside the file"),
    "tensors elsewhere, hidden": (hidden_outside, "tensors outside the file"),
    "foreign operators": (lambda m: m.opset_import.append(helper.make_opsetid("evil", 1)), "operators of 'evil'"),
    "another input": (lambda m: setattr(m.graph.input[0], "name", "x"), r"inputs \['x'\]"),
    "other classes": (
        lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 7), "and 3 classes",
    ),
    "an input of another type": (as_type("input", TensorProto.FLOAT16), "image of type float16"),
    "an output of another type": (as_type("output", TensorProto.STRING), "logits of type string"),
    "no such operator": (lambda m: setattr(m.graph.node[0], "op_type", "Nonsense"), "cannot be run by onnxruntime"),
    "a later form": (
        lambda m: helper.set_model_props(m, {HEADER: json.dumps(to_json(header_of())), FORM: '{"format_version": 2}'}),
        "format version 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_strange_graph_gets_one_line(tmp_path: Path, name: str) -> None:
    change, words = CHANGES[name]
    path = graph_with(tmp_path, change)
    with pytest.raises(ValueError, match=words) as error:
        load_onnx(path)
    assert "\n" not in str(error.value)


def test_the_strange_graph_without_a_change_runs(tmp_path: Path) -> None:
    _, model = load_onnx(graph_with(tmp_path, lambda _: None))
    image = torch.ones(1, 3, 64, 64)
    assert torch.equal(model(image), image)


def test_no_onnx_file_at_all(tmp_path: Path) -> None:
    for content, words in ((b"", "was not written by petseg"), (b"\xff" * 99, "damaged, or no ONNX file")):
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read_onnx(tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="there is no such file"):
        read_onnx(tmp_path / "none.onnx")


def then(*operators: tuple[str, dict[str, Any]]) -> Callable[[Any], None]:
    """Operators between the sum and the output."""

    def change(model: Any) -> None:
        nodes = model.graph.node
        for kind, values in operators:
            nodes[-1].output[0] = f"{kind}_in"
            nodes.append(helper.make_node(kind, [f"{kind}_in"], ["logits"], **values))

    return change


def free_size(model: Any) -> None:
    for dim in model.graph.output[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()


def pooled(model: Any) -> None:
    """One value for each class, where logits of all pixels are announced."""
    then(("GlobalAveragePool", {}))(model)
    free_size(model)


def reshaped(model: Any) -> None:
    """To another number of elements, which shows only when it runs."""
    model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [4], [7, 3, 64, 65]))
    model.graph.node[0].output[0] = "sum"
    model.graph.node.append(helper.make_node("Reshape", ["sum", "shape"], ["logits"]))
    free_size(model)


RUNS = {"one value for each class": (pooled, "gave"), "an operator that fails": (reshaped, "while onnxruntime ran it")}


@pytest.mark.parametrize("name", RUNS)
def test_a_graph_that_goes_wrong_when_it_runs_gets_one_line(tmp_path: Path, name: str) -> None:
    change, words = RUNS[name]
    path = graph_with(tmp_path, change)
    with pytest.raises(ValueError, match=words) as error:
        petseg.load(path, device="cpu").predict(np.zeros((50, 70, 3), np.uint8))
    assert "\n" not in str(error.value)


def ort_format(folder: Path, graph: Path) -> bytes:
    """A graph as a flatbuffer, onnxruntime's own format."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "graph.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return (folder / "graph.ort").read_bytes()


def varint(number: int) -> bytes:
    low = []
    while number > 127:
        low.append(number & 127 | 128)
        number >>= 7
    return bytes([*low, number])


def test_the_graph_that_was_checked_is_the_one_that_runs(tmp_path: Path) -> None:
    """Two graphs in a file: as protobuf one that adds 0, and as a flatbuffer, which no check sees, one that adds 5."""
    tmp_path.joinpath("five").mkdir()
    five = graph_with(tmp_path / "five", lambda model: model.graph.initializer[0].float_data.__setitem__(0, 5.0))
    flat = ort_format(tmp_path, five)
    harmless = graph_with(tmp_path, lambda _: None).read_bytes()
    # a flatbuffer begins with the place of its table and its name: protobuf reads two unknown fields, then a third that
    # holds all the rest
    start = bytes([0x78, 0x00, 0x49, 0x00])  # field 15 = 0, and field 9 of the next eight bytes
    moved = struct.unpack("<I", start)[0] - struct.unpack("<I", flat[:4])[0]
    rest = len(flat) + moved
    start += b"ORTM" + bytes(3)
    start += b"\x7a" + varint(rest - len(start) - 1 - len(varint(rest)))
    path = tmp_path / "two.onnx"
    path.write_bytes(start + bytes(8 + moved - len(start)) + flat[8:] + harmless)
    bare = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    image = torch.ones(1, 3, 64, 64)
    assert bare.run(None, {"image": image.numpy()})[0].max() == 6  # onnxruntime alone takes the flatbuffer
    _, model = load_onnx(path)
    assert torch.equal(model(image), image)
