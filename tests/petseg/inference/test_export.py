"""Exported models: they compute what the model does, and carry its header."""

from __future__ import annotations

import json
import re
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

import petseg
from petseg.export import main
from petseg.inference.exported.agreement import compare, of_pixels, require_agreement
from petseg.inference.exported.hub import model_card
from petseg.inference.exported.onnx_file import load_onnx
from petseg.inference.exported.program import Form, form_from_json
from petseg.inference.header import Header, Origin, from_json, to_json
from petseg.inference.samples import drawn_samples
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
        pytest.param(replace(UNET, up="transposed"), id="transposed", marks=pytest.mark.slow),
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
@pytest.mark.parametrize(
    ("arch", "encoder", "size_px", "any_size"),
    [
        ("manet", "resnet18", 64, True),
        ("pspnet", "resnet18", 64, False),  # its pooling to a fixed number of cells is traced for one size
        ("dpt", "tu-vit_tiny_patch16_224", 224, False),  # a transformer with positions for one size
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_decoders_and_twelve_classes(
    weights: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arch: str, encoder: str,
    size_px: int, any_size: bool,
) -> None:  # fmt: skip
    """Export compares the graph with the model, and refuses any size where that is another function."""
    classes = tuple(ClassEntry(f"class {i}", i, (20 * i, 0, 255 - 20 * i)) for i in range(12))
    network = Network(arch, 4, "bilinear", encoder, False)
    source = weights(network, classes=classes, target="as_packed", image_size_px=size_px)
    _, model = load_onnx(export(source, tmp_path / "winner.onnx"))
    eager = petseg.load(source, device="cpu").model.float()
    image = torch.randn(1, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(image), eager(image), atol=1e-3, rtol=1e-3)
    out = tmp_path / "any-size.onnx"
    words = ["--weights", str(source), "--out", str(out), "--pictures", "2", "--dynamic-size"]
    assert run_command(main, words) == (OK if any_size else WRONG_USE)
    assert out.exists() == any_size
    assert any_size or "leave out --dynamic-size" in capsys.readouterr().err


@pytest.mark.slow
def test_a_program_of_torch_export(weights: Callable[..., Path], tmp_path: Path) -> None:
    out = export(weights(), tmp_path / "winner.pt2", "--dynamic-size", "--end-to-end")
    facts = {"petseg.json": ""}
    program = torch.export.load(out, extra_files=facts).module()
    told = json.loads(facts["petseg.json"])
    assert from_json(told["header"]) == header_of()
    assert form_from_json(told["form"]) == Form("pixels", dynamic_size=True)  # how the program is called
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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.34], ids=str)
def test_a_program_that_gives_other_probabilities_is_refused(value: float) -> None:
    """NaN too, which no comparison with a number finds."""
    header = header_of()
    model, exported = (lambda x, p=p: torch.full((len(x), 3, 64, 64), p) for p in (1 / 3, value))
    with pytest.raises(ValueError, match=r"differs from its model by (nan|inf|0.00667) in a probability"):
        require_agreement(compare(model, exported, drawn_samples(header, 3), header))


def test_classes_of_an_exported_program_are_the_most_probable_ones() -> None:
    probabilities = torch.tensor([0.2, 0.7, 0.1]).view(1, 3, 1, 1)
    right, wrong = (torch.full((1, 1, 1), value, dtype=torch.uint8) for value in (1, 0))
    assert torch.equal(of_pixels(lambda _: (probabilities, right))(torch.zeros(1)), probabilities)
    with pytest.raises(ValueError, match="are not its most probable ones: nothing was written"):
        of_pixels(lambda _: (probabilities, wrong))(torch.zeros(1))


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
    evil = "x | y\n# <script>alert(1)</script> [go](https://evil) www.evil.example ---"
    classes = (ClassEntry("background", 0, (0, 0, 0)), ClassEntry(evil, 1, (1, 2, 3)))
    origin = Origin(evil, "f" * 64, evil, evil, {}, {"val": {"metrics": {"val/dice": 0.5}, "protocol": evil}})
    card = model_card(replace(header_of(), classes=classes, runs=(origin,), petseg=evil))
    assert "<script>" not in card
    assert "\n# x" not in card
    assert "](" not in card
    assert "www." not in re.sub(r"`[^`]*`", "", card)  # the hub makes links of such names, but not within code
    assert card.count("\n---\n") == 1


def test_missing_packages_are_named(
    weights: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert run_command(main, ["--weights", str(weights()), "--out", str(tmp_path / "winner.onnx")]) == WRONG_USE
    assert "ONNX files need onnx: pip install 'petseg[export]'" in capsys.readouterr().err
