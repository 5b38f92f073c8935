"""What wandb's package and its server are asked for a report; the tests of sending use the real package."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.reporting.wandb_report import client
from jobs.reporting.wandb_report.client import NothingToShow, Request, Saved

Calls = list[tuple[str, dict[str, Any]]]


class Column:
    """As the package's: a name in parts is nested."""

    def __init__(self, metric: Any, display_name: str = "") -> None:
        self.metric, self.display_name = metric, display_name

    def _to_model(self) -> SimpleNamespace:
        return SimpleNamespace(accessor="nested", name=self.display_name)


class Package:
    """Each of its classes is noted by its name and arguments."""

    ParallelCoordinatesPlotColumn = Column

    def __getattr__(self, name: str) -> Any:
        if name in ("Config", "SummaryMetric"):
            return lambda metric: SimpleNamespace(kind=name, name=metric)
        return lambda *first, **arguments: (name, *first, arguments) if first else (name, arguments)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "workspaces", Package)


@pytest.mark.usefixtures("package")
def test_texts_are_blocks_of_their_kind() -> None:
    blocks = ({"kind": "heading", "text": "Verdict"}, {"kind": "markdown", "text": "- a"})
    assert [client.build_block(block, "us", "photos", "lab") for block in blocks] == [
        ("H2", {"text": "Verdict"}), ("MarkdownBlock", {"text": "- a"}),
    ]  # fmt: skip


@pytest.mark.usefixtures("package")
def test_a_grid_draws_the_trials_of_its_group_two_panels_in_a_row() -> None:
    panel = {"kind": "importance", "metric": "best_dice"}
    grid = {"kind": "grid", "name": "lab: cells", "group_by": ["model.arch"], "panels": [panel] * 3}
    name, arguments = client.build_block(grid, "us", "photos", "lab")
    assert name == "PanelGrid"
    ((_, runs),) = arguments["runsets"]
    ((_, highest, _),) = runs.pop("order")
    assert runs == {
        "entity": "us", "project": "photos", "name": "lab: cells", "groupby": ["config.model.arch.value"],
        "filters": "Metric('Group') = 'lab' and Metric('JobType') = 'train'",
    }  # fmt: skip
    assert (highest.kind, highest.name) == ("SummaryMetric", "best_dice")
    assert [drawn["layout"][1] for _, drawn in arguments["panels"]] == [
        {"x": 0, "y": 0, "w": 12, "h": 8}, {"x": 12, "y": 0, "w": 12, "h": 8}, {"x": 0, "y": 8, "w": 12, "h": 8},
    ]  # fmt: skip


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("group_by", "grouped"), [("", None), ("model.arch", "model.arch.value")])
def test_curves_are_means_over_groups_with_an_area(group_by: str, grouped: str | None) -> None:
    panel = {"title": "Dice", "metric": "val/dice", "area": "minmax", "group_by": group_by, "most": 48}
    assert client.PANELS["lines"](panel, "here") == (
        "LinePlot",
        {
            "title": "Dice", "x": "epoch", "y": ["val/dice"], "groupby": grouped, "groupby_aggfunc": "mean",
            "groupby_rangefunc": "minmax", "max_runs_to_show": 48, "layout": "here",
        },
    )  # fmt: skip


@pytest.mark.usefixtures("package")
def test_columns_are_flat_names_of_the_config_and_then_the_metric() -> None:
    panel = {"title": "Axes", "axes": ["model.arch", "width"], "metric": "val/dice"}
    name, plot = client.PANELS["parallel"](panel, "here")
    assert (name, plot["title"], plot["layout"]) == ("ParallelCoordinatesPlot", "Axes", "here")
    *axes, last = plot["columns"]
    assert [(one.metric.kind, one.display_name, one._to_model().accessor) for one in axes] == [
        ("Config", "arch", "config:model.arch.value"), ("Config", "width", "config:width.value"),
    ]  # fmt: skip
    assert (last.metric.kind, last.metric.name, last._to_model().accessor) == ("SummaryMetric", "val/dice", "nested")


@pytest.mark.usefixtures("package")
def test_importance_and_pictures() -> None:
    assert client.PANELS["importance"]({"metric": "best_dice"}, "here") == (
        "ParameterImportancePlot", {"with_respect_to": "best_dice", "layout": "here"},
    )  # fmt: skip
    assert client.PANELS["pictures"]({"title": "Masks", "metric": "val/overlays"}, "here") == (
        "MediaBrowser", {"title": "Masks", "media_keys": ["val/overlays"], "num_columns": 2, "layout": "here"},
    )  # fmt: skip


def page(names: list[str], cursor: str, more: bool) -> dict[str, Any]:
    edges = [{"node": {"id": f"id-{name}", "displayName": name}} for name in names]
    return {"project": {"allViews": {"edges": edges, "pageInfo": {"endCursor": cursor, "hasNextPage": more}}}}


WHERE = {"entity": "us", "project": "photos"}


