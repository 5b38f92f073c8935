"""How an exported program is called, and what of it is compared before it is written; the models are tiny."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from petseg.data.inputs import normalise, to_image
from petseg.inference.exported import write as module
from petseg.inference.exported.agreement import Agreement, of_logits
from petseg.inference.exported.int8 import FORM, _batches, _is_ours
from petseg.inference.exported.onnx_file import OnnxModel
from petseg.inference.exported.packages import require
from petseg.inference.exported.program import (
    MAX_BATCH,
    Form,
    Program,
    dynamic_shapes,
    example_of,
    form_from_json,
    form_to_json,
)
from petseg.inference.exported.write import checked, run_by_onnxruntime, write_onnx
from petseg.inference.samples import drawn_samples
from tests.petseg.inference.test_export import header_of

HEADER = header_of()


class Tiny(nn.Module):
    """Three classes, by one convolution."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("form", [Form(), Form("pixels", dynamic_size=True), Form("logits", precision="int8")], ids=str)
def test_a_form_is_read_back(form: Form) -> None:
    content = form_to_json(form)
    assert content == {"format_version": 1, **vars(form)}
    assert form_from_json(content) == form
    assert (form.input, form.outputs) == {
        "logits": ("image", ("logits",)), "pixels": ("pixels", ("probabilities", "classes")),
    }[form.interface]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "this petseg reads exports of format version 1"),
        ({}, "this petseg reads exports of format version 1"),
        (form_to_json(Form()) | {"format_version": 2}, "this petseg reads exports of format version 1"),
        ({"format_version": 1}, "how it is called: KeyError"),
        (form_to_json(Form()) | {"interface": "x"}, "how it is called: .*interface"),
        (form_to_json(Form()) | {"dynamic_size": 1}, "how it is called: .*dynamic_size"),
    ],
)
def test_a_form_that_cannot_be_is_named(content: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        form_from_json(content)


def test_a_program_is_a_copy_in_full_precision_that_evaluates() -> None:
    model = nn.Sequential(Tiny(), nn.BatchNorm2d(3)).to(torch.float16, memory_format=torch.channels_last).train()
    program = Program(model, Form())
    assert {p.dtype for p in program.parameters()} == {torch.float32}
    assert not program.model.training
    assert program.model[0].layer.weight.is_contiguous()
    assert model.training
    assert model[0].layer.weight.dtype == torch.float16
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(program(image), program.model(image))


def test_a_program_of_pixels_gives_probabilities_and_their_most_probable_classes() -> None:
    pixels = torch.randint(0, 256, (2, 8, 6, 3), dtype=torch.uint8)
    model = Tiny()
    probabilities, classes = Program(model, Form("pixels"))(pixels)
    logits = model(normalise(to_image(pixels, torch.device("cpu")), channels_last=False))
    assert torch.allclose(probabilities, logits.softmax(dim=1), atol=1e-6)
    assert torch.equal(classes, logits.argmax(dim=1).to(torch.uint8))
    assert torch.allclose(of_logits(model)(pixels), probabilities, atol=1e-6)


def test_an_example_has_two_pictures_of_the_models_size() -> None:
    assert example_of(Form(), (64, 96)).shape == (2, 3, 64, 96)
    pixels = example_of(Form("pixels", dynamic_size=True), (64, 96))
    assert (pixels.shape, pixels.dtype) == ((2, 64, 96, 3), torch.uint8)
    assert example_of(Form(), (32, 96)).shape == (2, 3, 32, 96)
    with pytest.raises(ValueError, match=r"^--dynamic-size needs a model of 64 px or more, not 32$"):
        example_of(Form(dynamic_size=True), (96, 32))


@pytest.mark.parametrize(("interface", "rows"), [("logits", 2), ("pixels", 1)])
def test_what_of_a_shape_may_change_is_the_batch_and_where_asked_for_both_sides(interface: Any, rows: int) -> None:
    (fixed,) = dynamic_shapes(Form(interface))
    assert list(fixed) == [0]
    assert (fixed[0].min, fixed[0].max) == (1, MAX_BATCH)
    (free,) = dynamic_shapes(Form(interface, dynamic_size=True))
    assert {axis: (dim.min, dim.max) for axis, dim in free.items()} == {
        0: (1, MAX_BATCH), rows: (64, 8192), rows + 1: (64, 8192),
    }  # fmt: skip
    assert free[rows] is not free[rows + 1]


@pytest.mark.parametrize("name", ["onnx_gone", "onnx_gone.part"])
def test_a_package_that_is_missing_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert require("json.decoder") is sys.modules["json.decoder"]
    with pytest.raises(ValueError, match=r"^ONNX files need onnx_gone: pip install 'petseg\[export\]'$"):
        require(name)


def test_calibration_takes_normalised_pictures_in_batches_of_eight() -> None:
    samples = drawn_samples(HEADER, 10)
    batches = list(_batches(samples))
    assert [list(one) for one in batches] == [["image"], ["image"]]
    assert [one["image"].shape for one in batches] == [(8, 3, 64, 64), (2, 3, 64, 64)]
    wanted = normalise(to_image(samples.images[8:], torch.device("cpu")), channels_last=False)
    assert torch.equal(torch.from_numpy(batches[1]["image"]), wanted)
    assert Form("logits", dynamic_size=False, precision="int8") == FORM
    kept = [name for name in ("root", "petseg", "onnx") if _is_ours(logging.makeLogRecord({"name": name}))]
    assert kept == ["petseg", "onnx"]


class Scaled:
    """A program that gives probabilities of a model, of bent logits where pictures have another size."""

    def __init__(self, model: nn.Module, elsewhere: str = "") -> None:
        self.plain, self.elsewhere, self.shapes = of_logits(model), elsewhere, list[tuple[int, ...]]()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(images.shape))
        if self.elsewhere == "error" and images.shape[1:3] != (64, 64):
            raise RuntimeError("no such size\nat line 1")
        probabilities = self.plain(images)
        return probabilities.flip(1) if self.elsewhere == "other" and images.shape[1:3] != (64, 64) else probabilities


