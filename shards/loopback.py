"""Servers on loopback, each for the browser of whoever started it.

They are private: they listen on 127.0.0.1 only, and every request needs the token of the printed address. Requests for
other host names are refused, so that no other page in the same browser reaches them through a name of its own that
resolves to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import logging
import os
import secrets
import socketserver
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

LOOPBACK = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost")  # any port: through `ssh -L` it is another one
NOTHING_ELSE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # of a page's Content-Security-Policy
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

logger = logging.getLogger(__name__)


class PrivateHandler(BaseHTTPRequestHandler):
    """What the requests of all servers here have in common."""

    server: PrivateServer
    timeout = 30  # of a silent connection
    methods: ClassVar[str] = "GET, HEAD"
    policy: ClassVar[str] = f"default-src 'none'; {NOTHING_ELSE}"

    @property
    def asked(self) -> tuple[str, dict[str, str]]:
        """The path of the request, and the last value of each of its parameters."""
        parts = urlsplit(self.path)
        return parts.path, {name: values[-1] for name, values in parse_qs(parts.query).items()}

    def refusal(self) -> tuple[HTTPStatus, str] | None:
        """Why the request gets no answer; None for one with a host name of ours and the token."""
        if (self.headers.get("Host") or "").partition(":")[0].lower() not in HOSTS:
            return HTTPStatus.FORBIDDEN, "this host's name is not one of this page"
        given = self.asked[1].get("token", "")
        if not secrets.compare_digest(given.encode(errors="replace"), self.server.token.encode()):
            return HTTPStatus.FORBIDDEN, "the address lacks the right token: open the one that the terminal shows"
        return None

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what http.server refuses: other methods, and lines that are not HTTP."""
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        self.answer(status, status.phrase)

    def answer(
        self,
        status: HTTPStatus,
        content: str | bytes,
        kind: str = "text/plain; charset=utf-8",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        body = content.encode() if isinstance(content, str) else content
        sent = HEADERS | {"Content-Security-Policy": self.policy}
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            sent |= {"Allow": self.methods}
        if status is not HTTPStatus.NOT_MODIFIED:
            sent |= {"Content-Type": kind, "Content-Length": str(len(body))}
        self.send_response_only(status)
        for name, value in (sent | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: requests hold the token, and can come every few seconds."""


class PrivateServer(ThreadingHTTPServer):
    """Listens on loopback, with a token of its own; raises ValueError if that port is not to be had."""

    def __init__(self, port: int, handler: type[PrivateHandler]) -> None:
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((LOOPBACK, port), handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"--port {port}: {error}: choose another, or leave it out") from None

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


def serve(server: PrivateServer, what: str) -> None:
    """Print the address, and serve until Ctrl-C raises KeyboardInterrupt.

    what: what is seen there, in a few words
    """
    with server:
        here = server.server_port
        sys.stdout.write(
            f"{what}: {server.url}\n"
            f"from another machine: ssh -N -L {here}:{LOOPBACK}:{here} {os.uname().nodename}, and the same address\n"
            "Ctrl-C ends it\n"
        )
        sys.stdout.flush()
        server.serve_forever()
