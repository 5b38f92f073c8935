"""From the weights of runs to a file: what its header takes from which run, how it is measured, and how it is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from petseg.config import DataConfig, RunConfig
from petseg.config.values import config_to_dict, with_values
from petseg.data.consent import is_known
from petseg.evaluation.protocol import Protocol
from petseg.inference import from_runs, scores, winner
from petseg.inference.from_runs import RunWeights, combine, read_run
from petseg.inference.header import Origin, petseg_version
from petseg.inference.scores import Measurement, evaluate_model, measure_model
from petseg.inference.weights_file import read_header
from petseg.inference.winner import described, numbers_line, write_winner
from petseg.models.networks import Network
from petseg.run_folder.layout import Result, claim_folder, save_result
from shards.classes import ClassEntry
from tests.petseg.inference.test_export import UNET, header_of
from tests.petseg.small_checkpoints import save_least

CLASSES = (ClassEntry("background", 0, (0, 0, 0)), ClassEntry("cat", 1, (9, 9, 9)))


def run_of(name: str, value: float = 0.0, **values: Any) -> RunWeights:
    config = with_values(RunConfig(), {"model.width": 4} | {key.replace("__", "."): v for key, v in values.items()})
    origin = Origin(name, "f" * 64, "Somebody", f"step-{name}", {"val/dice": 0.5})
    return RunWeights(Path(name), config, CLASSES, "species", origin, {"w": torch.tensor([value])})


def test_a_header_has_the_settings_of_the_first_run_and_the_origins_of_all() -> None:
    settings = {
        "data__image_size_px": "32x64", "data__fit": "letterbox", "data__border": "bg",
        "train__mixed_precision": "bf16", "train__channels_last": False,
    }  # fmt: skip
    one = run_of("a", 1.0, **settings)
    other = run_of("b", 3.0, data__image_size_px="32x64", data__fit="letterbox", model__width=6)
    header, tensors = combine([one, other])
    assert header == replace(
        header_of(UNET, replace(UNET, width=6), classes=CLASSES), runs=(one.origin, other.origin),
        image_size_px="32x64", fit="letterbox", border="bg", mixed_precision="bf16", channels_last=False,
        code=header.code, petseg=petseg_version(),
    )  # fmt: skip
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"members.0.w": [1.0], "members.1.w": [3.0]}
    header, tensors = combine([one])
    assert (header.combined, header.models, tensors) == ("single", (UNET,), one.tensors)


def test_averaged_weights_are_of_one_network() -> None:
    header, tensors = combine([run_of("a", 1.0), run_of("b", 3.0)], average=True)
    assert (header.combined, header.models, len(header.runs)) == ("average", (UNET,), 2)
    assert tensors["w"].tolist() == [2.0]
    said = r"^a and c do not fit together \(width 4 and 6\): make one with `python -m petseg.best` of each$"
    with pytest.raises(ValueError, match=said):
        combine([run_of("a"), run_of("b"), run_of("c", model__width=6)], average=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data__image_size_px": 128}, "data.image_size_px 256 and 128"),
        ({"data__fit": "crop"}, "data.fit 'squash' and 'crop'"),
    ],
)
def test_runs_of_other_pictures_do_not_fit_together(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^a and b do not fit together \({said}\)"):
        combine([run_of("a"), run_of("b", **change)])
    classes = (CLASSES[0], ClassEntry("dog", 1, (9, 9, 9)))
    with pytest.raises(ValueError, match=r"\(classes \['background', 'cat'\] and \['background', 'dog'\]\)"):
        combine([run_of("a"), replace(run_of("b"), classes=classes)])


def test_a_run_is_read_with_the_numbers_of_its_best_weights_alone(tmp_path: Path) -> None:
    claim_folder(RunConfig(), "e" * 64, tmp_path)
    for number, best in ((1, 1), (2, 1)):
        save_least(tmp_path / "checkpoints", number, best)
    metrics = {"val/dice": 0.5, "val/temperature": float("inf")}
    save_result(Result("0123456789", metrics, 1, 2, 31, 1, "n", "cpu", 60.0, 83.0, 0.01, 84.0), tmp_path)
    best, last = (read_run(tmp_path, which) for which in ("best", "last"))
    assert (best.origin.checkpoint, best.origin.metrics) == ("step-00000001", {"val/dice": 0.5})
    assert (last.origin.checkpoint, last.origin.metrics) == ("step-00000002", {})
    assert (best.origin.manifest_hash, best.origin.attribution, best.origin.evaluations) == ("e" * 64, "", {})
    assert (best.config, best.folder, len(best.origin.trial_id)) == (RunConfig(), tmp_path, 10)
    assert best.tensors.keys() == {"weight"}
    assert config_to_dict(best.config)["data"]["shards"] == "data/shards"


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs whose weights are those of a real small network; what is measured is noted."""
    measured: list[Any] = []
    model = winner.build_network(header_of(classes=CLASSES))

    def read(folder: Path, which: str) -> RunWeights:
        measured.append((folder, which))
        return replace(run_of(folder.name, data__image_size_px=64), tensors=model.state_dict())

    def measure(model: Any, config: RunConfig, folder: Path, wanted: Measurement) -> dict[str, Any]:
        measured.append((config.data.image_size_px, folder, wanted))
        return {"split": "val", "metrics": {"val/dice": 0.75}, "dice_interval_95": None, "protocol": "by hand"}

    monkeypatch.setattr(winner, "read_run", read)
    monkeypatch.setattr(winner, "measure_model", measure)
    return measured


