"""A server for the report on loopback, read-only, which renders the page again when the sweep's folder changes."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from http import HTTPStatus
from pathlib import Path

from jobs.reporting.page import render_page
from jobs.reporting.statistics.records import read_records
from jobs.runs.single_runs import find_runs
from jobs.runs.trial import SUBMISSIONS_NAME, SWEEP_NAME, Sweep
from jobs.state.observed import glance
from petseg.run_folder.heartbeat import HEARTBEAT_NAME
from shards.loopback import NOTHING_ELSE, PrivateHandler, PrivateServer, serve

LOOK_EVERY_S = 2.0  # however many browsers ask
ASK_EVERY_S = 30.0  # for changes that no folder shows: a job is gone, or a trial stalls
REST = 3  # a page that took 10 s is not rendered again for 30 s: a login node has other users
MARK = "@version@"

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


class Handler(PrivateHandler):
    """GET and HEAD of / (the page) and /version (the version of the page)."""

    server: ReportServer
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
        f"connect-src 'self'; {NOTHING_ELSE}"
    )

    def do_GET(self) -> None:
        refused = self.refusal()
        path, _ = self.asked
        if refused:
            self.answer(*refused)
        elif path not in ("/", "/version"):
            self.answer(HTTPStatus.NOT_FOUND, "here are / and /version")
        else:
            version, content = self.server.page.look()
            tag = {"ETag": f'"{path[1:] or "page"}-{version}"'}
            if self.headers.get("If-None-Match", "") == tag["ETag"]:
                self.answer(HTTPStatus.NOT_MODIFIED, "", headers=tag)
            elif path == "/":
                self.answer(HTTPStatus.OK, content, "text/html; charset=utf-8", tag)
            else:
                self.answer(HTTPStatus.OK, version, headers=tag)

    do_HEAD = do_GET


class ReportServer(PrivateServer):
    """Serves a page; raises ValueError if the port is taken."""

    def __init__(self, page: LivePage, port: int) -> None:
        self.page = page
        super().__init__(port, Handler)


def serve_report(sweep: Sweep, port: int, shards: str = "") -> None:
    """Serve the sweep's page until Ctrl-C raises KeyboardInterrupt. Raises ValueError for a bad port."""
    serve(ReportServer(LivePage(sweep.folder, shards), port), f"{sweep.name} as it runs")
