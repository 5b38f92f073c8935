"""wandb's own page of a sweep: made once by jobs/sync.py, and what belongs to it, against a recording server."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from jobs.spec import parse_spec
from jobs.sync import page_of
from jobs.sync_page import NOTE_NAME, config_of, load_page
from jobs.sync_trials import Target
from jobs.trial import Sweep
from petseg.pruning import Hyperband
from shards.command import FAILED, INTERRUPTED, OK, WRONG_USE
from tests.jobs.test_sync import HASH, build_sweep, sync
from tests.wandb_server import KEY, WandbServer


def sweeps_of(server: WandbServer, sweep: Sweep) -> list[str]:
    """Which each run was last said to belong to."""
    said = [[upsert.get("sweep", "") for upsert in server.runs[f"lab-{trial.id}"].upserts] for trial in sweep.trials]
    return [next((name for name in reversed(names) if name), "") for names in said]


def test_a_sweep_that_is_sent_with_its_page(server: WandbServer, tmp_path: Path) -> None:
    sweep = build_sweep(tmp_path / "runs" / "lab", 1)
    assert sync(sweep, "--sweep-page") == OK
    assert list(server.sweeps) == sweeps_of(server, sweep) == ["sweep0"]
    assert server.sweeps["sweep0"]["priorRuns"] is None


@pytest.mark.slow
def test_made_once_and_joined_by_all_runs(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = build_sweep(tmp_path / "runs" / "lab", 2)
    server.sweeps["other"] = {"name": "other", "description": "by hand", "project": "pets"}
    page_flags = ("--project", "pets", "--sweep-page")
    assert sync(sweep, "--project", "pets") == OK  # before anybody asked for a page
    assert sweeps_of(server, sweep) == ["", ""]
    capsys.readouterr()
    server.fault, server.fault_at = "lost answer", "UpsertSweep"
    assert sync(sweep, *page_flags) == OK
    out = capsys.readouterr().out
    assert f"the sweep's page: {server.url}/lab-team/pets/sweeps/sweep1\n" in out
    assert "2 trials: 0 sent, 2 already there" in out
    assert "; 0 new rows" in out
    assert list(server.sweeps) == ["other", "sweep1"]
    assert sweeps_of(server, sweep) == ["sweep1", "sweep1"]

    made = server.sweeps["sweep1"]
    assert (made["project"], made["displayName"]) == ("pets", "lab")
    assert yaml.safe_load(made["config"]) == config_of(sweep)
    assert json.loads(made["priorRuns"]) == {"$or": [{"name": f"lab-{trial.id}"} for trial in sweep.trials]}
    assert [run.epochs for run in server.runs.values()] == [[1, 2, 3]] * 2
    assert KEY not in "".join(path.read_text() for path in sweep.folder.rglob("*.json"))

    asked = server.requests
    assert sync(sweep, "--project", "pets") == OK  # by the notes
    assert server.requests == asked
    (sweep.folder / NOTE_NAME).unlink()
    assert sync(sweep, *page_flags) == OK
    assert "2 trials: 0 sent, 2 already there" in capsys.readouterr().out
    assert list(server.sweeps) == ["other", "sweep1"]


def test_its_config_is_a_sweep_file(tmp_path: Path) -> None:
    """That jobs/sweep.py itself reads, and so do wandb's pages."""
    axes = {"model.arch": ["unet", "resnet34_unet"], "train.seed": [0, 1]}
    sweep = Sweep(tmp_path, "lab", axes, HASH, "x", ())
    spec = parse_spec(yaml.safe_load(yaml.safe_dump(config_of(sweep))), "other")
    assert (spec.name, spec.axes, spec.method) == ("lab", axes, "grid")
    search = config_of(replace(sweep, method="bayes", early=Hyperband(min_iter=3)))
    assert parse_spec({**search, "run_cap": 8}, "other").early == Hyperband(min_iter=3)


def test_what_cannot_have_one(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = build_sweep(tmp_path / "runs" / "lab", 2)
    config = sweep.trials[0].folder / "config.json"
    text = config.read_text()
    assert sync(replace(sweep, folder=sweep.trials[0].folder), "--sweep-page") == WRONG_USE
    assert "--sweep-page is for a sweep" in capsys.readouterr().err
    stored = json.loads(text)
    stored["config"]["tracking"]["project"] = "cats"
    config.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"several projects \(your own/cats, your own/petseg\).*--project"):
        page_of(sweep.folder, Target(server.url))
    for trial in sweep.trials:
        (trial.folder / "config.json").unlink()
    with pytest.raises(ValueError, match="no trial of lab has begun"):
        page_of(sweep.folder, Target(server.url))
    config.write_text(text)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"--sweep-page needs wandb-workspaces: pip install 'petseg\[reports\]'"):
        page_of(sweep.folder, Target(server.url))
    assert not server.requests
    (sweep.folder / NOTE_NAME).write_text("{")
    assert load_page(sweep.folder) is None


@pytest.mark.slow
def test_trouble(server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What wandb has no page of is not sent without it: the same command makes both."""
    sweep = build_sweep(tmp_path / "runs" / "lab", 1)
    for server.fault, code, words in (
        ("403", FAILED, "wandb refuses the sweep's page"),
        ("500", INTERRUPTED, "wandb did not take the sweep's page"),
    ):
        server.fault_at = "UpsertSweep"
        assert sync(sweep, "--sweep-page") == code
        assert words in capsys.readouterr().err
    server.fault = ""
    assert not server.runs
    assert not server.sweeps
