"""Numbers of models beside each other: of stand-ins with known Dice, and what a process says of its memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from petseg.inference import points as module
from petseg.inference.from_runs import interval
from petseg.inference.point_files import Point, Points, Speed
from petseg.inference.points import _difference, _parameters, _picture, _seconds, cpu_name, measure_points
from petseg.inference.predictor import Options, Predictor
from petseg.inference.scores import Measurement
from tests.petseg.inference.test_export import UNET, header_of

DICE = {"a": {"x": 0.5, "y": 0.75}, "b": {"x": 0.75, "y": 0.75}}
WANTED = Measurement("set", "test", "none")


def test_each_model_has_its_own_numbers_and_the_first_is_compared_with_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("a", 1_500_000), ("b", 250_000)):
        (tmp_path / name).write_bytes(bytes(size))
    asked: list[Any] = []

    def load(paths: Sequence[Path], device: str) -> Any:
        asked.append((paths, device))
        return SimpleNamespace(classes=("x", "y"), name=paths[0].name)

    def evaluate(predictor: Any, wanted: Measurement) -> dict[str, Any]:
        asked.append(wanted)
        return {"dice": DICE[predictor.name], "protocol": "by hand", "split": "test", "manifest_hash": "hash"}

    def speeds(predictors: Sequence[Any], repeats: int) -> list[Speed]:
        asked.append(([one.name for one in predictors], repeats))
        return [Speed(1.0, 2.0), Speed(3.0, 4.0)]

    monkeypatch.setattr(module, "load_predictor", load)
    monkeypatch.setattr(module, "_evaluate", evaluate)
    monkeypatch.setattr(module, "measure_speeds", speeds)
    monkeypatch.setattr(module, "peak_memory_mb", lambda path: {"a": 5.0, "b": 6.0}[path.name])
    monkeypatch.setattr(module, "_parameters", lambda one: {"a": 70, "b": 80}[one.name])
    monkeypatch.setattr(module, "cpu_name", lambda: "A CPU")
    found = measure_points([tmp_path / "a", tmp_path / "b"], WANTED, repeats=7)
    first = Point("a", 0.625, interval([0.5, 0.75]), None, 1.5, 70, Speed(1.0, 2.0), 5.0)
    difference = [0.125, *(interval([0.25, 0.0]) or [])]
    second = Point("b", 0.75, [0.75, 0.75], difference, 0.25, 80, Speed(3.0, 4.0), 6.0)
    assert found == Points("by hand", "test", "hash", "A CPU", torch.get_num_threads(), (first, second))
    assert asked[:2] == [([tmp_path / name], "cpu") for name in ("a", "b")]
    assert asked[2:] == [WANTED, WANTED, (["a", "b"], 7)]


def test_dice_is_that_of_an_evaluation_in_a_folder_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def evaluate(model: str, config: str, folder: Path, wanted: Measurement) -> dict[str, Any]:
        given.extend([model, config, folder.is_dir(), folder, wanted])
        return {"dice": {}}

    monkeypatch.setattr(module, "config_of", lambda header, shards: f"{header} on {shards}")
    monkeypatch.setattr(module, "evaluate_model", evaluate)
    predictor = cast(Predictor, SimpleNamespace(model="model", header="header"))
    assert module._evaluate(predictor, WANTED) == {"dice": {}}
    (folder,) = (one for one in given if isinstance(one, Path))
    assert given == ["model", "header on set", True, folder, WANTED]
    assert not folder.exists()


def test_a_difference_is_of_the_same_pictures() -> None:
    other = {"y": 0.5, "x": 0.75}
    assert _difference(DICE["b"], other) == [0.125, *(interval([0.0, 0.25]) or [])]
    assert _difference({"x": 0.5}, {"x": 0.25}) is None


def test_pictures_have_the_models_size_and_are_the_same_each_time() -> None:
    predictor = cast(Predictor, SimpleNamespace(header=header_of(image_size_px="32x64")))
    one, again, other = (_picture(predictor, seed) for seed in (0, 0, 1))
    assert (one.shape, one.dtype) == ((32, 64, 3), np.uint8)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert (one.min(), one.max()) == (0, 255)


def test_parameters_are_counted_without_building_a_network() -> None:
    alone = cast(Predictor, SimpleNamespace(header=header_of()))
    both = cast(Predictor, SimpleNamespace(header=header_of(UNET, UNET)))
    assert _parameters(both) == 2 * _parameters(alone) > 0


def test_a_batch_is_timed_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.5])
    asked: list[Any] = []

    def predictions(pictures: Sequence[Any], options: Options) -> Any:
        asked.append((pictures, options))
        yield from pictures

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    assert _seconds(cast(Predictor, SimpleNamespace(predictions=predictions)), ["a", "b"]) == 2.5  # type: ignore[list-item]
    assert asked == [(["a", "b"], Options(batch_size=8))]


STATUS = "Name:\tpython\nVmPeak:\t  999 kB\nVmHWM:\t{} kB\nVmRSS:\t  1 kB\n"


def test_memory_is_counted_from_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's count is set back first; a batch of pictures is predicted."""
    events: list[Any] = []
    peaks = iter([2048, 7168])

    class Proc(type(tmp_path)):  # type: ignore[misc]
        def write_text(self, text: str) -> int:
            events.append((str(self), text))
            return len(text)

        def read_text(self) -> str:
            events.append(str(self))
            return STATUS.format(next(peaks))

    def predictions(pictures: Sequence[Any], options: Options) -> Any:
        yield events.append((len(pictures), options.batch_size))

    def load(paths: Sequence[Path], device: str) -> Any:
        events.append(([str(path) for path in paths], device))
        return SimpleNamespace(header=header_of(), predictions=predictions)

    monkeypatch.setattr(module, "Path", Proc)
    monkeypatch.setattr(module, "load_predictor", load)
    assert module._grown_mb("w.safetensors") == 5.0
    status = "/proc/self/status"
    assert events == [("/proc/self/clear_refs", "5"), status, (["w.safetensors"], "cpu"), (8, 8), status]


def test_a_cpu_is_named_as_the_kernel_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nmodel name\t: Some CPU: 2.0 GHz\nprocessor\t: 1\nmodel name\t: Other\n"
    for content, name in ((text, "Some CPU: 2.0 GHz"), ("processor\t: 0\n", "CPU")):
        monkeypatch.setattr(module, "Path", lambda _, content=content: SimpleNamespace(read_text=lambda: content))
        assert cpu_name() == name

    def gone() -> str:
        raise OSError

    monkeypatch.setattr(module, "Path", lambda _: SimpleNamespace(read_text=gone))
    assert cpu_name() == "CPU"
