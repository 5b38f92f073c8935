"""What an evaluation takes from the run's config, from its user, and from neither; the measuring is stood in for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from petseg import evaluate as module
from petseg.config import DataConfig, RunConfig
from petseg.config.values import with_values
from petseg.data.consent import is_known
from petseg.evaluate import Command, config_to_measure, draw_extremes, evaluate, main
from petseg.evaluation.protocol import Protocol
from petseg.run_folder.layout import CONFIG_NAME, claim_folder
from petseg.targets import TARGET_NAME

PIPE = "pipe:cat /mnt/theirs/{}"
THEIRS = with_values(
    RunConfig(), {"data.shards": PIPE, "data.cache_dir": "/theirs", "data.cache_gb": 1.0, "train.seed": 7}
)


def test_places_are_the_users_own_and_all_else_is_the_runs(tmp_path: Path) -> None:
    config = config_to_measure(THEIRS, Command(tmp_path, shards="mine", cache_dir="cache"))
    own = {"data.shards": "mine", "data.cache_dir": "cache", "data.cache_gb": DataConfig().cache_gb}
    assert config == with_values(THEIRS, own)


def test_a_strangers_command_is_run_only_with_a_word_of_the_user(tmp_path: Path) -> None:
    said = rf"^{tmp_path / CONFIG_NAME} names the shards .* not run, .*: name them by --shards, or add --allow-pipe"
    with pytest.raises(ValueError, match=said):
        config_to_measure(THEIRS, Command(tmp_path))
    assert not is_known(PIPE)
    assert config_to_measure(THEIRS, Command(tmp_path, allow_pipe=True)).data.shards == PIPE
    assert is_known(PIPE)
    assert config_to_measure(THEIRS, Command(tmp_path)).data.shards == PIPE  # from then on
    assert config_to_measure(RunConfig(), Command(tmp_path)).data.shards == "data/shards"


def test_a_run_with_classes_of_its_own_must_have_kept_them(tmp_path: Path) -> None:
    config = with_values(RunConfig(), {"data.target": "coarse.toml"})
    said = f"^{tmp_path} lacks {TARGET_NAME}, in which a run with a data.target of its own keeps it$"
    with pytest.raises(ValueError, match=said):
        config_to_measure(config, Command(tmp_path))
    (tmp_path / TARGET_NAME).touch()
    assert config_to_measure(config, Command(tmp_path)).data.target == "coarse.toml"


@pytest.mark.parametrize(("ratio", "pictures"), [(0.0, 1), (1.01, 1), (0.5, 0)])
def test_what_cannot_be_measured_is_refused(tmp_path: Path, ratio: float, pictures: int) -> None:
    Command(tmp_path, boundary_ratio=1.0, pictures=1)
    with pytest.raises(ValueError, match=r"^--(boundary-ratio|pictures) .*: must "):
        Command(tmp_path, boundary_ratio=ratio, pictures=pictures)


def test_the_command_measures_the_set_that_the_run_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(module, "evaluate", lambda *what: given.append(what))
    claim_folder(RunConfig(), "f" * 64, tmp_path)
    assert main([str(tmp_path), "--split", "val", "--cache-dir", "cache"]) == 0
    ((command, config, trained_on),) = given
    assert (command.run, command.split, trained_on) == (tmp_path, "val", "f" * 64)
    assert config == with_values(RunConfig(), {"data.cache_dir": "cache"})
    (tmp_path / "wandb").symlink_to(tmp_path)
    with pytest.raises(OSError, match="wandb"):
        main([str(tmp_path)])
    assert len(given) == 1
    assert json.loads((tmp_path / CONFIG_NAME).read_text())["identity"]["manifest_hash"] == "f" * 64


class Stage:
    """Stands in for what measures, and notes what it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, splits: tuple[str, ...], is_main: bool = True) -> None:
        self.asked: dict[str, Any] = {}
        self.parts = SimpleNamespace(is_main=is_main, bare_model="model", close=self.note("close"))
        self.manifest = SimpleNamespace(hash="f" * 64, splits=dict.fromkeys(splits))
        calibration = SimpleNamespace(fit_temperature=lambda: 1.5)
        measured = SimpleNamespace(calibration=calibration, per_image="per image")
        on_val = SimpleNamespace(fit_temperature=lambda: 2.5)
        checkpoint = SimpleNamespace(folder=Path("checkpoints/step-7"))
        for place, result in {
            "petseg.evaluate.open_store": SimpleNamespace(manifest=self.manifest),
            "petseg.run.parts.build_parts": self.parts,
            "petseg.run_folder.checkpoint.choose_checkpoint": checkpoint,
            "petseg.run_folder.restore.load_weights": None,
            "petseg.evaluation.protocol.why_not_native": "",
            "petseg.evaluation.protocol.measure_protocol": measured,
            "petseg.evaluation.protocol.calibrate": on_val,
            "petseg.evaluate.draw_extremes": "sheet",
            "petseg.metrics.overlay.save_image": None,
            "petseg.evaluation.report.report": {"content": 1},
            "petseg.tracking.evaluation.track_evaluation": None,
        }.items():
            monkeypatch.setattr(place, self.note(place.rpartition(".")[2], result))

    def note(self, name: str, result: Any = None) -> Any:
        def noted(*arguments: Any, **named: Any) -> Any:
            self.asked[name] = (*arguments, *named.items())
            return result

        return noted


