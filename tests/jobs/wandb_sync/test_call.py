"""Calls to a client in a process of its own: what is asked and answered, and which errors another try may mend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.wandb_sync import call
from jobs.wandb_sync.call import ask, connect, is_refusal, reason, require_workspaces

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("kind", "text", "refusal"),
    [
        ("CommError", "returned error 403: permission denied", True),
        ("CommError", "HTTP 401", True),
        ("CommError", "HTTP 404", True),
        ("CommError", "409 conflict", True),
        ("CommError", "Forbidden", True),
        ("CommError", "run x was previously created and deleted", True),
        ("CommError", "HTTP 500", False),
        ("CommError", "HTTP 429", False),
        ("CommError", "request 14031 timed out", False),  # no code of its own
        ("UsageError", "no such entity", True),
        ("ValueError", "", True),
        ("AuthenticationError", "API key may only contain letters", True),
        ("AuthenticationError", "Failed to verify credentials: HTTP 500", False),  # it may only be unreachable
        ("AuthenticationError", "Failed to verify credentials: HTTP 401", True),
        ("TimeoutError", "", False),
    ],
)
def test_a_refusal_is_what_another_try_would_meet_again(kind: str, text: str, refusal: bool) -> None:
    assert is_refusal(kind, text) is refusal


def test_a_reason_is_one_line() -> None:
    assert reason({"text": " no\n  such\trun "}) == "no such run"
    assert reason({"text": " \n"}) == "no reason given"


def test_what_a_module_is_asked_by_and_what_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wandb service of this process is not the module's."""
    started: list[tuple[list[str], dict[str, Any]]] = []

    def run(command: list[str], **how: Any) -> SimpleNamespace:
        started.append((command, how))
        return SimpleNamespace(stdout='{"url": "here"}\n', returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    assert ask("some.module", {"a": 1}, 7.5, {"PATH": "x", "WANDB_SERVICE": "2-1"}) == {"url": "here"}
    ((command, how),) = started
    assert command == [sys.executable, "-m", "some.module"]
    assert (json.loads(how["input"]), how["timeout"], how["env"]) == ({"a": 1}, 7.5, {"PATH": "x"})
    assert (how["start_new_session"], how["stdout"]) == (True, subprocess.PIPE)
    assert how["stderr"] == subprocess.DEVNULL  # the client prints lines of files that hold keys
    monkeypatch.setenv("WANDB_SERVICE", "2-1")
    ask("some.module", {}, 7.5)
    assert started[1][1]["env"] == {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


@pytest.mark.parametrize(
    ("stdout", "told"),
    [
        (None, {"error": "TimeoutError", "text": "no answer within 7.5 s"}),
        ("", {"error": "RuntimeError", "text": "its client has ended with exit code -9"}),
        ("half a li", {"error": "RuntimeError", "text": "its client has ended with exit code -9"}),
    ],
)
def test_a_client_that_gives_no_answer_is_an_answer_too(
    monkeypatch: pytest.MonkeyPatch, stdout: str | None, told: dict[str, str]
) -> None:
    def run(command: list[str], **how: Any) -> SimpleNamespace:
        if stdout is None:
            raise subprocess.TimeoutExpired(command, how["timeout"])
        return SimpleNamespace(stdout=stdout, returncode=-9)

    monkeypatch.setattr(subprocess, "run", run)
    assert ask("some.module", {}, 7.5) == told


class Refused(Exception):
    """Of the client's own types."""


@pytest.mark.parametrize(
    ("errors", "told", "tries", "waits"),
    [
        ([], {"url": "here"}, 1, []),
        ([Refused("HTTP 500")], {"url": "here"}, 2, [1.0]),
        ([Refused("HTTP 500"), Refused("HTTP 502")], {"error": "Refused", "text": "HTTP 502"}, 2, [1.0, 0]),
        ([Refused("HTTP 403")], {"error": "Refused", "text": "HTTP 403"}, 1, []),
        ([ValueError("HTTP 500")], {"error": "ValueError", "text": "HTTP 500"}, 1, []),
        (
            [json.JSONDecodeError("x", "", 0)],
            {"error": "JSONDecodeError", "text": "x: line 1 column 1 (char 0)"},
            1,
            [],
        ),
        ([Refused("at https://me:hidden@host")] * 2, {"error": "Refused", "text": "at https://host"}, 2, [1.0, 0]),
    ],
)
def test_a_handler_runs_again_after_an_error_that_may_pass(
    monkeypatch: pytest.MonkeyPatch, errors: list[Exception], told: dict[str, str], tries: int, waits: list[float]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(call.time, "sleep", slept.append)
    asked: list[dict[str, Any]] = []
    left = iter(errors)

    def handle(request: dict[str, Any]) -> Mapping[str, Any]:
        asked.append(request)
        if error := next(left, None):
            raise error
        return {"url": "here"}

    assert call._try(handle, {"a": 1}) == told
    assert asked == [{"a": 1}] * tries
    assert slept == waits


def test_what_the_client_prints_does_not_mix_with_the_answer() -> None:
    script = (
        "import os; from jobs.wandb_sync.call import answer\n"
        "def handle(request):\n    print('wandb: hello', flush=True); os.write(1, b'more'); return {'got': request}\n"
        "answer(handle)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input='{"a": 1}',
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == '{"got": {"a": 1}}\n'
    assert "wandb: hello" in done.stderr


def test_the_client_asks_once_for_each_request_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own retries would create twice what it was asked to create once, if only the answer was lost."""
    made: dict[str, Any] = {}
    wandb = SimpleNamespace(
        Settings=lambda **settings: made.update(settings) or "settings",
        setup=lambda settings: made.update(setup=settings),
        Api=lambda **how: made.update(api=how) or "api",
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert connect() == "api"
    assert made == {
        "silent": True, "x_graphql_timeout_seconds": 10, "x_graphql_retry_max": 1,
        "x_graphql_retry_wait_min_seconds": 1000.0, "x_graphql_retry_wait_max_seconds": 1000.0,
        "setup": "settings", "api": {"timeout": 10},
    }  # fmt: skip


def test_the_flag_that_lacks_a_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^--flag needs wandb-workspaces: pip install 'petseg\[reports\]'$"):
        require_workspaces("--flag")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "wandb_workspaces" else None)
    require_workspaces("--flag")
