"""What every server on loopback does alike, whatever it serves."""

from __future__ import annotations

import http.client
import logging
import os
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from shards.loopback import HEADERS, LOOPBACK, NOTHING_ELSE, PrivateHandler, PrivateServer, serve


class Handler(PrivateHandler):
    """Answers with what was asked, unless something is to be refused."""

    def do_GET(self) -> None:
        if refused := self.refusal():
            self.answer(*refused)
            return
        path, values = self.asked
        if path == "/same":
            self.answer(HTTPStatus.NOT_MODIFIED, "", headers={"ETag": "7"})
        elif path == "/bytes":
            self.answer(HTTPStatus.OK, b"\xff", "image/png", {"Cache-Control": "max-age=9"})
        else:
            self.answer(HTTPStatus.OK, f"ü {path} {values}")

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with PrivateServer(0, Handler) as one:
        threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        yield one
        one.shutdown()


def ask(server: PrivateServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(LOOPBACK, server.server_port, timeout=30)
    connection.request(method, path.replace("TOKEN", server.token), headers=headers)
    reply = connection.getresponse()
    with reply:
        content = reply.read()
    connection.close()
    return reply.status, dict(reply.getheaders()), content


def test_the_address_is_that_of_this_machine_with_the_token(server: PrivateServer) -> None:
    assert server.server_address == (LOOPBACK, server.server_port)
    assert server.url == f"http://127.0.0.1:{server.server_port}/?token={server.token}"
    assert len(server.token) == 32


def test_an_answer_has_all_headers_and_the_last_value_of_each_parameter(server: PrivateServer) -> None:
    values = {"x": "2", "token": server.token}
    content = f"ü /a/b {values}"
    status, headers, body = ask(server, "/a/b?x=1&token=TOKEN&x=2&y=")
    assert (status, body.decode()) == (200, content)
    assert headers == HEADERS | {
        "Content-Security-Policy": f"default-src 'none'; {NOTHING_ELSE}",
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(len(content.encode())),
    }
    assert ask(server, "/a/b?x=1&token=TOKEN&x=2", "HEAD") == (200, headers, b"")


def test_kind_and_headers_of_an_answer_are_its_own(server: PrivateServer) -> None:
    status, headers, body = ask(server, "/bytes?token=TOKEN")
    assert (status, body) == (200, b"\xff")
    assert (headers["Content-Type"], headers["Cache-Control"], headers["Content-Length"]) == (
        "image/png",
        "max-age=9",
        "1",
    )
    status, headers, body = ask(server, "/same?token=TOKEN")
    assert (status, body, headers["ETag"]) == (304, b"", "7")
    assert not {"Content-Type", "Content-Length"} & headers.keys()


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=x", "/?token=TOKENx", "/?token=%FF", "/TOKEN", "/?x=TOKEN"])
def test_without_the_token_nothing_is_answered(server: PrivateServer, path: str) -> None:
    status, headers, body = ask(server, path)
    assert (status, body) == (403, b"the address lacks the right token: open the one that the terminal shows")
    assert headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("localhost:80", 200), ("LOCALHOST", 200), ("evil.example", 403),
        ("127.0.0.1.evil:80", 403), ("", 403),
    ],
)  # fmt: skip
def test_only_names_of_this_machine_reach_it(server: PrivateServer, host: str, status: int) -> None:
    found, _, body = ask(server, "/?token=TOKEN", Host=host)
    assert found == status
    assert (body == b"this host's name is not one of this page") == (status == 403)


def test_a_request_without_a_host_is_refused(server: PrivateServer) -> None:
    with socket.create_connection((LOOPBACK, server.server_port), timeout=30) as connection:
        connection.sendall(f"GET /?token={server.token} HTTP/1.0\r\n\r\n".encode())
        with connection.makefile("rb") as reply:
            assert reply.read().startswith(b"HTTP/1.0 403 Forbidden\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_told_which_there_are(server: PrivateServer, method: str) -> None:
    status, headers, body = ask(server, "/?token=TOKEN", method)
    assert (status, headers["Allow"], body) == (405, "GET, HEAD", b"Method Not Allowed")
    assert "Allow" not in ask(server, "/?token=TOKEN")[1]


def test_requests_are_not_logged_and_failures_are_unless_the_browser_was_closed(
    server: PrivateServer, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        ask(server, "/?token=TOKEN")
        for error in (BrokenPipeError(), ConnectionResetError(), TimeoutError(), KeyError("x")):
            try:
                raise error
            except Exception:
                server.handle_error(None, None)
    assert caplog.messages == ["a request failed: KeyError: 'x'"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("port", [-1, 1 << 16])
def test_a_port_that_is_none_is_named(port: int) -> None:
    with pytest.raises(ValueError, match=rf"^--port {port}: .+: choose another, or leave it out$"):
        PrivateServer(port, Handler)


def test_a_port_that_is_taken_is_named(server: PrivateServer) -> None:
    with pytest.raises(ValueError, match=rf"^--port {server.server_port}: .*in use: choose another, or leave it out$"):
        PrivateServer(server.server_port, Handler)


def test_the_address_is_printed_with_the_way_from_another_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: PrivateServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PrivateServer, "serve_forever", interrupted)
    server = PrivateServer(0, Handler)
    with pytest.raises(KeyboardInterrupt):
        serve(server, "the page")
    here = server.server_port
    assert capsys.readouterr().out == (
        f"the page: {server.url}\n"
        f"from another machine: ssh -N -L {here}:127.0.0.1:{here} {os.uname().nodename}, and the same address\n"
        "Ctrl-C ends it\n"
    )
    assert server.socket.fileno() == -1  # it is closed
