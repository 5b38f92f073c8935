"""Exported models: they compute what the model does, carry its header, and a stranger's graph is data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from onnx import TensorProto, helper

import petseg
from petseg.export import main
from petseg.inference.exported.hub import model_card
from petseg.inference.exported.onnx_file import FORM, HEADER, load_onnx, read_onnx
from petseg.inference.exported.program import Form, form_to_json
from petseg.inference.header import Header, Origin, from_json, to_json
from petseg.inference.weights_file import build_network, load_model, save_weights
from petseg.models.networks import Ensemble, Network
from petseg.predict import main as predict
from petseg.run_folder.checkout import Checkout
from shards.classes import ClassEntry
from shards.command import OK, WRONG_USE, run_command

UNET = Network("unet", 4, "bilinear", "", False)
NAMES = ("background", "cat", "dog")
COLOURS = ((0, 0, 0), (200, 30, 30), (30, 30, 200))


def header_of(*models: Network, **changes: Any) -> Header:
    header = Header(
        models=models or (UNET,),
        combined="single" if len(models) < 2 else "ensemble",
        target="species",
        border="fg",
        classes=tuple(ClassEntry(name, i, colour) for i, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True))),
        image_size_px=64,
        fit="squash",
        mixed_precision="no",
        channels_last=True,
        runs=(Origin("0123456789", "f" * 64, "Somebody, CC BY-SA 4.0", "step-00000001", {"val/dice": 0.5}),),
        measured={},
        code=Checkout(),
        petseg="0.1.0",
    )
    return replace(header, **changes)


def settled(model: torch.nn.Module) -> torch.nn.Module:
    """BatchNorm with statistics of its own, as after training: at the beginning it changes nothing."""
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=draw) * 0.1)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=draw) + 0.5)
    return model


def write_weights(folder: Path, header: Header) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = settled(build_network(header))
    save_weights(header, model.state_dict(), folder / "winner.safetensors")
    return folder / "winner.safetensors"


@pytest.fixture
def weights(tmp_path: Path) -> Callable[..., Path]:
    """A weights file of small models with fresh weights."""
    return lambda *models, **changes: write_weights(tmp_path, header_of(*models, **changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A weights file, and its graph; leave them as they are."""
    folder = tmp_path_factory.mktemp("made")
    source = write_weights(folder, header_of())
    return source, export(source, folder / "winner.onnx")


def export(weights: Path, out: Path, *flags: str) -> Path:
    assert run_command(main, ["--weights", str(weights), "--out", str(out), "--pictures", "3", *flags]) == OK
    return out


def test_a_graph_computes_what_the_model_does_at_any_batch(made: tuple[Path, Path]) -> None:
    source, out = made
    header, model = load_onnx(out)
    assert to_json(header) == to_json(header_of())
    eager = petseg.load(source, device="cpu").model.float()
    for batch in (1, 5):
        image = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            torch.testing.assert_close(model(image), eager(image), atol=1e-4, rtol=1e-4)
    graph = onnx.load(out)
    assert not {"BatchNormalization"} & {node.op_type for node in graph.graph.node}  # folded into the convolutions


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(replace(UNET, up="transposed"), id="transposed"),
        pytest.param(Network("resnet34_unet", 8, "bilinear", "", False), id="resnet34_unet", marks=pytest.mark.slow),
    ],
)
def test_other_networks_and_end_to_end(weights: Callable[..., Path], tmp_path: Path, network: Network) -> None:
    """Pixels in, probabilities and classes out, at another size and shape than the model's own."""
    source = weights(network)
    out = export(source, tmp_path / "winner.onnx", "--end-to-end", "--dynamic-size")
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).integers(0, 256, (1, 96, 64, 3), dtype=np.uint8)
    probabilities, classes = session.run(["probabilities", "classes"], {"pixels": pixels})
    assert (probabilities.shape, classes.shape, classes.dtype) == ((1, 3, 96, 64), (1, 96, 64), np.uint8)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(probabilities.argmax(axis=1), classes)
    assert run_command(predict, ["--weights", str(out), "--out", str(tmp_path / "masks"), str(tmp_path)]) == WRONG_USE


@pytest.mark.slow
def test_encoders_of_timm_and_ensembles(weights: Callable[..., Path], tmp_path: Path) -> None:
    source = weights(UNET, Network("fpn", 4, "bilinear", "resnet18", False))
    _, model = load_onnx(export(source, tmp_path / "winner.onnx"))
    eager = petseg.load(source, device="cpu").model
    assert isinstance(eager, Ensemble)
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(image), eager(image), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_program_of_torch_export(weights: Callable[..., Path], tmp_path: Path) -> None:
    out = export(weights(), tmp_path / "winner.pt2", "--dynamic-size", "--end-to-end")
    facts = {"petseg.json": ""}
    program = torch.export.load(out, extra_files=facts).module()
    assert from_json(json.loads(facts["petseg.json"])["header"]) == header_of()
    probabilities, classes = program(torch.zeros(3, 64, 96, 3, dtype=torch.uint8))
    assert (probabilities.shape, classes.shape) == ((3, 3, 64, 96), (3, 64, 96))


