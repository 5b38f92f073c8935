"""wandb's side of a sweep's page: `python -m jobs.sync_page_client`, an errand of jobs.wandb_errand.

It is asked with the fields of Request and answers with the id and the address of the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import yaml

from jobs.wandb_errand import answer, connect, project_nodes, query

FIND = """
    query ProjectSweeps($entity: String, $project: String!, $cursor: String) {
        project(name: $project, entityName: $entity) {
            sweeps(after: $cursor, first: 100) {
                edges { node { name description } }
                pageInfo { endCursor hasNextPage }
            }
        }
    }
"""
MAKE = """
    mutation UpsertSweep(
        $config: String, $description: String, $displayName: String, $entity: String, $project: String,
        $priorRuns: JSONString
    ) {
        upsertSweep(input: {
            config: $config, description: $description, displayName: $displayName, entityName: $entity,
            projectName: $project, priorRunsFilters: $priorRuns
        }) { sweep { name } }
    }
"""


@dataclass(frozen=True)
class Request:
    """What is to be there."""

    project: str
    entity: str  # "" = the key's own
    title: str
    description: str  # which no other sweep has
    config: Mapping[str, Any]
    run_ids: Sequence[str]  # of runs that wandb has already


def handle(given: Mapping[str, Any]) -> dict[str, str]:
    request = Request(**given)
    api = connect()
    where = {"entity": request.entity or api.default_entity or "", "project": request.project}
    name = find(api, where, request.description) or make(api, where, request)
    project = api.project(where["project"], entity=where["entity"])
    return {"id": name, "url": f"{project.url.removesuffix('/workspace')}/sweeps/{quote(name)}"}


def find(api: Any, where: Mapping[str, str], description: str) -> str:
    """The id of the sweep of that description, "" if there is none."""
    found = project_nodes(api, FIND, "sweeps", where)
    return next((str(node["name"]) for node in found if node["description"] == description), "")


def make(api: Any, where: Mapping[str, str], request: Request) -> str:
    """Make the sweep; runs of before are its prior runs, as wandb calls those that a sweep has taken in."""
    config = yaml.safe_dump(json.loads(json.dumps(request.config)), sort_keys=False)
    prior = json.dumps({"$or": [{"name": run_id} for run_id in request.run_ids]}) if request.run_ids else None
    texts = {"config": config, "description": request.description, "displayName": request.title}
    return str(query(api, MAKE, **where, **texts, priorRuns=prior)["upsertSweep"]["sweep"]["name"])


if __name__ == "__main__":
    answer(handle)
