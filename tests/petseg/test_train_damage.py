"""Pictures that cannot be read stop a run, are counted, or are never passed over."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from petseg.config import RunConfig
from petseg.data.plan import EpochOrder, Ids, eval_plan
from petseg.run import batches
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import read_metrics
from petseg.training.loop import train
from shards.command import Failure
from shards.index import load_index
from shards.manifest import load_manifest

Tiny = Callable[..., RunConfig]


@pytest.fixture
def broken(pet_shards: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A set with two unreadable train samples, and their keys."""
    folder = Path(shutil.copytree(pet_shards, tmp_path / "broken"))
    shard = load_manifest(folder).of_split("train")[0]
    samples = load_index(folder, shard.name)[3:5]
    for sample in samples:
        with (folder / shard.name).open("r+b") as file:
            file.seek(sample.jpg.offset)
            file.write(b"\0" * 64)
    return folder, [sample.key for sample in samples]


@pytest.mark.parametrize("cache", ["none", "auto"])
def test_damaged_pictures_stop_training_and_are_named(
    tiny: Tiny, broken: tuple[Path, list[str]], tmp_path: Path, cache: str
) -> None:
    folder, keys = broken
    changes = {"data__cache": cache, "data__cache_dir": str(tmp_path / "cache"), "train__log_every": 4}
    with pytest.raises(
        Failure, match=r"2 samples of split train are unreadable \(data.max_lost_samples allows 0\)"
    ) as error:
        train(tiny(data__shards=str(folder), **changes), tmp_path / "run")
    for key in keys:
        assert f"{key} at byte " in str(error.value)
    assert "of train-000000.tar: the bytes of" in str(error.value)
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


def test_damaged_pictures_within_the_budget_are_counted(
    tiny: Tiny, broken: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, _ = broken
    config = tiny(data__shards=str(folder), data__max_lost_samples=2, data__cache_dir=str(tmp_path / "cache"))
    train(config, tmp_path / "run")
    assert [row["data/coverage"] for row in read_metrics(tmp_path / "run")] == [pytest.approx(25 / 27)] * 2


def test_one_damaged_picture_beyond_the_budget_stops_training(
    tiny: Tiny, broken: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, _ = broken
    config = tiny(data__shards=str(folder), data__max_lost_samples=1, data__cache_dir=str(tmp_path / "cache"))
    with pytest.raises(Failure, match=r"2 samples of split train are unreadable \(data.max_lost_samples allows 1\)"):
        train(config, tmp_path / "run")


def test_a_damaged_picture_of_an_evaluation_is_never_passed_over(tiny: Tiny, pet_shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pet_shards, tmp_path / "broken"))
    (folder / "val-000000.tar").unlink()
    config = tiny(data__shards=str(folder), data__max_lost_samples=9, data__cache_dir=str(tmp_path / "cache"))
    with pytest.raises(Failure, match=r"3 samples of split val are unreadable \(an evaluation must be complete\)"):
        train(config, tmp_path / "run")


def test_an_order_that_repeats_a_sample_stops_training(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with the plan: what was consumed is compared with the manifest."""
    ids = EpochOrder.ids

    def repeated(order: EpochOrder, start: int, stop: int) -> Ids:
        found = ids(order, start, stop)
        return np.where(found == 5, 6, found)

    monkeypatch.setattr(EpochOrder, "ids", repeated)
    with pytest.raises(Failure, match="the ledger of train does not balance"):
        train(tiny(), tmp_path)
    assert not list_checkpoints(tmp_path / "checkpoints")


def test_an_evaluation_that_leaves_a_sample_out_is_none(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "eval_plan", lambda size, *others: eval_plan(size - 1, *others))
    with pytest.raises(Failure, match="the ledger of val does not balance"):
        train(tiny(), tmp_path)
    assert not list_checkpoints(tmp_path / "checkpoints")


def test_a_trained_run_whose_result_and_rows_are_gone_is_named(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(), tmp_path)
    for name in ("result.json", "metrics.jsonl"):
        (tmp_path / name).unlink()
    with pytest.raises(Failure, match=rf"{tmp_path}/metrics.jsonl has no epochs.* delete {tmp_path}/checkpoints to"):
        train(tiny(), tmp_path)
