"""What the doctor says of wandb, by the logins that this host and the jobs have."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

import pytest

from jobs.checks import tracking
from jobs.checks.setup import Setup
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
