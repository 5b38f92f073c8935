"""A server for the report on loopback, which renders the page again when the sweep's folder changes.

It is read-only and private: it listens on 127.0.0.1 only, and every request needs the token of the printed address.
Requests for other host names are refused, so that no other page in the same browser reaches it through a name of its
own that resolves to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socketserver
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from jobs.reporting.page import render_page
from jobs.reporting.statistics.records import read_records
from jobs.runs.single_runs import find_runs
from jobs.runs.trial import SUBMISSIONS_NAME, SWEEP_NAME, Sweep
from jobs.state.observed import glance
from petseg.run_folder.heartbeat import HEARTBEAT_NAME

LOOPBACK = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost")  # any port: through `ssh -L` it is another one
LOOK_EVERY_S = 2.0  # however many browsers ask
ASK_EVERY_S = 30.0  # for changes that no folder shows: a job is gone, or a trial stalls
REST = 3  # a page that took 10 s is not rendered again for 30 s: a login node has other users
MARK = "@version@"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

logger = logging.getLogger(__name__)


class LivePage:
    """A sweep's page, rendered by one thread after changes of its folder; other threads get the previous page."""

    def __init__(self, folder: Path, shards: str = "", look_every_s: float = LOOK_EVERY_S) -> None:
        """Render the first page, and raise its errors. shards: the folder whose pictures are shown."""
        self._folder, self._shards, self._look_every_s = folder, shards, look_every_s
        self._lock = threading.Lock()
        self._statuses: tuple[str, ...] = ()
        self._next_look = self._next_ask = 0.0
        self._complaint = ""
        self._seen: object = None
        self._page = ("", b"")
        self._refresh()

    def look(self) -> tuple[str, bytes]:
        """(version, page); the previous ones while a new page is rendered, or if that fails."""
        if self._lock.acquire(blocking=False):
            try:
                if time.monotonic() >= self._next_look:
                    self._try()
            finally:
                self._lock.release()
        return self._page

    def _try(self) -> None:
        began, complaint = time.monotonic(), ""
        try:
            self._refresh()
        except Exception as error:  # a file is damaged, or just being written: keep the old page
            complaint = f"{type(error).__name__}: {error}"
        if complaint and complaint != self._complaint:
            logger.warning("the page stays as it was: %s", complaint)
        self._complaint = complaint
        self._next_look = time.monotonic() + max(self._look_every_s, REST * (time.monotonic() - began))

    def _refresh(self) -> None:
        sweep = find_runs(str(self._folder), self._folder.parent)  # trials may have been added
        if time.monotonic() >= self._next_ask:
            self._statuses = tuple(row.status for row in glance(sweep).rows)
            self._next_ask = time.monotonic() + ASK_EVERY_S
        seen = (fingerprint(self._folder), self._statuses)
        if seen != self._seen:
            self._page = self._render(sweep)
            self._seen = seen  # taken before rendering, so that later changes are noticed next time

    def _render(self, sweep: Sweep) -> tuple[str, bytes]:
        rows = glance(sweep).rows
        content = render_page(sweep, read_records(sweep, rows), shards=self._shards, live=MARK)
        version = hashlib.sha256(content.encode()).hexdigest()[:16]
        return version, content.replace(MARK, version).encode()


def fingerprint(folder: Path) -> str:
    """A hash of names, sizes and times of the files that a page shows; no file is read.

    Heartbeats are left out, which change every few seconds and are not on the page, and subfolders, whose files are
    written before result.json.
    """
    files = [(folder / name).stat() for name in (SWEEP_NAME, SUBMISSIONS_NAME) if (folder / name).exists()]
    digest = hashlib.sha256(repr([(file.st_size, file.st_mtime_ns) for file in files]).encode())
    trials = folder / "trials" if (folder / SWEEP_NAME).exists() else folder  # of single runs
    for trial in sorted(path for path in trials.iterdir() if path.is_dir()) if trials.exists() else ():
        with os.scandir(trial) as entries:
            files_here = [
                (entry.name, (stat := entry.stat()).st_size, stat.st_mtime_ns)
                for entry in entries
                if entry.name != HEARTBEAT_NAME and not entry.name.startswith(".") and entry.is_file()
            ]
        digest.update(f"{trial.name} {sorted(files_here)}".encode())
    return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of / (the page) and /version (the version of the page)."""

    server: ReportServer
    timeout = 30  # of a silent connection

    def do_GET(self) -> None:
        refused = self._refuse()
        path = urlsplit(self.path).path
        if refused:
            self._answer(*refused)
        elif path not in ("/", "/version"):
            self._answer(HTTPStatus.NOT_FOUND, "here are / and /version")
        else:
            version, content = self.server.page.look()
            tag = f'"{path[1:] or "page"}-{version}"'
            if self.headers.get("If-None-Match", "") == tag:
                self._answer(HTTPStatus.NOT_MODIFIED, "", tag=tag)
            elif path == "/":
                self._answer(HTTPStatus.OK, content, "text/html", tag)
            else:
                self._answer(HTTPStatus.OK, version, tag=tag)

    do_HEAD = do_GET

    def _refuse(self) -> tuple[HTTPStatus, str] | None:
        if (self.headers.get("Host") or "").partition(":")[0].lower() not in HOSTS:
            return HTTPStatus.FORBIDDEN, "this host's name is not one of this page"
        given = parse_qs(urlsplit(self.path).query).get("token", [""])[-1]
        if not secrets.compare_digest(given.encode(errors="replace"), self.server.token.encode()):
            return HTTPStatus.FORBIDDEN, "the address lacks the right token: open the one that the terminal shows"
        return None

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what http.server refuses: other methods, and lines that are not HTTP."""
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        self._answer(status, status.phrase)

    def _answer(self, status: HTTPStatus, content: str | bytes, kind: str = "text/plain", tag: str = "") -> None:
        body = content.encode() if isinstance(content, str) else content
        headers = HEADERS | {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        if tag:
            headers |= {"ETag": tag}
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers |= {"Allow": "GET, HEAD"}
        self.send_response_only(status)
        for name, value in headers.items():
            if status is not HTTPStatus.NOT_MODIFIED or not name.startswith("Content-"):
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: requests hold the token, and come every few seconds."""


class ReportServer(ThreadingHTTPServer):
    """Serves a page on loopback; raises OSError if the port is taken."""

    def __init__(self, page: LivePage, port: int) -> None:
        self.page, self.token = page, secrets.token_urlsafe(24)
        super().__init__((LOOPBACK, port), Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's method asks DNS for a name, which can hang
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):  # the browser was closed
            logger.warning("a request failed: %s: %s", type(error).__name__, error)


def serve(sweep: Sweep, port: int, shards: str = "") -> None:
    """Serve the sweep's page until Ctrl-C raises KeyboardInterrupt. Raises ValueError for a bad port."""
    page = LivePage(sweep.folder, shards)
    try:
        server = ReportServer(page, port)
    except (OSError, OverflowError) as error:
        raise ValueError(f"--port {port}: {error}: choose another, or leave it out") from None
    with server:
        here = server.server_port
        sys.stdout.write(
            f"{sweep.name} as it runs: {server.url}\n"
            f"from another machine: ssh -N -L {here}:{LOOPBACK}:{here} {os.uname().nodename}, and the same address\n"
            "Ctrl-C ends it\n"
        )
        sys.stdout.flush()
        server.serve_forever()
