"""What is told of a report that was sent, and what is kept of it, with a client that answers at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from jobs.reporting.statistics.records import Record
from jobs.reporting.wandb_report import send
from jobs.reporting.wandb_report.client import Saved
from jobs.reporting.wandb_report.content import Content
from jobs.reporting.wandb_report.send import (
    LOCK_NAME,
    MARK_NAME,
    Sent,
    Target,
    describe,
    read_mark,
    send_report,
    target_of,
    trouble,
    warn_about_runs,
)
from jobs.runs.trial import Sweep, Trial
from jobs.state.trial_status import TrialStatus
from shards.command import Interrupted

URL = "https://wandb.lab"
PLACE = {"server": URL, "project": "photos", "entity": "us"}
SAVED = {"url": f"{URL}/report", "id": "V", "made": "new", "runs": 2}
CONTENT = Content("title", "description", "lab")


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path, "lab", {}, "0" * 16, "x", ())


def record(rows: int = 1, **tracking: Any) -> Record:
    status = TrialStatus(Trial("x", {}, Path("none")), "done")
    return Record(status, {}, {"tracking": tracking} if tracking else None, None, [{"epoch": 1}] * rows)


ONLINE = {"wandb": "online", "project": "photos", "entity": "us"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """What the client was asked, which says that it made a new report."""
    requests: list[Mapping[str, Any]] = []

    def ask(module: str, request: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        assert (module, timeout_s) == ("jobs.reporting.wandb_report.client", 90.0)
        requests.append(request)
        return SAVED

    monkeypatch.setattr(send, "ask", ask)
    monkeypatch.setattr(send, "require_workspaces", lambda flag: None)
    monkeypatch.setattr(send, "require_wandb", lambda: "https://me:hidden@wandb.lab")
    return requests


@pytest.mark.parametrize(
    ("mark", "known_id"),
    [
        (None, ""),
        (PLACE | {"id": "V", "url": "u"}, "V"),
        (PLACE | {"id": "V", "url": "u", "project": "other"}, ""),
        (PLACE | {"id": "V", "url": "u", "entity": ""}, ""),
        (PLACE | {"id": "V", "url": "u", "server": "https://other"}, ""),
        ([1], ""),
    ],
)
def test_the_report_of_before_is_asked_for_where_the_runs_still_are(
    sweep: Sweep, asked: list[Mapping[str, Any]], mark: Any, known_id: str
) -> None:
    if mark is not None:
        (sweep.folder / MARK_NAME).write_text(json.dumps(mark))
    sent = send_report(sweep, [record(**ONLINE)] * 2, CONTENT)
    (request,) = asked
    assert request == {
        "content": {"title": "title", "description": "description", "group": "lab", "blocks": ()},
        "project": "photos", "entity": "us", "known_id": known_id,
    }  # fmt: skip
    moved = ": the one of before, u, is in another place than the runs now" if isinstance(mark, dict) else ""
    assert sent == Sent(f"{URL}/report", (f"a new report is made{moved}",))
    assert json.loads((sweep.folder / MARK_NAME).read_text()) == PLACE | {"id": "V", "url": f"{URL}/report"}


def test_two_reports_of_one_sweep_are_not_sent_at_once(sweep: Sweep, asked: list[Mapping[str, Any]]) -> None:
    with (
        FileLock(sweep.folder / LOCK_NAME),
        pytest.raises(ValueError, match=f"^another jobs/report.py sends the report of {sweep.folder}: wait for it$"),
    ):
        send_report(sweep, [record(**ONLINE)], CONTENT)
    assert asked == []


def test_an_error_leaves_the_note_as_it_was(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "require_workspaces", lambda flag: None)
    monkeypatch.setattr(send, "require_wandb", lambda: URL)
    monkeypatch.setattr(send, "ask", lambda *given: {"error": "TimeoutError", "text": "no answer\nwithin 90 s"})
    said = r"^wandb did not take the report \(TimeoutError: no answer within 90 s\): the same command tries again$"
    with pytest.raises(Interrupted, match=said):
        send_report(sweep, [record(**ONLINE)], CONTENT)
    assert read_mark(sweep.folder) == {}


@pytest.mark.parametrize(
    ("made", "mark", "words"),
    [
        ("updated", {"url": "u"}, "the sweep's report is updated"),
        ("anew", {"url": "u"}, "a new report is made: the one of before, u, is no longer there"),
        ("new", {"url": "u"}, "a new report is made: the one of before, u, is in another place than the runs now"),
        ("new", {}, "a new report is made"),
    ],
)
def test_what_became_of_the_report(made: str, mark: dict[str, str], words: str) -> None:
    assert describe(Saved("url", "V", made, 1), mark) == words


ANOTHER = "the panels show another sweep of that name too"


ANOTHER = "the panels show another sweep of that name too"


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (1, ("wandb has 1 of 2 trials: `python jobs/sync.py lab` sends the others",)),
        (2, ()),
        (3, ()),  # of the one that has not begun
        (4, (f"wandb has 4 runs of the group lab, and the sweep 3 trials: {ANOTHER}",)),
    ],
)
def test_panels_that_show_other_runs_than_the_text(sweep: Sweep, runs: int, words: tuple[str, ...]) -> None:
    assert warn_about_runs(sweep, [record(), record(), record(rows=0)], runs) == words


def test_the_words_of_a_refusal(sweep: Sweep) -> None:
    texts = [str(trouble(sweep, {"error": kind, "text": "HTTP 403\nno"})) for kind in ("CommError", "NothingToShow")]
    assert texts == [
        "wandb refuses the report (CommError: HTTP 403 no)",
        "HTTP 403 no: type `python jobs/sync.py lab` first",
    ]


def test_the_project_is_that_of_the_trials_that_were_sent(sweep: Sweep) -> None:
    offline, lost = record(wandb="offline", project="other", entity="us"), record()
    assert target_of(sweep, [offline, lost, record(**ONLINE)], URL) == Target("photos", "us")
    said = r"^no trial of lab has been sent to https://wandb\.lab \(tracking\.wandb is not online\): type "
    with pytest.raises(ValueError, match=said):
        target_of(sweep, [offline, lost], "https://me:hidden@wandb.lab")
    own = record(**ONLINE | {"entity": ""})
    with pytest.raises(ValueError, match=r"\(2 in us/photos, 1 in your own/photos\), and a report shows one: "):
        target_of(sweep, [record(**ONLINE), own, record(**ONLINE)], URL)


def test_a_note_of_another_server_is_not_of_these_runs(sweep: Sweep, tmp_path: Path) -> None:
    """The trial was sent elsewhere, and goes online by its config."""
    trial = Trial("x", {}, tmp_path)
    (tmp_path / "wandb-sync.json").write_text(json.dumps({"url": "https://other", "project": "p", "entity": "e"}))
    one = Record(TrialStatus(trial, "done"), {}, {"tracking": ONLINE}, None, [])
    assert target_of(sweep, [one], URL) == Target("photos", "us")
    assert target_of(sweep, [one], "https://me:hidden@other") == Target("p", "e")
