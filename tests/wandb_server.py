"""A server of wandb's on loopback that keeps what the client of version 0.31 sends, and can be told to misbehave."""

from __future__ import annotations

import base64
import gzip
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

KEY = "canary0123456789abcdef0123456789abcdef01"  # of the form that the client takes; to be found in no file and no log
Fault = Literal["", "401", "429", "500", "403", "hang", "reset", "wrong json", "lost answer"]


@dataclass
class SentArtifact:
    """A version of an artifact: the same digest in the same collection is the same version."""

    id: str
    type: str
    collection: str
    version: int
    digest: str
    committed: bool = False
    files: dict[str, int] = field(default_factory=dict)  # bytes that were uploaded


@dataclass
class SentRun:
    """What the server has of one run."""

    upserts: list[dict[str, Any]] = field(default_factory=list)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)  # by line number: sent twice, it is replaced
    summary: dict[str, Any] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    preempting: int = 0  # times
    files: dict[str, int] = field(default_factory=dict)  # bytes
    config: dict[str, Any] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)  # "type name:version", each time that it was logged

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.history[number] for number in sorted(self.history)]

    @property
    def epochs(self) -> list[int]:
        """Return the epochs of the rows with numbers, not of those with pictures."""
        return [row["epoch"] for row in self.rows if "val/dice" in row]


class WandbServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, SentRun] = {}
        self.artifacts: list[SentArtifact] = []
        self.views: dict[str, dict[str, Any]] = {}  # reports by id: what was sent of each last
        self.fault: Fault = ""
        self.fault_at = ""  # in the path or the name of the operation; "" = everywhere
        self.message = ""  # of a fault that is an HTTP status, as wandb's own servers say why
        self.released = threading.Event()  # ends what hangs
        self.requests = 0
        self.most_at_once = 0  # runs that were open together
        self.open: set[str] = set()
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()
        self.thread.join()

    def handle_error(self, *_: object) -> None:
        """The client drops idle connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.reply({})

    def do_PUT(self) -> None:
        body = self.body()
        match = re.match(r"/upload/([^/]+)/(.+)", self.path)
        if match and not self.misbehaved(self.path):
            with self.server.lock:
                artifact = next((a for a in self.server.artifacts if a.id == match[1]), None)
                (artifact or self.server.runs[match[1]]).files[match[2]] = len(body)
            self.reply({})

    def do_POST(self) -> None:
        content = json.loads(self.body() or b"{}")
        if match := re.match(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            if not self.misbehaved("file_stream"):
                with self.server.lock:
                    self.take(match[1], content)
                self.reply({})
            return
        query, variables = content.get("query", ""), content.get("variables") or {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = found[1] if found else ""
        if not self.misbehaved(operation):
            with self.server.lock:
                handler = getattr(self, operation, None)
                data = handler(variables) if handler else None
            if self.server.fault == "lost answer" and self.server.fault_at == operation:
                self.server.fault = ""
                self.close_connection = True
                return
            self.reply({"data": data} if data else {"data": {}, "errors": [{"message": f"no {operation} here"}]})

    def misbehaved(self, where: str) -> bool:
        """Whether a fault was the answer."""
        self.server.requests += 1
        fault = self.server.fault
        if fault in ("", "lost answer") or self.server.fault_at not in where:
            return False
        if fault == "hang":
            self.server.released.wait(120)
        elif fault == "wrong json":
            self.reply_bytes(b"<html>proxy</html>", 200)
        elif fault != "reset":
            message = self.server.message
            body = {"errors": [{"message": message}]} if message else {"error": "no"}
            self.reply_bytes(json.dumps(body).encode(), int(fault))
        self.close_connection = True
        return True

    def take(self, name: str, content: dict[str, Any]) -> None:
        run = self.server.runs[name]
        for file, chunk in (content.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"] if line.startswith("{")]
            if file == "wandb-history.jsonl":
                run.history |= {chunk["offset"] + i: line for i, line in enumerate(lines)}
            elif file == "wandb-summary.json":
                run.summary = lines[-1]
        run.preempting += bool(content.get("preempting"))
        if content.get("complete"):
            run.exit_codes.append(content["exitcode"])
            self.server.open.discard(name)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def reply(self, content: object) -> None:
        self.reply_bytes(json.dumps(content).encode(), 200)

    def reply_bytes(self, body: bytes, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    # operations of the client's GraphQL

    def ServerFeaturesQuery(self, _: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def Viewer(self, _: dict[str, Any]) -> Any:
        viewer = {"id": "u", "entity": "lab-team", "username": "me", "email": "", "admin": False, "flags": "{}"}
        versions = {"cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": None}
        return {"viewer": viewer | {"teams": {"edges": []}}, "serverInfo": versions}

    def GetDefaultEntity(self, _: dict[str, Any]) -> Any:
        return {"viewer": {"__typename": "User", "id": "u", "entity": "lab-team"}}

    def UpsertBucket(self, variables: dict[str, Any]) -> Any:
        name = variables["name"]
        new = name not in self.server.runs
        run = self.server.runs.setdefault(name, SentRun())
        given = {key: value for key, value in variables.items() if value is not None}
        run.upserts.append(given | {"time": time.monotonic()})
        if "config" in given:
            run.config = {key: entry["value"] for key, entry in json.loads(given["config"]).items()}
        self.server.open.add(name)
        self.server.most_at_once = max(self.server.most_at_once, len(self.server.open))
        project = {"id": "P", "name": variables.get("project") or "none", "entity": {"id": "E", "name": "lab-team"}}
        bucket = {"id": f"id-{name}", "name": name, "displayName": name, "description": None, "sweepName": None}
        bucket |= {"config": given.get("config", "{}"), "project": project, "historyLineCount": len(run.history)}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def RunResumeStatus(self, variables: dict[str, Any]) -> Any:
        name, bucket = variables["name"], None
        if run := self.server.runs.get(name):
            bucket = {"id": f"id-{name}", "name": name, "displayName": name, "tags": [], "wandbConfig": '{"t":1}'}
            bucket |= {"summaryMetrics": json.dumps(run.summary), "historyLineCount": len(run.history)}
            bucket |= {"historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]), "eventsTail": "[]"}
            bucket |= {"logLineCount": 0, "eventsLineCount": 0}
            bucket |= {"config": json.dumps({key: {"value": value} for key, value in run.config.items()})}
        entity = {"id": "E", "name": variables["entity"]}
        return {"model": {"id": "P", "name": variables["project"], "entity": entity, "bucket": bucket}}

    def CreateRunFiles(self, variables: dict[str, Any]) -> Any:
        run = variables["run"]
        files = [{"name": f, "uploadUrl": f"{self.server.url}/upload/{run}/{f}"} for f in variables["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    RunUploadUrls = CreateRunFiles

    def ProjectInternalId(self, _: dict[str, Any]) -> Any:
        return {"project": {"internalId": "UHI6MQ=="}}

    def Run(self, variables: dict[str, Any]) -> Any:
        name = variables["name"]
        run = self.server.runs[name]
        found = {"projectId": "1", "id": f"id-{name}", "name": name, "displayName": name, "state": "finished"}
        found |= {"tags": [], "sweepName": None, "group": None, "jobType": None, "commit": None, "readOnly": False}
        found |= {"createdAt": "2026-01-01T00:00:00", "heartbeatAt": "2026-01-01T00:00:00", "description": ""}
        found |= {"notes": "", "historyLineCount": len(run.history), "user": {"name": "me", "username": "me"}}
        found |= {"config": "{}", "systemMetrics": "{}", "summaryMetrics": json.dumps(run.summary)}
        return {"project": {"internalId": "1", "run": found | {"historyKeys": None}}}

    def CreateArtifact(self, variables: dict[str, Any]) -> Any:
        given = variables["input"]
        kind, collection, digest = given["artifactTypeName"], given["artifactCollectionName"], given["digest"]
        versions = [a for a in self.server.artifacts if (a.type, a.collection) == (kind, collection)]
        artifact = next((a for a in versions if a.digest == digest), None)
        if artifact is None:
            artifact = SentArtifact(f"artifact{len(self.server.artifacts)}", kind, collection, len(versions), digest)
            self.server.artifacts.append(artifact)
        self.server.runs[given["runName"]].artifacts.append(f"{kind} {collection}:v{artifact.version}")
        latest = {"latestArtifact": {"id": versions[-1].id} if versions else None}
        state = "COMMITTED" if artifact.committed else "PENDING"
        return {"createArtifact": {"artifact": {"id": artifact.id, "state": state, "artifactSequence": latest}}}

    def CreateArtifactManifest(self, variables: dict[str, Any]) -> Any:
        url = f"{self.server.url}/upload/{variables['artifactID']}/{variables['name']}"
        file = {"id": "f", "uploadUrl": url, "uploadHeaders": []}
        manifest = {"id": f"manifest-{variables['artifactID']}", "file": file}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def UpdateArtifactManifest(self, variables: dict[str, Any]) -> Any:
        name = variables["artifactManifestID"]
        url = f"{self.server.url}/upload/{name.removeprefix('manifest-')}/wandb_manifest.json"
        file = {"id": "f", "uploadUrl": url, "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": name, "file": file}}}

    def CreateArtifactFiles(self, variables: dict[str, Any]) -> Any:
        edges = []
        for file in variables["input"]["artifactFiles"]:
            url = f"{self.server.url}/upload/{file['artifactID']}/{file['name']}"
            node = {"storagePath": f"s/{file['name']}", "uploadUrl": url, "uploadHeaders": []}
            edges.append({"node": node | {"uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def CommitArtifact(self, variables: dict[str, Any]) -> Any:
        (artifact,) = (a for a in self.server.artifacts if a.id == variables["artifactID"])
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def ArtifactByID(self, variables: dict[str, Any]) -> Any:
        (artifact,) = (a for a in self.server.artifacts if a.id == variables["id"])
        project = {"id": "P", "internalId": "1", "name": "petseg", "entity": {"name": "lab-team"}}
        sequence = {"__typename": "ArtifactSequence", "name": artifact.collection, "project": project}
        found = {"__typename": "Artifact", "id": artifact.id, "artifactSequence": sequence, "tags": [], "aliases": []}
        found |= {"versionIndex": artifact.version, "artifactType": {"name": artifact.type}, "description": None}
        found |= {"metadata": None, "ttlDurationSeconds": -2, "ttlIsInherited": False, "historyStep": None}
        found |= {"state": "COMMITTED", "size": 1, "digest": artifact.digest, "digestAlgorithm": "MANIFEST_MD5"}
        found |= {"commitHash": "", "fileCount": len(artifact.files)}
        return {"artifact": found | {"createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"}}

    def SweepRuns(self, variables: dict[str, Any]) -> Any:
        wanted = json.loads(variables["filters"])
        first = [run.upserts[0] for run in self.server.runs.values()]
        runs = [
            u for u in first if (u.get("groupName"), u.get("jobType", "train")) == (wanted["group"], wanted["jobType"])
        ]
        return {"project": {"runCount": len(runs)} if self.server.runs else None}

    def GetProjects(self, _: dict[str, Any]) -> Any:
        project = {"__typename": "Project", "id": "P", "name": "petseg", "entityName": "lab-team"}
        project |= {"createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
        pages = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": pages, "edges": [{"node": project}]}}

    def SpecificReport(self, variables: dict[str, Any]) -> Any:
        return {"view": self.server.views.get(variables["reportId"])}

    def SweepReports(self, variables: dict[str, Any]) -> Any:
        """A page has one."""
        views = [view for view in self.server.views.values() if view["project"]["name"] == variables["project"]]
        edges = [{"node": {"id": view["id"], "displayName": view["displayName"]}} for view in views]
        at = int(variables["cursor"] or 0)
        pages = {"endCursor": str(at + 1), "hasNextPage": at + 1 < len(edges)}
        return {"project": {"allViews": {"edges": edges[at : at + 1], "pageInfo": pages}}}

    def upsertView(self, variables: dict[str, Any]) -> Any:
        """As wandb's ids are: `View:1` in base64 without padding."""
        number = len(self.server.views) + 1
        name = variables["id"] or base64.b64encode(f"View:{number:03d}".encode()).decode()
        new = name not in self.server.views
        project = {"id": "P", "name": variables["projectName"], "entityName": variables["entityName"]}
        view = {key: variables[key] for key in ("type", "name", "displayName", "description", "spec")}
        self.server.views[name] = view | {"id": name, "project": project, "updatedAt": "2026-01-01T00:00:00"}
        return {"upsertView": {"view": self.server.views[name], "inserted": new}}

    def OrganizationCoreWeaveOrganizationID(self, _: dict[str, Any]) -> Any:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}
