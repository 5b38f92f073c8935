"""wandb's side of a sweep's report: `python -m jobs.reporting.wandb_report.client`, run by jobs.wandb_sync.call.

It reads the fields of Request and writes those of Saved.

The package wandb-workspaces reads a dot in a config name as nesting, but petseg's names are flat and contain dots. The
path to a value is therefore given as NAME.value, which the package passes on everywhere except in the columns of a
parallel coordinates plot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.wandb_sync.call import answer, connect

GONE = re.compile(r"not found|does not exist|could not find", re.I)
WIDTH, HEIGHT = 12, 8  # of a panel; a grid is 24 wide
SWEEP_RUNS = """
    query SweepRuns($entity: String, $project: String!, $filters: JSONString) {
        project(name: $project, entityName: $entity) { runCount(filters: $filters) }
    }
"""

REPORTS = """
    query SweepReports($entity: String, $project: String!, $cursor: String) {
        project(name: $project, entityName: $entity) {
            allViews(viewType: "runs", first: 100, after: $cursor) {
                edges { node { id displayName } }
                pageInfo { endCursor hasNextPage }
            }
        }
    }
"""


@dataclass(frozen=True)
class Request:
    """The content of a report, and the project that it belongs to."""

    content: Mapping[str, Any]  # of jobs.reporting.wandb_report.content.Content
    project: str
    entity: str  # "" = the key's own
    known_id: str = ""  # of the report that is to be updated


@dataclass(frozen=True)
class Saved:
    """A report that wandb has."""

    url: str
    id: str
    made: str  # new | updated | anew: the known one is gone
    runs: int  # in its panels


class NothingToShow(ValueError):
    """wandb has no run of the sweep."""


def save_report(request: Request) -> Saved:
    """Create or update the report. Raises NothingToShow, or whatever the client raises."""
    wr, api = workspaces(), connect()
    entity = request.entity or api.default_entity or ""
    group, title = request.content["group"], request.content["title"]
    filters = json.dumps({"group": group, "jobType": "train"})
    where = {"entity": entity, "project": request.project}
    runs = query(api, SWEEP_RUNS, **where, filters=filters).get("project")
    if not runs or not runs["runCount"]:
        raise NothingToShow(f"wandb has no run of the group {group} in {entity}/{request.project}")
    view = load_report(api, request.known_id) or load_report(api, find_report(api, where, title))
    report = wr.Report(
        project=request.project,
        entity=entity,
        title=title,
        description=request.content["description"],
        blocks=[build_block(block, entity, request.project, group) for block in request.content["blocks"]],
        width="fluid",
    )
    if view:
        report.id = view["id"]
        report._discussion_threads = json.loads(view.get("spec") or "{}").get("discussionThreads", [])  # stay
    report.save()
    made = "updated" if view else "anew" if request.known_id else "new"
    return Saved(report.url, report.id, made, runs["runCount"])


def load_report(api: Any, known_id: str) -> Any:
    """The report of that id as wandb has it, None if there is none."""
    from wandb_workspaces.reports.v2 import gql

    if not known_id:
        return None
    try:
        return query(api, gql.view_report, reportId=known_id).get("view")
    except Exception as error:
        if GONE.search(str(error)):
            return None
        raise


def find_report(api: Any, where: Mapping[str, str], title: str) -> str:
    """The id of the project's report of that title, "" if there is none.

    The sweep does not know its report if wandb's answer to its creation was lost, or wandb_report.json.
    """
    reports = project_nodes(api, REPORTS, "allViews", where)
    return next((str(node["id"]) for node in reports if node["displayName"] == title), "")


def query(api: Any, text: str, **variables: Any) -> Any:
    """The answer of wandb's GraphQL; raises what the client raises."""
    from wandb_workspaces._graphql import execute_graphql

    return execute_graphql(api, text, variables)


def project_nodes(api: Any, text: str, field: str, where: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """The nodes of a project's field, page by page; none without the project.

    text: a query with $cursor; field: of the project, in that query
    """
    cursor = None
    while True:
        page = (query(api, text, **where, cursor=cursor).get("project") or {}).get(field) or {}
        edges = page.get("edges") or []
        yield from (edge["node"] for edge in edges)
        if not edges or not page["pageInfo"]["hasNextPage"]:
            return
        cursor = page["pageInfo"]["endCursor"]


def workspaces() -> Any:
    """wandb_workspaces.reports.v2, imported late and untyped."""
    from wandb_workspaces.reports import v2

    return v2


def build_block(block: Mapping[str, Any], entity: str, project: str, group: str) -> Any:
    """A block of jobs.reporting.wandb_report.content as one of wandb-workspaces."""
    wr = workspaces()
    if block["kind"] == "heading":
        return wr.H2(text=block["text"])
    if block["kind"] == "markdown":
        return wr.MarkdownBlock(text=block["text"])
    runs = wr.Runset(
        entity=entity,
        project=project,
        name=block["name"],
        filters=f"Metric('Group') = {literal(group)} and Metric('JobType') = 'train'",
        groupby=[f"config.{name}.value" for name in block["group_by"]],
        order=[wr.OrderBy(wr.SummaryMetric("best_dice"))],
    )
    panels = [
        PANELS[panel["kind"]](panel, wr.Layout(x=i % 2 * WIDTH, y=i // 2 * HEIGHT, w=WIDTH, h=HEIGHT))
        for i, panel in enumerate(block["panels"])
    ]
    return wr.PanelGrid(runsets=[runs], panels=panels)


def literal(text: str) -> str:
    """The text as a string of the package's filter language, whose parser replaces signs such as = in strings."""
    escaped = "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in text)
    return f"'{escaped}'"


def lines(panel: Mapping[str, Any], layout: Any) -> Any:
    return workspaces().LinePlot(
        title=panel["title"],
        x="epoch",
        y=[panel["metric"]],
        groupby=f"{panel['group_by']}.value" if panel["group_by"] else None,
        groupby_aggfunc="mean",
        groupby_rangefunc=panel["area"],
        max_runs_to_show=panel["most"],
        layout=layout,
    )


def parallel(panel: Mapping[str, Any], layout: Any) -> Any:
    wr = workspaces()

    class FlatColumn(wr.ParallelCoordinatesPlotColumn):  # type: ignore[name-defined]  # known when it runs
        def _to_model(self) -> Any:
            model = super()._to_model()
            model.accessor = f"config:{self.metric.name}.value"
            return model

    columns: list[Any] = [
        FlatColumn(metric=wr.Config(name), display_name=name.rpartition(".")[2]) for name in panel["axes"]
    ]
    columns.append(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(panel["metric"])))
    return wr.ParallelCoordinatesPlot(title=panel["title"], columns=columns, layout=layout)


def importance(panel: Mapping[str, Any], layout: Any) -> Any:
    return workspaces().ParameterImportancePlot(with_respect_to=panel["metric"], layout=layout)


def pictures(panel: Mapping[str, Any], layout: Any) -> Any:
    return workspaces().MediaBrowser(title=panel["title"], media_keys=[panel["metric"]], num_columns=2, layout=layout)


PANELS: dict[str, Callable[[Mapping[str, Any], Any], Any]] = {
    "lines": lines,
    "parallel": parallel,
    "importance": importance,
    "pictures": pictures,
}


def handle(request: Mapping[str, Any]) -> Mapping[str, Any]:
    return asdict(save_report(Request(**request)))


if __name__ == "__main__":
    answer(handle)
