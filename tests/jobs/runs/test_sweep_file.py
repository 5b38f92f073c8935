"""sweep.json, written and read back, and what is said of one that cannot be read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.design.shard_sets import ShardSet
from jobs.runs.sweep_file import find_sweep, load_sweep, save_sweep
from jobs.runs.trial import CHAIN_NOTES, Sweep, Trial
from petseg.training.pruning import Hyperband
from tests.jobs.written_trials import sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "my lab", 2)


def content_of(sweep: Sweep) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((sweep.folder / "sweep.json").read_text())
    return content


def test_a_sweep_is_read_as_it_was_written(sweep: Sweep) -> None:
    first, second = sweep.trials
    sets = (ShardSet("0" * 16, "a", "photos", "by us", {"train": 3}, {"train val": 1}, 5), ShardSet("b", "c"))
    full = replace(
        sweep, early_stopping=Hyperband(4, eta=2.0), method="random", shard_sets=sets,
        axes={"train.seed": [0, 1], "optim.lr": [0.1, None, "x", True]},
        trials=(first, replace(second, axes={"optim.lr": 0.1}, manifest_hash="b")),
    )  # fmt: skip
    save_sweep(full)
    assert load_sweep(sweep.folder) == full
    entries = content_of(full)["trials"]
    assert [sorted(entry) for entry in entries] == [["axes", "id"], ["axes", "id", "manifest_hash"]]


def test_a_plain_sweep_has_no_more_than_earlier_versions_wrote(sweep: Sweep) -> None:
    content = content_of(sweep)
    assert sorted(content) == ["axes", "format_version", "manifest_hash", "method", "name", "shards", "trials"]
    del content["method"]
    (sweep.folder / "sweep.json").write_text(json.dumps(content))
    assert load_sweep(sweep.folder) == replace(sweep, shard_sets=(ShardSet(sweep.manifest_hash, sweep.shards),))


def test_a_folder_without_a_sweep_names_its_neighbours(sweep: Sweep) -> None:
    runs = sweep.folder.parent
    sweep_of(runs / "another", 1)
    (runs / "no sweep").mkdir()
    start = f"no sweep in {runs / 'none'}: start one with `python jobs/sweep.py`"
    with pytest.raises(ValueError, match="no sweep in") as failed:
        load_sweep(runs / "none")
    assert str(failed.value) == f"{start}, or name one of another, my lab"
    with pytest.raises(ValueError, match="no sweep in") as failed:
        load_sweep(runs / "deep" / "none")
    assert str(failed.value).endswith("`python jobs/sweep.py`")


def test_a_sweep_that_is_still_packing_is_told(tmp_path: Path) -> None:
    (tmp_path / "a lab" / CHAIN_NOTES).parent.mkdir(parents=True)
    (tmp_path / "a lab" / CHAIN_NOTES).touch()
    with pytest.raises(ValueError, match="no trials in") as failed:
        load_sweep(tmp_path / "a lab")
    look = f"python jobs/status.py '{tmp_path / 'a lab'}'"
    assert str(failed.value) == f"no trials in {tmp_path / 'a lab'} yet: `{look}` says where its chain stands"


@pytest.mark.parametrize("version", [2, "1", None])
def test_another_format_is_left_to_the_version_that_wrote_it(sweep: Sweep, version: object) -> None:
    path = sweep.folder / "sweep.json"
    path.write_text(json.dumps(content_of(sweep) | {"format_version": version}))
    with pytest.raises(ValueError, match="has format") as failed:
        load_sweep(sweep.folder)
    assert str(failed.value) == f"{path} has format {version!r}, not 1: open it with the petseg that wrote it"


TRIAL = {"id": "a", "axes": {}}


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"shards": None},
        {"manifest_hash": ["x"]},
        {"method": 7},
        {"axes": {"train.seed": [[1]]}},
        {"axes": {"train.seed": [2**63]}},
        {"axes": []},
        {"trials": [TRIAL | {"id": "../a"}]},
        {"trials": [TRIAL | {"id": ""}]},
        {"trials": [TRIAL | {"axes": {"train.seed": {}}}]},
        {"trials": [TRIAL | {"manifest_hash": 3}]},
        {"trials": [TRIAL | {"folder": "/"}]},
        {"trials": [{"id": "a"}]},
        {"shard_sets": [{"hash": "a"}]},
        {"early_terminate": {"type": "other"}},
    ],
)
def test_damage_is_named_with_what_mends_it(sweep: Sweep, change: dict[str, Any]) -> None:
    path = sweep.folder / "sweep.json"
    path.write_text(json.dumps(content_of(sweep) | change))
    with pytest.raises(ValueError, match="is damaged") as failed:
        load_sweep(sweep.folder)
    assert str(failed.value).startswith(f"{path} is damaged (")
    mended = "): delete it and run the same sweep again, which writes it anew and keeps the trials"
    assert str(failed.value).endswith(mended)


@pytest.mark.parametrize("linked", ["trials", "trials/0000000000"])
def test_trials_behind_a_link_are_refused(sweep: Sweep, tmp_path: Path, linked: str) -> None:
    path = sweep.folder / linked
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is damaged"):
        load_sweep(sweep.folder)


def test_a_sweep_is_found_by_its_folder_and_then_by_its_name(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_sweep(str(sweep.folder), Path("none")).folder == sweep.folder
    assert find_sweep("my lab", tmp_path / "runs").folder == sweep.folder
    here = sweep_of(Path("my lab"), 1)
    assert find_sweep("my lab", tmp_path / "runs").folder == here.folder


def test_a_trial_lies_in_a_folder_of_its_own(sweep: Sweep) -> None:
    first, second = load_sweep(sweep.folder).trials
    assert first == Trial("0" * 10, {"model.arch": "unet", "train.seed": 0}, sweep.folder / "trials" / ("0" * 10))
    assert second.folder == sweep.folder / "trials" / second.id
