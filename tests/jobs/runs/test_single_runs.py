"""Single runs beside each other: where they stand, and how they compare."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path

import pytest

from jobs import report, status
from jobs.reporting.serve import fingerprint
from jobs.runs.single_runs import find_runs
from jobs.runs.trial import load_sweep
from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run_folder.attempts import begin_life
from petseg.run_folder.layout import claim_folder
from shards.command import OK, WRONG_USE, run_command
from tests.jobs.reporting.written_sweep import DICE, Lab, finish, place
from tests.jobs.written_trials import beat


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """The lab's twelve finished trials, as if each had been trained by hand."""
    (tmp_path / "shards").mkdir()
    sweep = Lab(tmp_path / "runs" / "lab", tmp_path / "shards").plan()
    folder = tmp_path / "runs" / "single"
    folder.mkdir()
    for trial in sweep.trials:
        finish(trial, DICE[place(trial)][trial.axes["train.seed"]])
        trial.folder.rename(folder / f"{'-'.join(place(trial))}-{trial.id}")
    return folder


def rows_of(name: str | Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    capsys.readouterr()
    assert run_command(report.main, [str(name), "--runs-dir", str(runs), "--format", "csv"]) == OK
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_they_are_compared_as_the_trials_of_a_sweep(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(single, single.parent, capsys)
    assert [(row["model.arch"], row["augment.policy"]) for row in rows] == list(DICE)
    assert [float(row["val_dice"]) for row in rows] == pytest.approx([0.901, 0.900, 0.880, 0.860])
    assert [row["seeds"] for row in rows] == ["3"] * 4
    assert rows_of("single", single.parent, capsys) == rows
    assert run_command(report.main, [str(single)]) == OK
    assert "apart" in (single / "report.html").read_text()
    assert not (single / "sweep.json").exists()


def test_status_knows_what_runs_and_what_has_stopped(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {}
    for number, name in enumerate(("running", "stopped", "claimed")):
        folders[name] = single / name
        claim_folder(with_values(RunConfig(), {"train.seed": 10 + number}), "0" * 64, folders[name])
    for name in ("running", "stopped"):
        begin_life(folders[name], first_step=0)
    long_ago = time.time() - 1e6
    (run,) = (trial for trial in find_runs(str(single), single.parent).trials if trial.id == "running")
    beat(run, epoch=4, step=7, when=time.time())
    lives = json.loads((folders["stopped"] / "lives.json").read_text())
    (folders["stopped"] / "lives.json").write_text(json.dumps([lives[0] | {"time": long_ago}]))
    assert run_command(status.main, [str(single), "--json"]) == OK
    document = json.loads(capsys.readouterr().out)
    assert {state: count for state, count in document["counts"].items() if count} == {
        "running": 1,
        "interrupted": 1,
        "planned": 1,
        "done": 12,
    }
    states = {one["id"]: one for one in document["trials"]}
    assert (states["running"]["state"], states["running"]["step"]) == ("running", 7)
    assert states["stopped"]["state"] == "interrupted"
    assert run_command(status.main, [str(single)]) == OK
    assert "interrupted: no sign of life for" in capsys.readouterr().out


def test_runs_on_several_sets_are_told_apart(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, path in enumerate(sorted(single.glob("*/config.json"))):
        content = json.loads(path.read_text())
        if number % 2:
            content["identity"]["manifest_hash"] = "f" * 64
            content["config"]["data"]["shards"] = "data/other"
        path.write_text(json.dumps(content))
    sweep = find_runs(str(single), single.parent)
    assert [one.location for one in sweep.shard_sets] == [str(single.parents[1] / "shards"), "data/other"]
    assert {row["data.shards"] for row in rows_of(single, single.parent, capsys)} == {
        str(single.parents[1] / "shards"),
        "data/other",
    }


def test_what_is_no_run_is_left_out(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(single, single.parent, capsys)
    for number, content in enumerate(("", "{}", "[]", '{"identity": 3, "config": {}}')):
        broken = single / f"broken-{number}"
        broken.mkdir()
        (broken / "config.json").write_text(content)
    assert rows_of(single, single.parent, capsys) == rows


def test_names_that_lead_nowhere(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = next(single.iterdir())
    assert run_command(report.main, [str(run)]) == WRONG_USE
    assert f"{run} is one run: name the folder that it lies in, {single}" in capsys.readouterr().err
    assert run_command(status.main, ["none", "--runs-dir", str(single.parent)]) == WRONG_USE
    assert f"no sweep in {single.parent / 'none'}" in capsys.readouterr().err
    assert find_runs("lab", single.parent) == load_sweep(single.parent / "lab")


def test_a_served_page_sees_their_changes(single: Path) -> None:
    before = fingerprint(single)
    assert fingerprint(single) == before
    (next(single.iterdir()) / "metrics.jsonl").write_text("{}\n")
    assert fingerprint(single) != before
