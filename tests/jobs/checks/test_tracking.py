"""What the doctor says of wandb, by the logins that this host and the jobs have."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

import pytest

from jobs.checks import tracking
from jobs.checks.setup import Finding, Setup
from jobs.wandb_sync.login import Login
from petseg.config import RunConfig
from petseg.config.values import with_values


@pytest.mark.parametrize(
    ("here", "on_nodes", "problem", "status"),
    [
        (False, False, "", "FAIL"),
        (True, True, "no route", "FAIL"),
        (True, False, "", "warn"),
        (True, True, "", "ok"),
    ],
)
def test_a_key_is_wanted_here_and_on_the_nodes(
    monkeypatch: pytest.MonkeyPatch, here: bool, on_nodes: bool, problem: str, status: str
) -> None:
    def login(environ: Mapping[str, str] | None = None) -> Login:
        return Login("https://wandb.example", here if environ is None else on_nodes, is_default_server=False)

    monkeypatch.setattr(tracking, "find_login", login)
    monkeypatch.setattr(tracking, "unreachable", lambda url: problem)
    config = with_values(RunConfig(), {"tracking.wandb": "online"})
    setup = SimpleNamespace(config=config, command=SimpleNamespace(cluster="slurm"))
    assert tracking.check_wandb(cast(Setup, setup)).status == status


URL, SHOWN = "https://me:hidden@wandb.lab", "https://wandb.lab"


def finding_of(
    monkeypatch: pytest.MonkeyPatch, mode: str = "online", cluster: str = "slurm", problem: str = "", **keys: bool
) -> Finding:
    def login(environ: Mapping[str, str] | None = None) -> Login:
        return Login(URL, keys["here"] if environ is None else keys["on_nodes"], is_default_server=False)

    monkeypatch.setattr(tracking, "find_login", login)
    monkeypatch.setattr(tracking, "unreachable", lambda url: problem if url == URL else "")
    config = with_values(RunConfig(), {"tracking.wandb": mode})
    return tracking.check_wandb(cast(Setup, SimpleNamespace(config=config, command=SimpleNamespace(cluster=cluster))))


def test_what_is_missing_is_said_without_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    no_key = finding_of(monkeypatch, here=False, on_nodes=False)
    assert no_key.detail == "no key for wandb.lab, neither in .netrc nor in WANDB_API_KEY"
    assert no_key.advice == f"wandb login --host {SHOWN}"
    silent = finding_of(monkeypatch, problem="no route", here=True, on_nodes=True)
    assert silent.detail == f"{SHOWN} does not answer: no route"
    here_only = finding_of(monkeypatch, here=True, on_nodes=False)
    assert here_only.detail.startswith(f"{SHOWN} answers; the key is in the environment only")
    assert here_only.advice.startswith(f"`wandb login --host {SHOWN}` writes it to ~/.netrc")
    assert finding_of(monkeypatch, here=True, on_nodes=True).detail.startswith(f"{SHOWN} answers from this host")


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_what_is_not_sent_needs_no_key(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    finding = finding_of(monkeypatch, mode, here=False, on_nodes=False)
    assert finding == Finding("ok", "wandb", f"tracking.wandb = {mode}: nothing is sent")


def test_processes_of_this_machine_have_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert finding_of(monkeypatch, cluster="local", here=True, on_nodes=False).status == "ok"