def test_a_program_of_any_size_is_compared_at_another_one_too() -> None:
    model, samples = Tiny(), drawn_samples(HEADER, 3)
    fixed, free = Scaled(model), Scaled(model)
    assert checked(model, fixed, samples, HEADER, Form()) == Agreement(3, 0.0, 0.0, None)
    assert checked(model, free, samples, HEADER, Form(dynamic_size=True)) == Agreement(3, 0.0, 0.0, None)
    assert {shape[1:3] for shape in fixed.shapes} == {(64, 64)}
    assert free.shapes[: len(fixed.shapes)] == fixed.shapes
    others = free.shapes[len(fixed.shapes) :]
    assert {shape[1:3] for shape in others} == {(96, 128)}
    assert sum(shape[0] for shape in others) == 2


@pytest.mark.parametrize(("elsewhere", "why"), [("error", "no such size"), ("other", "the exported program differs")])
def test_a_program_that_is_right_at_one_size_only_is_refused(elsewhere: str, why: str) -> None:
    model, samples = Tiny(), drawn_samples(HEADER, 3)
    checked(model, Scaled(model, elsewhere), samples, HEADER, Form())
    said = rf"^this model can be exported for one size only \(at 96x128 pixels: {why}.*\): leave out --dynamic-size$"
    with pytest.raises(ValueError, match=said):
        checked(model, Scaled(model, elsewhere), samples, HEADER, Form(dynamic_size=True))


class Session:
    """Stands in for onnxruntime: runs a program of torch."""

    def __init__(self, program: nn.Module, form: Form) -> None:
        self.program, self.form = program, form

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
        assert outputs == list(self.form.outputs)
        found = self.program(torch.from_numpy(inputs[self.form.input]))
        return [one.detach().numpy() for one in (found if isinstance(found, tuple) else (found,))]


@pytest.mark.parametrize("form", [Form(), Form("pixels")], ids=lambda form: form.interface)
def test_a_graph_is_compared_by_its_interface_and_written_once_it_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form
) -> None:
    model, out, opened = Tiny(), tmp_path / "w.onnx", []

    def open_session(content: bytes, name: str) -> Session:
        opened.append((content, name))
        return Session(Program(model, form), form)

    monkeypatch.setattr(module, "to_onnx", lambda *_: b"graph")
    monkeypatch.setattr(module, "open_session", open_session)
    samples = drawn_samples(HEADER, 3)
    images = samples.images
    assert torch.allclose(run_by_onnxruntime(b"graph", HEADER, form)(images), of_logits(model)(images), atol=1e-6)
    found = write_onnx(model, HEADER, form, samples, out)
    assert (found.pictures, found.other_pixels, out.read_bytes()) == (3, 0.0, b"graph")
    assert opened[0] == (b"graph", "the exported graph")
    other = Tiny()
    with torch.no_grad():
        other.layer.bias[1] += 1
    with pytest.raises(ValueError, match="nothing was written"):
        write_onnx(other, HEADER, form, samples, tmp_path / "other.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["w.onnx"]


def test_a_graph_of_one_size_says_which_and_what_it_gives_is_looked_at() -> None:
    """The network's logits must be those of each pixel and class."""
    model = OnnxModel(Session(Program(Tiny(), Form()), Form()), HEADER, Form())
    image = torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last).requires_grad_()
    assert torch.allclose(model(image), Tiny()(image).detach(), atol=1e-6)
    said = r"^this ONNX file takes 64x64 pixels, not 64x96: export it with --dynamic-size$"
    with pytest.raises(ValueError, match=said):
        model(torch.rand(1, 3, 64, 96))
    free = OnnxModel(Session(Program(Tiny(), Form()), Form()), HEADER, Form(dynamic_size=True))
    assert free(torch.rand(1, 3, 64, 96)).shape == (1, 3, 64, 96)
    pooled = OnnxModel(Session(nn.AdaptiveAvgPool2d(1), Form()), HEADER, Form())
    with pytest.raises(ValueError, match=r"gave logits of shape \(2, 3, 1, 1\), not \(2, 3, 64, 64\): make one with"):
        pooled(image)
