"""Runs on any number of classes: scenes with a class table, and other targets of pets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from petseg.config import RunConfig
from petseg.evaluate import main
from petseg.metrics.masks import load_masks
from petseg.metrics.pixels import Counted
from petseg.run_folder.layout import Result, read_metrics
from petseg.targets.target import load_target
from petseg.training.loop import train
from shards.command import OK, WRONG_USE, run_command
from shards.pack import pack
from tests.petseg.stopped_runs import require_same_bits, stop_and_resume
from tests.scenes import Scenes
from tests.test_house import own_words

Tiny = Callable[..., RunConfig]
COARSE = '[classes]\nground = ["road"]\nthing = ["tree", "car"]\n'


@pytest.fixture(scope="session")
def scene_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 scenes of three classes, 20 of them to train on; leave them as they are."""
    root = tmp_path_factory.mktemp("scenes")
    scenes = Scenes(root / "scenes")
    scenes.add_many()
    pack(scenes.config(root / "shards"))
    return root / "shards"


@pytest.fixture
def street(tiny: Tiny, scene_shards: Path) -> Tiny:
    """A tiny config on the scenes."""
    return lambda **changes: tiny(data__shards=str(scene_shards), data__image_size_px=32, **changes)


def counts_of(folder: Path, name: str = "val/counts") -> np.ndarray:
    with np.load(folder / "per_image.npz") as arrays:
        counts: np.ndarray = arrays[name]
        return counts


def require_consistent(result: Result, folder: Path, names: tuple[str, ...]) -> None:
    """The result, the counts of the pictures and the kept masks say the same."""
    target, masks, counts = load_target(folder), load_masks(folder), counts_of(folder)
    assert target is not None
    assert masks is not None
    assert target.names == names
    assert counts.shape == (len(masks.keys), len(target.counted), 3)
    scores = Counted(counts)
    assert result.metrics["val/dice"] == pytest.approx(scores.dice.mean(), abs=1e-12)
    chosen_by = {row["epoch"]: row["val/dice"] for row in read_metrics(folder)}  # measured after each epoch
    assert chosen_by[result.best_epoch] == pytest.approx(scores.dice.mean(), abs=1e-6)
    for number, value in enumerate(target.counted):
        if scores.present[:, number].any():
            mean = np.nanmean(scores.class_dice[:, number])
            assert result.metrics[f"val/class/{names[value]}/dice"] == pytest.approx(mean, abs=1e-12)
    confusion = counts_of(folder, "val/confusion")
    assert confusion.shape == (len(target), len(target))
    assert [confusion[v, v] for v in target.counted] == counts[..., 0].sum(axis=0).tolist()
    assert {value for i in range(len(masks.keys)) for value in np.unique(masks.of(i))} <= set(range(len(target)))


@pytest.mark.parametrize("loss", ["ce", "dice", "ce_dice", "focal", "lovasz"])
def test_scenes_are_learnt_with_every_loss(street: Tiny, tmp_path: Path, loss: str) -> None:
    weights = "none" if loss in ("dice", "lovasz") else "frequency"
    changes = {"augment__policy": "strong", "train__loss": loss, "train__class_weights": weights, "train__test": True}
    result = train(street(**changes), tmp_path)
    require_consistent(result, tmp_path, ("road", "tree", "car"))
    assert 0 < result.metrics["test/dice"] < 1
    assert result.floor("val") == result.metrics["val/one_class_dice"]


@pytest.mark.parametrize(
    ("target", "border", "names"),
    [("trimap", "fg", ("background", "pet", "border")), ("species", "ignore", ("background", "cat", "dog"))],
)
def test_other_targets_of_pets(tiny: Tiny, tmp_path: Path, target: str, border: str, names: tuple[str, ...]) -> None:
    result = train(tiny(data__target=target, data__border=border), tmp_path)
    require_consistent(result, tmp_path, names)
    assert ("val/border_fg/dice" in result.metrics) == (target == "species")


def test_cats_and_dogs_together_are_pets(tiny: Tiny, tmp_path: Path) -> None:
    """The labels of each picture become one species, by its key: their pixels are those of the target pet."""
    for target in ("pet", "species"):
        train(tiny(data__target=target, train__epochs=1), tmp_path / target)
    truth = {t: counts_of(tmp_path / t)[..., [0, 2]].sum(axis=-1) for t in ("pet", "species")}
    assert truth["species"].sum(axis=1).tolist() == truth["pet"].tolist()
    assert ((truth["species"] > 0).sum(axis=1) == 1).all()


def test_a_file_merges_classes_and_is_kept_with_the_run(street: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "coarse.toml"
    path.write_text(COARSE)
    result = train(street(data__target=str(path)), tmp_path / "run")
    assert set(np.unique(counts_of(tmp_path / "run", "val/confusion") > 0)) <= {True, False}
    path.unlink()  # the run has what it needs
    assert run_command(main, [str(tmp_path / "run"), "--split", "val", "--no-native"]) == OK
    again = json.loads((tmp_path / "run" / "evaluate-val.json").read_text())
    assert again["metrics"]["val/dice"] == pytest.approx(result.metrics["val/dice"], abs=1e-6)
    assert list(again["classes"]) == ["ground", "thing"]
    (tmp_path / "run" / "target.json").unlink()
    path.write_text(COARSE)  # a config.json could be a stranger's: what it names is not read
    assert run_command(main, [str(tmp_path / "run"), "--split", "val"]) == WRONG_USE


def test_a_stopped_run_goes_on_to_the_same_weights(street: Tiny, tmp_path: Path) -> None:
    config = street(
        augment__policy="strong", train__loss="ce_dice", train__log_every=1, train__class_weights="frequency"
    )
    calm = train(config, tmp_path / "calm")
    assert stop_and_resume(config, tmp_path / "stopped", 2).metrics == calm.metrics
    require_same_bits(tmp_path / "calm", tmp_path / "stopped")


def test_evaluate_repeats_the_numbers_and_names_the_classes(
    street: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    result = train(street(), tmp_path)
    assert run_command(main, [str(tmp_path), "--split", "val", "--tta", "none"]) == OK
    out, log = capsys.readouterr()
    content = json.loads((tmp_path / "evaluate-val.json").read_text())
    assert "mean of 3 classes, 32 px, 6 pictures" in out
    assert own_words(out + log + caplog.text) == []
    assert {name: content["metrics"][name] for name in result.metrics if name.startswith("val/")} == pytest.approx(
        {name: value for name, value in result.metrics.items() if name.startswith("val/")}, abs=1e-6
    )
    assert content["metrics"]["val/native/dice"] > 0
    assert [row["pictures"] for row in content["classes"].values()] == [6, 6, 6]
    assert sum(row["share_of_pixels"] for row in content["classes"].values()) == pytest.approx(1)
    assert np.array_equal(content["confusion"]["pixels"], counts_of(tmp_path, "val/confusion"))
    assert (tmp_path / "evaluate-val.png").exists()


def test_a_set_of_other_classes_is_refused(
    street: Tiny, pet_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(street(train__epochs=1), tmp_path)
    assert run_command(main, [str(tmp_path), "--split", "val", "--shards", str(pet_shards)]) == WRONG_USE
    assert "was trained on masks of 0 road, 1 tree, 2 car, 255 ignored, and those of" in capsys.readouterr().err
