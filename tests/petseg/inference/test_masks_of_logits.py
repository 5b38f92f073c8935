"""From logits to a mask: how options, sizes and precisions are applied, with networks that give known logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from petseg.inference import predictor as module
from petseg.inference.predictor import (
    Options,
    Prediction,
    Predictor,
    choose_device,
    load_file,
    read_file_header,
    rule_of,
)
from tests.petseg.inference.test_export import header_of

CPU = torch.device("cpu")


class ByLevel(nn.Module):
    """Class 1 where the red of a pixel is far above its green, class 2 where its blue is; notes what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.dtypes: list[torch.dtype] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        weight = torch.ones(1, 1)
        self.dtypes.append((weight @ weight).dtype)
        red, green, blue = x.unbind(1)
        return torch.stack([torch.ones_like(red), red - green, blue - green], dim=1)


def predictor_of(precision: str = "no", **changes: Any) -> tuple[Predictor, ByLevel]:
    network = ByLevel()
    return Predictor(header_of(**changes), network, CPU, precision), network


def drawn(size: tuple[int, int], *areas: tuple[int, slice, slice]) -> np.ndarray:
    """A picture whose areas are red (class 1) or blue (class 2) on grey."""
    picture = np.full((*size, 3), 100, np.uint8)
    for one, rows, columns in areas:
        picture[rows, columns] = (255, 0, 0) if one == 1 else (0, 0, 255)
    return picture


SPOTS = drawn(
    (64, 64), (1, slice(0, 20), slice(0, 20)), (1, slice(40, 44), slice(40, 44)), (2, slice(50, 60), slice(0, 10))
)


def test_each_class_keeps_its_largest_part_or_parts_of_a_size() -> None:
    predictor, _ = predictor_of()

    def areas(**options: Any) -> list[int]:
        mask = predictor.predict(SPOTS, **options).mask
        return np.bincount(mask.ravel(), minlength=3).tolist()[1:]

    assert areas() == [416, 100]
    assert areas(keep_largest=True) == [400, 100]
    assert areas(min_area_px=16) == [416, 100]
    assert areas(min_area_px=17) == [400, 100]
    assert areas(min_area_px=101) == [400, 0]


def test_a_mask_has_its_pictures_size_and_its_logits_the_networks() -> None:
    predictor, network = predictor_of(image_size_px="32x64")
    found = predictor.predict([drawn((10, 20), (1, slice(0, 10), slice(0, 10))), drawn((64, 32))])
    assert [one.mask.shape for one in found] == [(10, 20), (64, 32)]
    assert [tuple(one.logits.shape) for one in found] == [(3, 32, 64)] * 2
    assert [tuple(one.shape) for one in network.seen] == [(2, 3, 32, 64)]
    assert (found[0].mask[:, :9] == 1).all()
    assert (found[0].mask[:, 11:] == 0).all()
    assert (found[1].logits.dtype, found[1].logits.device) == (torch.float32, CPU)


def test_pictures_go_through_the_network_in_batches_and_come_in_their_order() -> None:
    predictor, network = predictor_of()
    pictures = [drawn((64, 64), (1, slice(0, number + 1), slice(0, 1))) for number in range(5)]
    found = predictor.predict(tuple(pictures), batch_size=2)
    assert [int((one.mask == 1).sum()) for one in found] == [1, 2, 3, 4, 5]
    assert [len(one) for one in network.seen] == [2, 2, 1]
    assert predictor.predict(pictures[2]).mask.sum() == 3


def test_letterboxed_masks_leave_the_filling_out() -> None:
    predictor, network = predictor_of(fit="letterbox")
    found = predictor.predict(drawn((32, 64), (2, slice(0, 32), slice(0, 64))))
    assert (found.mask == 2).all()
    assert found.mask.shape == (32, 64)
    assert (found.logits.argmax(0) == 2).float().mean() == pytest.approx(0.5, abs=0.05)
    plain, _ = predictor_of(fit="squash")
    assert (plain.predict(drawn((32, 64), (2, slice(0, 32), slice(0, 64)))).logits.argmax(0) == 2).all()
    assert len(network.seen) == 1


