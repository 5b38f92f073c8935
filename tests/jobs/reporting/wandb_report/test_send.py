"""The real client sends a sweep's Report to a recording server on loopback."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from jobs import report
from jobs.reporting.statistics.records import read_records
from jobs.reporting.wandb_report.client import literal
from jobs.reporting.wandb_report.send import MARK_NAME, Target, send_report, target_of, trouble, warn_about_runs
from jobs.runs.trial import Sweep
from jobs.wandb_sync.trials import NOTE_NAME
from shards.command import FAILED, INTERRUPTED, OK, WRONG_USE, Failure, Interrupted, run_command
from tests.jobs.reporting.wandb_report.online_sweep import build_sweep, content_of
from tests.wandb_server import KEY, Fault, SentRun, WandbServer


def have_runs(server: WandbServer, sweep: Sweep) -> None:
    for trial in sweep.trials:
        server.runs[trial.id] = SentRun(upserts=[{"groupName": sweep.name}])


def send(sweep: Sweep, *flags: str) -> int:
    return run_command(report.main, [str(sweep.folder), "--to", "wandb", *flags])


def grids_of(view: dict[str, Any]) -> list[dict[str, Any]]:
    blocks = json.loads(view["spec"])["blocks"]
    return [block["metadata"] for block in blocks if block["type"] == "panel-grid"]


def panels_of(grid: dict[str, Any]) -> list[dict[str, Any]]:
    return grid["panelBankSectionConfig"]["panels"]


@pytest.mark.parametrize("name", ["lab", "lr=1e-3", "it's", "a > b", 'x"y\\z', "päöts \N{DOG FACE}"])
def test_a_group_of_any_name_is_filtered_by(name: str) -> None:
    import ast

    assert ast.literal_eval(literal(name)) == name
    assert not set("=<>") & set(literal(name))  # which the package's parser changes within strings too


@pytest.mark.slow
def test_a_report_is_created_once_and_then_updated(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = build_sweep(tmp_path)
    have_runs(server, sweep)
    assert send(sweep) == OK
    out = capsys.readouterr().out
    ((name, view),) = server.views.items()
    url = f"{server.url}/lab-team/petseg/reports/petseg-sweep-lab--{name}"
    assert out == f"a new report is made\n{url}\n"
    mark = json.loads((sweep.folder / MARK_NAME).read_text())
    assert mark == {"server": server.url, "project": "petseg", "entity": "", "id": name, "url": url}
    assert view["project"] == {"id": "P", "name": "petseg", "entityName": "lab-team"}
    assert view["displayName"] == "petseg sweep lab"
    assert "unet beats resnet34_unet by 0.1000" in view["spec"]
    assert KEY not in json.dumps(view)
    check_grids(view)

    del server.runs[sweep.trials[0].id]
    view["spec"] = json.dumps(json.loads(view["spec"]) | {"discussionThreads": [{"id": "a comment"}]})
    assert send(sweep) == OK
    out = capsys.readouterr().out
    assert out == (
        "the sweep's report is updated\n"
        f"wandb has 7 of 8 trials: `python jobs/sync.py lab` sends the others\n{url}\n"
    )  # fmt: skip
    assert list(server.views) == [name]
    assert json.loads(server.views[name]["spec"])["discussionThreads"] == [{"id": "a comment"}]


def check_grids(view: dict[str, Any]) -> None:
    """As the package and wandb's own page say it."""
    cells, alone, trials = grids_of(view)
    for grid in (cells, alone, trials):
        (runs,) = grid["runSets"]
        assert [(f["key"], f["op"], f["value"]) for f in runs["filters"]["filters"]] == [
            ({"section": "run", "name": "group"}, "=", "lab"),
            ({"section": "run", "name": "jobType"}, "=", "train"),
        ]
        assert (runs["project"]["entityName"], runs["project"]["name"]) == ("lab-team", "petseg")
    assert cells["runSets"][0]["grouping"] == [
        {"section": "config", "name": "model.arch.value"},
        {"section": "config", "name": "augment.policy.value"},
    ]
    config = panels_of(cells)[0]["config"]
    assert (config["xAxis"], config["metrics"], config["groupAgg"], config["groupArea"]) == (
        "epoch", ["val/dice"], "mean", "stddev",
    )  # fmt: skip
    config = panels_of(alone)[0]["config"]
    assert (config["groupBy"], config["aggregate"], config["groupArea"]) == ("model.arch.value", True, "minmax")
    parallel, importance, media = (panel["config"] for panel in panels_of(trials))
    assert [column["accessor"] for column in parallel["columns"]] == [
        "config:model.arch.value", "config:augment.policy.value", "summary:val/dice",
    ]  # fmt: skip
    assert importance["targetKey"] == "best_dice"
    assert media["mediaKeys"] == ["val/overlays"]