def test_a_file_is_measured_only_where_that_is_asked_for(
    tmp_path: Path, network: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out, wanted = tmp_path / "w.safetensors", Measurement("set", "val", "none")
    folders = [tmp_path / "a", tmp_path / "b"]
    header = write_winner(folders, out, "last", average=True, measurement=None)
    assert network == [(folder, "last") for folder in folders]
    assert header == read_header(out)
    assert header.measured == {}
    assert capsys.readouterr().out.splitlines() == [*described(header), str(out)]
    header = write_winner(folders, out, "best", average=True, measurement=wanted)
    assert network[-1] == (64, folders[0], wanted)
    assert read_header(out).measured == header.measured != {}


@pytest.mark.parametrize(
    ("name", "said"), [("w.pt", "its name must end in .safetensors"), ("x/w.safetensors", "there")]
)
def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(
    tmp_path: Path, network: list[Any], name: str, said: str
) -> None:
    with pytest.raises(ValueError, match=rf"^--out {tmp_path / name}: {said}"):
        write_winner([tmp_path / "a"], tmp_path / name, "best", average=False, measurement=None)
    assert network == []


def test_what_a_file_holds_is_told_in_a_few_lines() -> None:
    unfinished = replace(header_of().runs[0], trial_id="9", metrics={})
    measured = {
        "split": "test", "metrics": {"test/dice": 0.9, "test/native/dice": 0.875}, "dice_interval_95": [0.85, 0.95],
        "protocol": "by hand",
    }  # fmt: skip
    header = header_of(Network("fpn", 4, "bilinear", "resnet18", False), measured=measured)
    origin = replace(header.runs[0], metrics={"val/dice": 0.5, "test/dice": 0.25, "val/iou": 0.1})
    assert described(replace(header, combined="average", runs=(origin, unfinished))) == [
        "fpn on resnet18, 64 px, squash, average of 2 runs",
        "classes: background, cat, dog",
        "run 0123456789, step-00000001: val/dice 0.5000, test/dice 0.2500",
        "run 9, step-00000001: not finished",
        "measured here: test Dice 0.9000 [0.8500, 0.9500], native 0.8750 (by hand)",
    ]
    assert described(header_of())[0] == "unet, 64 px, squash"
    assert len(described(header_of())) == 3
    plain = {"split": "val", "metrics": {"val/dice": 0.5}, "dice_interval_95": None, "protocol": "by hand"}
    assert numbers_line(plain) == "val Dice 0.5000 (by hand)"


def test_a_model_is_measured_in_the_users_own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the cache that the run's config names; and the parts are closed after an error too."""
    asked: dict[str, Any] = {}

    class Parts:
        device = torch.device("cpu")

        def close(self) -> None:
            asked["closed"] = True

    class Store:
        manifest = "manifest"

    def build(config: RunConfig, store: Any, run: Path, splits: Any) -> Parts:
        asked.update(config=config, run=run, splits=splits)
        return Parts()

    def measure(parts: Any, split: str, protocol: Protocol) -> None:
        asked.update(parts=parts, split=split, protocol=protocol)
        raise RuntimeError("measured")

    monkeypatch.setattr(scores, "open_store", lambda *words: asked.update(store=words) or Store())
    monkeypatch.setattr(scores, "build_parts", build)
    monkeypatch.setattr(scores, "why_not_native", lambda manifest: why)
    monkeypatch.setattr(scores, "replace", lambda parts, bare_model: bare_model)
    monkeypatch.setattr(scores, "measure_protocol", measure)
    trained = with_values(RunConfig(), {"data.cache_dir": "theirs", "data.cache_gb": 1.0, "data.shards": "old"})
    model = torch.nn.Identity()
    shards = "pipe:cat /mnt/set/{}"
    for why in ("squashed", ""):
        with pytest.raises(RuntimeError, match="measured"):
            evaluate_model(model, trained, tmp_path, Measurement(shards, "test", "flips", "mine"))
        assert asked["protocol"] == Protocol("flips", native=not why)
    assert (asked["parts"], asked["split"]) == (model, "test")
    assert is_known(shards)
    gb = DataConfig().cache_gb
    assert asked["store"] == (shards, "mine", gb)
    own = {"data.shards": shards, "data.cache_dir": "mine", "data.cache_gb": gb}
    assert asked["config"] == with_values(RunConfig(), own)
    assert (asked["run"], asked["splits"], asked["closed"]) == (tmp_path, ("test",), True)
    monkeypatch.setattr(scores, "evaluate_model", lambda *_: {"dice": {"a": 0.5}, "metrics": {"test/dice": 0.5}})
    numbers = measure_model(model, trained, tmp_path, Measurement("set", "test", "none"))
    assert numbers == {"split": "test", **from_runs.numbers_of({"dice": {"a": 0.5}, "metrics": {"test/dice": 0.5}})}