def test_windows_have_the_networks_size_and_logits_the_pictures() -> None:
    predictor, network = predictor_of(fit="crop")
    picture = drawn((96, 130), (1, slice(90, 96), slice(120, 130)))
    found = predictor.predict(picture, batch_size=3)
    assert tuple(found.logits.shape) == (3, 96, 130)
    assert np.array_equal(found.mask == 1, picture[..., 0] == 255)
    assert {tuple(one.shape[1:]) for one in network.seen} == {(3, 64, 64)}
    assert max(len(one) for one in network.seen) == 3


@pytest.mark.parametrize(
    ("trained", "precision", "dtype"),
    [
        ("no", "as_trained", torch.float32), ("bf16", "as_trained", torch.bfloat16), ("bf16", "no", torch.float32),
        ("no", "bf16", torch.bfloat16),
    ],
)  # fmt: skip
def test_the_precision_is_that_of_the_training_unless_another_is_asked_for(
    trained: Any, precision: str, dtype: torch.dtype
) -> None:
    predictor, network = predictor_of(precision, mixed_precision=trained)
    found = predictor.predict(SPOTS)
    assert network.dtypes == [dtype]
    assert found.logits.dtype == torch.float32


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_model_evaluates_in_the_layout_that_it_was_trained_in(channels_last: bool) -> None:
    layer = nn.Conv2d(3, 3, 3).train()
    predictor = Predictor(header_of(channels_last=channels_last), nn.Sequential(layer), CPU, "no")
    assert not layer.training
    assert layer.weight.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert predictor.classes == ("background", "cat", "dog")


def test_numbers_of_a_prediction_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]], [[0.0, 4.0]]])
    mask, image = np.array([[1, 2]], np.uint8), np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    one = Prediction(image, mask, header_of(), logits)
    high = [np.exp(2) / (2 + np.exp(2)), np.exp(4) / (2 + np.exp(4))]
    assert one.probabilities[[1, 2], 0, [0, 1]] == pytest.approx(high)
    assert one.confidence == pytest.approx(sum(high) / 2)
    assert one.shares == {"background": 0.0, "cat": 0.5, "dog": 0.5}
    cut = {name: np.asarray(one.cutout(name))[0, :, 3].tolist() for name in ("", "cat", "background")}
    assert cut == {"": [255, 255], "cat": [255, 0], "background": [0, 0]}
    assert np.array_equal(np.asarray(one.cutout())[..., :3], image)
    palette = one.as_image().getpalette()
    assert palette is not None
    assert palette[:9] == [0, 0, 0, 200, 30, 30, 30, 30, 200]


def test_a_file_is_read_by_its_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX file is computed in full precision, whatever its model was trained in."""
    header, model = header_of(mixed_precision="bf16"), nn.Identity()
    monkeypatch.setattr(module, "load_model", lambda path: (header, model))
    monkeypatch.setattr(module, "load_onnx", lambda path: (header, model))
    monkeypatch.setattr(module, "read_header", lambda path: "of weights")
    monkeypatch.setattr(module, "read_onnx", lambda path: ("of a graph", "form", b""))
    assert load_file(Path("w.safetensors")) == (header, model)
    found, _ = load_file(Path("w.onnx"))
    assert found == header_of(mixed_precision="no", channels_last=False)
    assert [read_file_header(Path(name)) for name in ("w.safetensors", "w.onnx")] == ["of weights", "of a graph"]


def test_a_device_is_a_gpu_where_there_is_one_or_as_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for present, kind in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda present=present: present)
        assert choose_device("auto").type == kind
    assert choose_device("cpu") == CPU
    with pytest.raises(ValueError, match=r"^device 'nowhere': [^\n]+$"):
        choose_device("nowhere")


def test_files_that_are_used_together_share_their_classes_and_pictures() -> None:
    assert rule_of(header_of(image_size_px="32x64", fit="crop")) == "background, cat, dog at 32x64 px, crop"
    alike = header_of(mixed_precision="bf16", border="bg", target="as_packed")
    assert rule_of(alike) == rule_of(header_of())
    assert Options() == Options(tta="none", keep_largest=False, min_area_px=0, batch_size=8)