def test_wrong_use(server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = build_sweep(tmp_path, **{"tracking.wandb": "offline"})
    assert send(sweep) == WRONG_USE
    assert "type `python jobs/sync.py lab` first" in capsys.readouterr().err
    for flags in (["--format", "csv"], ["--out", "x"]):
        assert send(sweep, *flags) == WRONG_USE
        assert "--format and --out are for --to file" in capsys.readouterr().err
    assert not server.views


def test_no_package_no_key_no_network(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = build_sweep(tmp_path)
    with monkeypatch.context() as without:
        without.setattr(importlib.util, "find_spec", lambda _: None)
        assert send(sweep) == WRONG_USE
    assert "--to wandb needs wandb-workspaces: pip install 'petseg[reports]'" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert send(sweep) == WRONG_USE
    assert "does not answer" in capsys.readouterr().err
    monkeypatch.delenv("WANDB_API_KEY")
    assert send(sweep) == WRONG_USE
    assert "no key for 127.0.0.1:9" in capsys.readouterr().err
    assert not (sweep.folder / MARK_NAME).exists()


def test_a_key_in_netrc_for_a_host_with_a_port(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = build_sweep(tmp_path)
    have_runs(server, sweep)
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text(f"machine {server.url.removeprefix('http://')} login me password {KEY}\n")
    assert send(sweep) == OK
    assert len(server.views) == 1


def test_the_project_of_the_runs_is_found(tmp_path: Path) -> None:
    """A note of what was sent goes before the config; two places are too many for one report."""
    sweep = build_sweep(tmp_path, **{"tracking.entity": "us"})
    records, url = read_records(sweep), "https://api.wandb.ai"
    assert target_of(sweep, records, url) == Target("petseg", "us")
    for record in records:
        note = {"url": url, "project": "pets", "entity": "them", "id": "x", "content": "y"}
        (record.trial.folder / NOTE_NAME).write_text(json.dumps(note))
    assert target_of(sweep, records, url) == Target("pets", "them")
    (records[0].trial.folder / NOTE_NAME).unlink()
    with pytest.raises(ValueError, match=r"several projects of wandb \(1 in us/petseg, 7 in them/pets\)"):
        target_of(sweep, records, url)
    assert "another sweep of that name" in " ".join(warn_about_runs(sweep, records, 9))
    assert warn_about_runs(sweep, records, 8) == ()


@pytest.mark.parametrize(
    ("error", "text", "kind"),
    [
        ("AuthenticationError", "Failed to verify credentials with https://x: HTTP 500", Interrupted),
        ("AuthenticationError", "Failed to verify credentials with https://x: returned error 401", Failure),
        ("AuthenticationError", "WANDB_API_KEY invalid: API key may only contain letters", Failure),
        ("WandbApiFailedError", "giving up after 3 attempt(s) while retrying: HTTP 429", Interrupted),
        ("WandbApiFailedError", "returned error 403: permission denied", Failure),
        ("NothingToShow", "wandb has no run of the group lab in us/petseg", ValueError),
        ("RuntimeError", "its client has ended with exit code -9", Interrupted),
    ],
)
def test_refusals_differ_from_transient_errors(error: str, text: str, kind: type, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "lab", {}, "0" * 64, "x", ())
    assert type(trouble(sweep, {"error": error, "text": text})) is kind


@pytest.mark.slow
def test_a_sweep_without_runs_in_wandb_is_refused(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its configs say online, and there was no network."""
    sweep = build_sweep(tmp_path)
    assert send(sweep) == WRONG_USE
    err = capsys.readouterr().err
    assert "wandb has no run of the group lab in lab-team/petseg: type `python jobs/sync.py lab` first" in err


@pytest.mark.slow
def test_a_new_report_is_created_if_it_was_deleted_or_the_runs_moved(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = build_sweep(tmp_path)
    have_runs(server, sweep)
    old = {"server": server.url, "project": "petseg", "entity": "", "id": "Vmlldzow", "url": "http://old"}
    (sweep.folder / MARK_NAME).write_text(json.dumps(old))
    assert send(sweep) == OK
    assert "a new report is made: the one of before, http://old, is no longer there" in capsys.readouterr().out
    (name,) = server.views
    assert json.loads((sweep.folder / MARK_NAME).read_text())["id"] == name
    (sweep.folder / MARK_NAME).write_text(json.dumps(old | {"project": "pets", "id": name}))
    server.views[name]["project"]["name"] = "pets"
    assert send(sweep) == OK
    assert "the one of before, http://old, is in another place than the runs now" in capsys.readouterr().out
    assert len(server.views) == 2


@pytest.mark.slow
def test_no_second_report_after_a_lost_answer_or_note(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = build_sweep(tmp_path)
    have_runs(server, sweep)
    server.views["V"] = {"id": "V", "displayName": "another", "project": {"name": "petseg"}}
    server.fault, server.fault_at = "lost answer", "upsertView"
    assert send(sweep) == OK
    assert not server.fault
    assert capsys.readouterr().out.startswith("the sweep's report is updated\n")
    assert len(server.views) == 2
    (sweep.folder / MARK_NAME).unlink()
    assert send(sweep) == OK
    assert len(server.views) == 2


FAULTS: list[tuple[Fault, str, int]] = [
    ("401", "Viewer", FAILED),
    ("500", "SpecificReport", INTERRUPTED),  # it may be there
    ("wrong json", "Viewer", INTERRUPTED),
]


@pytest.mark.slow
def test_faults_end_with_a_clear_message(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = build_sweep(tmp_path)
    have_runs(server, sweep)
    place = {"server": server.url, "project": "petseg", "entity": ""}
    mark = json.dumps(place | {"id": "Vmlldzow", "url": "http://old"})
    (sweep.folder / MARK_NAME).write_text(mark)
    for server.fault, server.fault_at, code in FAULTS:
        assert send(sweep) == code, (server.fault, server.fault_at)
        err = capsys.readouterr().err
        assert ("refuses the report" if code == FAILED else "the same command tries again") in err
        assert KEY not in err
        assert (sweep.folder / MARK_NAME).read_text() == mark
    server.fault = ""
    assert not server.views


@pytest.mark.parametrize("timeout_s", [0.5, pytest.param(12.0, marks=pytest.mark.slow)])
def test_a_client_that_hangs_is_ended(server: WandbServer, tmp_path: Path, timeout_s: float) -> None:
    """While it starts, and while it waits for wandb."""
    sweep = build_sweep(tmp_path)
    have_runs(server, sweep)
    server.fault, server.fault_at = "hang", "upsertView"
    with pytest.raises(Interrupted, match="no answer within"):
        send_report(sweep, read_records(sweep), content_of(sweep), timeout_s)
    assert not (sweep.folder / MARK_NAME).exists()
