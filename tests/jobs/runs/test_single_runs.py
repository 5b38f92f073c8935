"""Single runs beside each other: where they stand, and how they compare."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from types import ModuleType

import pytest

from jobs import cancel, clean, logs, report, retry, status, sync, usage
from jobs.reporting.serve import fingerprint
from jobs.runs.single_runs import find_runs
from jobs.runs.sweep_file import load_sweep
from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run_folder.attempts import begin_attempt
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


def test_a_run_that_was_resumed_counts_by_its_last_attempt(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = single / "resumed"
    claim_folder(with_values(RunConfig(), {"train.seed": 20}), "0" * 64, folder)
    for first_step in (0, 5, 9):
        begin_attempt(folder, first_step=first_step)
    attempts = json.loads((folder / "lives.json").read_text())
    hosts = ("node1", "node2", "node3")
    (folder / "lives.json").write_text(
        json.dumps([one | {"host": host} for one, host in zip(attempts, hosts, strict=True)])
    )
    assert run_command(status.main, [str(single), "--json"]) == OK
    (row,) = (row for row in json.loads(capsys.readouterr().out)["trials"] if row["state"] == "running")
    assert (row["restarts"], row["host"], row["val_dice"]) == (2, "node3", None)


def test_status_knows_what_runs_and_what_has_stopped(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {}
    for number, name in enumerate(("running", "stopped", "claimed")):
        folders[name] = single / name
        claim_folder(with_values(RunConfig(), {"train.seed": 10 + number}), "0" * 64, folders[name])
    for name in ("running", "stopped"):
        begin_attempt(folders[name], first_step=0)
    long_ago = time.time() - 1e6
    (run,) = (trial for trial in find_runs(str(single), single.parent).trials if trial.id == "running")
    beat(run, epoch=4, step=7, when=time.time())
    attempts = json.loads((folders["stopped"] / "lives.json").read_text())
    (folders["stopped"] / "lives.json").write_text(json.dumps([attempts[0] | {"time": long_ago}]))
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


def test_folders_without_a_run_are_left_out(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


@pytest.mark.parametrize(
    ("command", "words", "instead"),
    [
        (logs, ["unet"], "went to the terminal or the job that ran them"),
        (retry, ["--failed"], "the command that started one resumes it"),
        (cancel, ["--yes"], "Ctrl-C where it runs, or scancel"),
        (usage, [], "what they held is noted nowhere"),
        (sync, [], "name the folder of one of them"),
    ],
)
def test_commands_about_jobs_say_what_does_for_single_runs(
    single: Path, capsys: pytest.CaptureFixture[str], command: ModuleType, words: list[str], instead: str
) -> None:
    for name in (str(single), "single"):
        assert run_command(command.main, [name, *words, "--runs-dir", str(single.parent)]) == WRONG_USE
        said = capsys.readouterr().err
        assert f"{single} holds runs of petseg/train.py, not a sweep: " in said
        assert instead in said
        assert f"`python jobs/status.py {single}`" in said


@pytest.mark.parametrize("command", [logs, retry, cancel, usage])
def test_commands_about_jobs_know_one_single_run(
    single: Path, capsys: pytest.CaptureFixture[str], command: ModuleType
) -> None:
    run = next(single.iterdir())
    words = {logs: ["unet"], retry: ["--failed"]}.get(command, [])
    assert run_command(command.main, [str(run), *words]) == WRONG_USE
    assert f"{run} is a run of petseg/train.py, not a sweep: " in capsys.readouterr().err


@pytest.mark.parametrize("command", [logs, retry, cancel, usage, clean, status])
def test_the_folder_of_a_trial_leads_to_its_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: ModuleType
) -> None:
    (tmp_path / "shards").mkdir()
    lab = Lab(tmp_path / "runs" / "lab", tmp_path / "shards")
    trial = lab.plan().trials[0]
    finish(trial, DICE[place(trial)][trial.axes["train.seed"]])
    words = {logs: ["unet"], retry: ["--failed"]}.get(command, [])
    assert run_command(command.main, [str(trial.folder), *words]) == WRONG_USE
    assert f"{trial.folder} lies in the sweep {lab.folder}: name that" in capsys.readouterr().err


def test_clean_frees_the_checkpoints_of_single_runs_but_follows_no_link(
    single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, linked = sorted(single.iterdir())[:2]
    for folder in (run, linked):
        for step in (1, 2):
            checkpoint = folder / "checkpoints" / f"step-{step:08}"
            checkpoint.mkdir(parents=True, exist_ok=True)
            (checkpoint / "model.safetensors").write_bytes(bytes(1000))
            (checkpoint / "state.json").write_text(json.dumps({"best": {"step": 1}}))
    elsewhere = linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(elsewhere)
    assert run_command(clean.main, [str(single), "--older-than", "0m"]) == OK
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001"]
    assert len(list((elsewhere / "checkpoints").iterdir())) == 2
    assert "1 files and folders" in capsys.readouterr().out