def test_a_report_is_found_by_its_title_on_any_page(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {None: page(["a", "b"], "c1", True), "c1": page(["c", "b"], "c2", False)}
    asked: list[Mapping[str, Any]] = []

    def query(api: Any, text: str, **variables: Any) -> Any:
        assert (api, text) == ("api", client.REPORTS)
        asked.append(variables)
        return pages[variables["cursor"]]

    monkeypatch.setattr(client, "query", query)
    assert [client.find_report("api", WHERE, title) for title in ("b", "c", "d")] == ["id-b", "id-c", ""]
    assert asked[:3] == [{**WHERE, "cursor": None}, {**WHERE, "cursor": None}, {**WHERE, "cursor": "c1"}]


@pytest.mark.parametrize("answer", [{}, {"project": None}, {"project": {"allViews": None}}, page([], "c", True)])
def test_without_a_project_there_are_no_reports(monkeypatch: pytest.MonkeyPatch, answer: Mapping[str, Any]) -> None:
    monkeypatch.setattr(client, "query", lambda *asked, **variables: answer)
    assert client.find_report("api", WHERE, "a") == ""


@pytest.mark.parametrize(
    ("answer", "view"),
    [
        ({"view": {"id": "V"}}, {"id": "V"}),
        ({}, None),
        (RuntimeError("View not found"), None),
        (RuntimeError("it does not exist"), None),
        (RuntimeError("Could not find it"), None),
        (RuntimeError("HTTP 500"), "raised"),  # it may be there
    ],
)
def test_a_report_that_is_gone_is_told_from_a_server_that_fails(
    monkeypatch: pytest.MonkeyPatch, answer: Any, view: Any
) -> None:
    asked: list[Any] = []

    def query(api: Any, text: str, **variables: Any) -> Any:
        asked.append((api, text, variables))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(client, "query", query)
    v2 = SimpleNamespace(gql=SimpleNamespace(view_report="the query"))
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", v2)
    assert client.load_report("api", "") is None
    assert asked == []
    if view == "raised":
        with pytest.raises(RuntimeError, match="HTTP 500"):
            client.load_report("api", "V")
    else:
        assert client.load_report("api", "V") == view
    assert asked == [("api", "the query", {"reportId": "V"})]


COMMENTED = '{"discussionThreads": [1]}'


class Report:
    """A report that is saved."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.is_saved, self.id, self.url = arguments, False, "new", ""
        self._discussion_threads: list[Any] = []

    def save(self) -> None:
        self.is_saved, self.url = True, f"https://host/{self.id}"


@pytest.mark.parametrize(
    ("known_id", "views", "by_title", "saved", "threads"),
    [
        ("", {}, "", Saved("https://host/new", "new", "new", 4), []),
        ("V", {}, "", Saved("https://host/new", "new", "anew", 4), []),
        ("V", {"V": {"id": "V", "spec": None}}, "", Saved("https://host/V", "V", "updated", 4), []),
        ("", {"W": {"id": "W", "spec": COMMENTED}}, "W", Saved("https://host/W", "W", "updated", 4), [1]),
        ("V", {"V": {"id": "V", "spec": "{}"}, "W": {"id": "W"}}, "W", Saved("https://host/V", "V", "updated", 4), []),
    ],
)
def test_a_report_is_made_or_updated_and_its_comments_stay(
    monkeypatch: pytest.MonkeyPatch,
    known_id: str,
    views: dict[str, Any],
    by_title: str,
    saved: Saved,
    threads: list[Any],
) -> None:
    made: list[Report] = []
    monkeypatch.setattr(
        client, "workspaces", lambda: SimpleNamespace(Report=lambda **how: made.append(Report(**how)) or made[-1])
    )
    monkeypatch.setattr(client, "connect", lambda: SimpleNamespace(default_entity="mine"))
    monkeypatch.setattr(client, "load_report", lambda api, known: views.get(known))
    monkeypatch.setattr(client, "find_report", lambda api, where, title: by_title)
    monkeypatch.setattr(client, "build_block", lambda *given: given)
    counted: Calls = []

    def query(api: Any, text: str, **variables: Any) -> Any:
        counted.append((text, variables))
        return {"project": {"runCount": 4}}

    monkeypatch.setattr(client, "query", query)
    content = {"title": "petseg sweep lab", "description": "12 trials", "group": "lab", "blocks": ["a", "b"]}
    assert client.save_report(Request(content, "photos", "us" if known_id else "", known_id)) == saved
    ((text, variables),) = counted
    entity = "us" if known_id else "mine"
    assert (text, variables.pop("filters")) == (client.SWEEP_RUNS, json.dumps({"group": "lab", "jobType": "train"}))
    assert variables == {"entity": entity, "project": "photos"}
    (report,) = made
    assert report.is_saved
    assert report._discussion_threads == threads
    assert report.arguments == {
        "project": "photos", "entity": entity, "title": "petseg sweep lab", "description": "12 trials",
        "blocks": [("a", entity, "photos", "lab"), ("b", entity, "photos", "lab")], "width": "fluid",
    }  # fmt: skip


@pytest.mark.parametrize("answer", [{"project": None}, {"project": {"runCount": 0}}])
def test_a_project_without_runs_of_the_sweep_gets_no_report(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]
) -> None:
    monkeypatch.setattr(client, "workspaces", SimpleNamespace)
    monkeypatch.setattr(client, "connect", lambda: SimpleNamespace(default_entity=None))
    monkeypatch.setattr(client, "query", lambda *asked, **variables: answer)
    request = {"content": {"title": "t", "group": "lab"}, "project": "photos", "entity": ""}
    with pytest.raises(NothingToShow, match=r"^wandb has no run of the group lab in /photos$"):
        client.handle(request)


def test_the_answer_is_that_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []
    monkeypatch.setattr(
        client, "save_report", lambda request: asked.append(request) or Saved("https://host", "V", "new", 2)
    )
    given = {"content": {}, "project": "photos", "entity": "us", "known_id": "V"}
    assert client.handle(given) == {"url": "https://host", "id": "V", "made": "new", "runs": 2}
    assert asked == [Request({}, "photos", "us", "V")]