def test_the_temperature_is_that_of_val_and_all_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(monkeypatch, ("train", "val", "test"))
    command = Command(tmp_path, "test", weights="last", tta="flips", keep_largest=True, boundary_ratio=0.1)
    config = with_values(RunConfig(), {"data.shards": "set", "data.cache_dir": "cache"})
    evaluate(command, config, "f" * 64)
    protocol = Protocol("flips", native=True, boundary_ratio=0.1, keep_largest=True)
    asked = stage.asked
    assert asked["open_store"] == ("set", "cache", config.data.cache_gb)
    assert asked["build_parts"][2:] == (tmp_path, ("splits", ("test", "val")))
    assert asked["choose_checkpoint"] == (tmp_path, "last")
    assert asked["load_weights"] == (Path("checkpoints/step-7"), "model")
    assert asked["measure_protocol"] == (stage.parts, "test", protocol)
    assert asked["calibrate"] == (stage.parts, "val", "flips")
    assert asked["draw_extremes"] == (stage.parts, "per image", command, protocol)
    assert asked["save_image"] == ("sheet", tmp_path / "evaluate-test.png")
    done = asked["report"][1]
    assert (done.split, done.weights, done.checkpoint, done.protocol) == ("test", "last", "step-7", protocol)
    assert (done.no_native, done.temperature) == ("", 2.5)
    assert "track_evaluation" not in asked
    assert "close" in asked
    assert not caplog.records


@pytest.mark.parametrize(
    ("split", "splits", "opened", "temperature"),
    [("val", ("val", "test"), ("val",), 1.5), ("test", ("train", "test"), ("test",), None)],
)
def test_val_is_calibrated_by_itself_and_a_set_without_val_by_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: Any, splits: tuple[str, ...], opened: tuple[str, ...],
    temperature: float | None,
) -> None:  # fmt: skip
    stage = Stage(monkeypatch, splits)
    evaluate(Command(tmp_path, split, native=False), RunConfig(), "f" * 64)
    assert stage.asked["build_parts"][3] == ("splits", opened)
    assert "calibrate" not in stage.asked
    done = stage.asked["report"][1]
    assert (done.temperature, done.no_native, done.protocol.native) == (temperature, "not asked for", False)


def test_another_set_than_the_trainings_is_told_and_other_processes_report_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(monkeypatch, ("val", "test"), is_main=False)
    evaluate(Command(tmp_path), RunConfig(), "e" * 64)
    said = "data/shards is another shard set (ffffffffff) than the run saw (eeeeeeeeee)"
    assert [record.getMessage() for record in caplog.records] == [said]
    assert {"report", "save_image", "draw_extremes"}.isdisjoint(stage.asked)
    assert "close" in stage.asked


@pytest.mark.parametrize(
    ("asked", "trained", "mode"),
    [
        ("as_trained", "online", "online"), ("as_trained", "disabled", None), ("offline", "disabled", "offline"),
        ("disabled", "online", None),
    ],
)  # fmt: skip
def test_wandb_shows_it_as_the_training_or_as_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Any, trained: str, mode: str | None
) -> None:
    stage = Stage(monkeypatch, ("val", "test"))
    config = with_values(RunConfig(), {"tracking.wandb": trained})
    evaluate(Command(tmp_path, wandb=asked), config, "f" * 64)
    assert stage.asked.get("track_evaluation") == (mode and (tmp_path, config, {"content": 1}, mode))


@pytest.mark.parametrize(("pictures", "order"), [(1, [3, 0, 2]), (2, [3, 1, 1, 0, 4, 2]), (9, [3, 1, 0, 4, 2] * 3)])
def test_the_sheet_has_rows_of_the_best_the_median_and_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: int, order: list[int]
) -> None:
    given: list[Any] = []

    def predict(parts: str, split: str, positions: list[int], protocol: Any) -> Any:
        given.append((parts, split, positions, protocol))
        return [SimpleNamespace(key=f"key{number}", overlay=lambda n=number: n) for number in positions]

    monkeypatch.setattr("petseg.evaluation.measure.predict", predict)
    monkeypatch.setattr("petseg.metrics.overlay.draw_sheet", lambda rows, columns: given.append((rows, columns)))
    dice = np.array([0.5, 0.7, 0.1, 0.9, 0.3])
    per_image: Any = SimpleNamespace(dice=dice)
    draw_extremes("parts", per_image, Command(tmp_path, "val", pictures=pictures), Protocol("flips"))  # type: ignore[arg-type]
    rows = [(f"key{number} {dice[number]:.3f}", number) for number in order]
    assert given == [("parts", "val", order, Protocol("flips")), (rows, min(pictures, 5))]