def test_dice_is_compared_on_a_shard_set(
    weights: Callable[..., Path], pet_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, model = load_model(weights())
    with torch.no_grad():
        model.get_parameter("segmentation_head.bias")[1] += 1e3  # every pixel is a cat
    save_weights(header, model.state_dict(), tmp_path / "winner.safetensors")
    words = ("--shards", str(pet_shards), "--split", "test")
    export(tmp_path / "winner.safetensors", tmp_path / "winner.onnx", *words)
    out = capsys.readouterr().out
    assert "compared on 3 pictures" in out
    words = next(line for line in out.splitlines() if line.startswith("Dice")).split()
    assert 0 < float(words[1]) < 1
    assert float(words[1]) == pytest.approx(float(words[5]), abs=1e-6)
    others = weights(classes=header_of().classes[:2])
    words = ["--weights", str(others), "--out", str(tmp_path / "other.onnx"), "--shards", str(pet_shards)]
    assert run_command(main, words) == WRONG_USE
    assert "has the classes background, cat, dog, and the model background, cat" in capsys.readouterr().err


def test_what_differs_from_its_model_is_not_written(
    made: tuple[Path, Path], weights: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is that of other weights than those it is compared with."""
    monkeypatch.setattr("petseg.inference.exported.write.to_onnx", lambda *_: made[1].read_bytes())
    header, model = load_model(weights())
    with torch.no_grad():
        model.get_parameter("segmentation_head.bias")[1] += 0.01
    save_weights(header, model.state_dict(), tmp_path / "winner.safetensors")
    words = ["--weights", str(tmp_path / "winner.safetensors"), "--out", str(tmp_path / "winner.onnx")]
    assert run_command(main, words) == WRONG_USE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["winner.safetensors"]


def test_predictions_of_a_graph_are_those_of_its_model(made: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = made
    picture = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    one, other = (petseg.load(path, device="cpu").predict(picture) for path in (source, out))
    assert np.array_equal(one.mask, other.mask)
    np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)
    with pytest.raises(ValueError, match=r"takes 64x64 pixels, not .*: export it with --dynamic-size"):
        petseg.load(out).predict(picture, tta="scales")
    (tmp_path / "pictures").mkdir()
    one.overlay().save(tmp_path / "pictures" / "one.png")
    words = ["--weights", str(out), "--out", str(tmp_path / "masks"), str(tmp_path / "pictures")]
    assert run_command(predict, words) == OK
    assert (tmp_path / "masks" / "masks" / "one.png").is_file()


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


CHANGES = {
    "no metadata": (lambda m: m.metadata_props.pop(), "was not written by petseg"),
    "tensors elsewhere": (outside, "tensors outside the file"),
    "tensors elsewhere, hidden": (hidden_outside, "tensors outside the file"),
    "foreign operators": (lambda m: m.opset_import.append(helper.make_opsetid("evil", 1)), "operators of 'evil'"),
    "another input": (lambda m: setattr(m.graph.input[0], "name", "x"), r"inputs \['x'\]"),
    "other classes": (
        lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 7), "and 3 classes",
    ),
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


def test_a_folder_for_the_hub(weights: Callable[..., Path], tmp_path: Path) -> None:
    source = weights()
    assert run_command(main, ["--weights", str(source), "--out", str(tmp_path / "hub")]) == OK
    assert (tmp_path / "hub" / "model.safetensors").read_bytes() == source.read_bytes()
    assert from_json(json.loads((tmp_path / "hub" / "config.json").read_text())) == header_of()
    card = (tmp_path / "hub" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert (facts["library_name"], facts["license"]) == ("petseg", "cc-by-sa-4.0")
    assert "| run 0123456789 | val | 0.5000 |" in text
    assert "| 2 | dog | \\#1e1ec8 |" in text
    assert petseg.load(tmp_path / "hub" / "model.safetensors").classes == NAMES
    assert run_command(main, ["--weights", str(source), "--out", str(tmp_path / "hub")]) == WRONG_USE  # holds a card


def test_a_card_shows_a_strangers_words_as_they_are() -> None:
    evil = "x | y\n# <script>alert(1)</script> [go](https://evil) ---"
    classes = (ClassEntry("background", 0, (0, 0, 0)), ClassEntry(evil, 1, (1, 2, 3)))
    origin = Origin(evil, "f" * 64, evil, evil, {}, {"val": {"metrics": {"val/dice": 0.5}, "protocol": evil}})
    card = model_card(replace(header_of(), classes=classes, runs=(origin,), petseg=evil))
    assert "<script>" not in card
    assert "\n# x" not in card
    assert "](" not in card
    assert card.count("\n---\n") == 1


def test_missing_packages_are_named(
    weights: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert run_command(main, ["--weights", str(weights()), "--out", str(tmp_path / "winner.onnx")]) == WRONG_USE
    assert "ONNX files need onnx: pip install 'petseg[export]'" in capsys.readouterr().err
