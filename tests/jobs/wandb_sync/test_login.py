"""Where wandb's own client sends to, and whether it has a key: by its rules, which are its versions'."""

from __future__ import annotations

import http.server
import re
import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from jobs.wandb_sync.login import Login, find_login, netrc_hint, require_wandb, unreachable
from tests.wandb_server import KEY


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A home without settings and keys."""
    import os

    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    kept |= {"HOME": str(tmp_path), "WANDB_ERROR_REPORTING": "false"}
    kept.pop("NETRC", None)
    return kept


def test_the_client_has_the_private_names_that_are_used(environ: dict[str, str]) -> None:
    """The names are private ones: where this fails, jobs.wandb_sync.login has to learn those of the new wandb."""
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import urls, wbauth

    assert callable(wbauth.authenticate_session)
    assert callable(wandb_setup.singleton)
    found = find_login(environ)
    assert found == Login(urls.DEFAULT_BASE_URL, has_credentials=False, is_default_server=True)
    assert found.missing == f"no key for {urls.DEFAULT_BASE_URL[8:]}, neither in .netrc nor in WANDB_API_KEY"
    assert found.advice == "wandb login"


@pytest.mark.parametrize("where", ["~/.netrc", "$NETRC", "WANDB_API_KEY", "settings"])
def test_a_key_is_found_in_each_source_of_the_client(environ: dict[str, str], tmp_path: Path, where: str) -> None:
    entry = f"machine wandb.lab:8443\n  login user\n  password {KEY}\n"
    environ["WANDB_BASE_URL"] = "https://wandb.lab:8443/"
    if where == "WANDB_API_KEY":
        environ[where] = KEY
    elif where == "settings":  # as `wandb login --host` leaves it, and a key beside
        del environ["WANDB_BASE_URL"]
        (tmp_path / ".config" / "wandb").mkdir(parents=True)
        settings = f"[default]\nbase_url = https://wandb.lab:8443\napi_key = {KEY}\n"
        (tmp_path / ".config" / "wandb" / "settings").write_text(settings)
    else:
        path = tmp_path / (".netrc" if where == "~/.netrc" else "elsewhere")
        path.write_text(entry)
        environ |= {"NETRC": str(path)} if where == "$NETRC" else {}
    found = find_login(environ)
    assert found == Login("https://wandb.lab:8443", has_credentials=True, is_default_server=False)
    assert KEY not in repr(found)


def test_the_server_of_wandb_login_is_used(environ: dict[str, str], tmp_path: Path) -> None:
    environ["WANDB_CONFIG_DIR"] = str(tmp_path)
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.lab:8443\n")
    (tmp_path / ".netrc").write_text(f"machine wandb.lab login me password {KEY}\n")
    found = find_login(environ)
    assert (found.url, found.has_credentials) == ("https://wandb.lab:8443", False)
    assert found.hint == f"the entry for wandb.lab in {tmp_path / '.netrc'} lacks the port, 8443"
    assert found.advice == "wandb login --host https://wandb.lab:8443"


def test_messages_do_not_contain_the_key(environ: dict[str, str], tmp_path: Path) -> None:
    environ["WANDB_BASE_URL"] = "file:///etc/passwd"
    with pytest.raises(ValueError, match="WANDB_BASE_URL = file:///etc/passwd is no http"):
        find_login(environ)
    environ["WANDB_BASE_URL"] = "http://me:hidden@wandb.lab:8443"
    found = find_login(environ)
    assert "no key for wandb.lab:8443" in found.missing
    assert "hidden" not in found.missing + found.advice
    (tmp_path / ".netrc").write_text(f"machine {KEY} {KEY}")
    assert find_login(environ).hint == f"{tmp_path / '.netrc'} is not in netrc's form"
    (tmp_path / "settings").write_text("[default\nbase_url")
    environ |= {"WANDB_API_KEY": "short-secret", "WANDB_CONFIG_DIR": str(tmp_path)}
    found = find_login(environ)
    assert (found.has_credentials, "short-secret" in found.missing) == (False, False)
    assert "API key" in found.hint


class Answering(http.server.BaseHTTPRequestHandler):
    """With the code that the path names."""

    def do_GET(self) -> None:
        self.send_response(int(self.path[1:]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_a_server_that_refuses_answers_and_one_that_is_broken_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        found = [unreachable(f"{url}/{code}") for code in (200, 404, 499, 500, 503)]
        server.shutdown()
        thread.join()
    assert found == ["", "", "", "HTTP 500", "HTTP 503"]
    assert unreachable(url) == "[Errno 111] Connection refused"


URL = "https://wandb.lab:8443"


@pytest.mark.parametrize(
    ("login", "problem", "words"),
    [
        (Login(URL, True, False), "", ""),
        (
            Login("https://wandb.lab", False, True, "why"), "",
            "no key for wandb.lab, neither in .netrc nor in WANDB_API_KEY (why): type `wandb login`",
        ),
        (
            Login("https://me:hidden@wandb.lab", True, False), "timed out",
            "https://wandb.lab does not answer (timed out): try again from where there is a network",
        ),
    ],
)  # fmt: skip
def test_wandb_needs_a_key_and_an_answer(
    monkeypatch: pytest.MonkeyPatch, login: Login, problem: str, words: str
) -> None:
    monkeypatch.setattr("jobs.wandb_sync.login.find_login", lambda: login)
    monkeypatch.setattr("jobs.wandb_sync.login.unreachable", lambda url: problem if url == login.url else "")
    if not words:
        assert require_wandb() == URL
        return
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        require_wandb()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host", "WANDB_BASE_URL = ftp://host is no http(s) address: such as https://api.wandb.ai"),
        ("https://", "WANDB_BASE_URL = https:// is no http(s) address: such as https://api.wandb.ai"),
        ("https://host", ""),
        ("http://host", ""),
        ("", ""),  # wandb's own
    ],
)
def test_the_client_is_asked_in_the_environment_that_is_meant(
    monkeypatch: pytest.MonkeyPatch, url: str, words: str
) -> None:
    asked: list[tuple[object, ...]] = []

    def ask(*given: object) -> dict[str, object]:
        asked.append(given)
        return asdict(Login("x", True, True))

    monkeypatch.setattr("jobs.wandb_sync.login.ask", ask)
    environ = {"WANDB_BASE_URL": url, "A": "1"}
    if words:
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            find_login(environ)
        assert asked == []
        return
    assert find_login(environ) == Login("x", True, True)
    assert asked == [("jobs.wandb_sync.login", {}, 60.0, environ)]


def test_a_client_that_does_not_say_where_it_sends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"error": "TimeoutError", "text": "no answer\nwithin 60 s"}
    monkeypatch.setattr("jobs.wandb_sync.login.ask", lambda *given: told)
    said = r"^wandb's client does not say where it sends to \(TimeoutError: no answer within 60 s\)$"
    with pytest.raises(ValueError, match=said):
        find_login({})


@pytest.mark.parametrize(
    ("netrc", "url", "hint"),
    [
        (None, URL, ""),
        ("machine wandb.lab login me password x", URL, "the entry for wandb.lab in {} lacks the port, 8443"),
        ("machine wandb.lab login me password x", "https://wandb.lab", ""),
        ("machine other login me password x", URL, ""),
        ("machine wandb.lab secret", URL, "{} is not in netrc's form"),
    ],
)
def test_what_netrc_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, netrc: str | None, url: str, hint: str
) -> None:
    path = tmp_path / ".netrc"
    if netrc is not None:
        path.write_text(netrc)
        path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    assert netrc_hint(url) == hint.format(path)
    monkeypatch.setenv("NETRC", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert netrc_hint(url) == hint.format(path)
    monkeypatch.setenv("NETRC", str(tmp_path))
    assert netrc_hint(url) == f"{tmp_path} cannot be read: Is a directory"
