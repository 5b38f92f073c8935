"""Which checks the doctor makes, what it makes of one that cannot be made, and the process that it makes them in."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import doctor
from jobs.checks.setup import Command, Finding, NotChecked, Setup
from jobs.doctor import CHECKS, alone, chosen, examine, line, main
from shards.command import FAILED, OK, run_command

ALL = list(CHECKS)
AROUND = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION")


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (Command(), [name for name in ALL if name != "all-reduce"]),
        (Command(all_reduce=True), ALL),
        (Command(only="labels,config"), ["config", "labels"]),
        (Command(only="all-reduce"), ["all-reduce"]),
        (Command(only="all-reduce,config", skip="config"), ["all-reduce"]),
        (Command(quick=True), [n for n in ALL if n not in ("overfit", "batchnorm", "resume", "all-reduce")]),
        (Command(quick=True, only="overfit,config"), ["config"]),
        (Command(skip="wandb,nodes"), [name for name in ALL if name not in ("wandb", "nodes", "all-reduce")]),
    ],
)
def test_checks_are_made_in_their_own_order(command: Command, names: list[str]) -> None:
    assert chosen(command) == names


@pytest.mark.parametrize("command", [Command(only="config,x"), Command(skip="x")])
def test_a_check_that_is_not_there_is_named(command: Command) -> None:
    with pytest.raises(ValueError, match=r"^there is no check 'x': choose among config, partition, .*, all-reduce$"):
        chosen(command)


@pytest.fixture
def config_check(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the check of the config returns or raises, the last of the list."""
    results: list[Any] = []

    def check(setup: Setup) -> Finding:
        if isinstance(results[-1], Exception):
            raise results[-1]
        sys.stderr.write("a small run talks")
        return results[-1]  # type: ignore[no-any-return]

    monkeypatch.setattr("jobs.checks.data.check_config", check)
    return results


@pytest.mark.parametrize(
    ("error", "detail", "advice"),
    [
        (NotChecked("config", "no\nsuch file"), "no such file", ""),
        (NotChecked("shards", "no such set"), "not checked: see shards", ""),
        (NotChecked("run", "no such set"), "not checked: no such set", ""),  # no check of that name is made
        (ValueError("a bad\n  value"), "a bad value", "--only config --debug shows more"),
        (OSError(28, "No space left"), "[Errno 28] No space left", "--only config --debug shows more"),
        (KeyError("dice"), "KeyError: 'dice'", "--only config --debug shows more"),
    ],
)
def test_a_check_that_raises_is_a_finding(
    config_check: list[Any], tmp_path: Path, error: Exception, detail: str, advice: str
) -> None:
    config_check.append(error)
    finding = examine("config", Setup(Command(), tmp_path), ["config", "shards"])
    assert finding == Finding("FAIL", "config", detail, advice, finding.seconds)


@pytest.mark.parametrize("talks", [False, True])
def test_what_a_small_run_says_is_not_shown(
    config_check: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    talks: bool,
) -> None:
    config_check.append(Finding("ok", "config", "fine"))
    monkeypatch.setattr(doctor, "talkative", lambda: talks)
    examine("config", Setup(Command(), tmp_path), ["config"])
    assert capsys.readouterr().err == ("a small run talks" if talks else "")


@pytest.mark.parametrize(("level", "talks"), [(logging.DEBUG, True), (logging.INFO, False), (logging.WARNING, False)])
def test_debug_lets_small_runs_talk(level: int, talks: bool) -> None:
    root = logging.getLogger()
    before = root.level
    root.setLevel(level)
    try:
        assert doctor.talkative() is talks
    finally:
        root.setLevel(before)


@pytest.fixture
def quiet() -> Iterator[logging.Logger]:
    """The loggers of a run, at a level of the user's."""
    logger = logging.getLogger("petseg")
    before = logger.level
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(before)


def test_small_runs_are_one_process_whatever_is_around_them(
    quiet: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*AROUND, "KEPT"):
        monkeypatch.setenv(name, "4")
    before = dict(os.environ)
    within: dict[str, Any] = {}

    def run() -> None:
        within["set"] = [name for name in (*AROUND, "KEPT") if name in os.environ]
        within["levels"] = [logging.getLogger(name).level for name in ("petseg", "accelerate", "submitit")]
        os.environ |= {"RANK": "7", "NEW": "7"}
        raise RuntimeError("x")

    with pytest.raises(RuntimeError, match=r"^x$"), alone():
        run()
    assert within == {"set": ["KEPT"], "levels": [logging.ERROR] * 3}
    assert dict(os.environ) == before
    assert quiet.level == logging.INFO


def test_a_line_has_the_status_the_detail_and_the_advice() -> None:
    assert line(Finding("ok", "config", "fine", seconds=1.24)).plain == "ok    config      fine  1.2 s"
    assert line(Finding("FAIL", "all-reduce", "bad", "mend it")).plain == "FAIL  all-reduce  bad -> mend it  0.0 s"


@pytest.mark.parametrize(
    ("status", "code", "summary"),
    [
        ("ok", OK, "1 checks in 0 s: 0 failed, 0 with a warning"),
        ("warn", OK, "1 checks in 0 s: 0 failed, 1 with a warning"),
        ("FAIL", FAILED, "1 checks in 0 s: 1 failed, 0 with a warning"),
    ],
)
def test_a_warning_is_no_failure(
    config_check: list[Any], capsys: pytest.CaptureFixture[str], status: Any, code: int, summary: str
) -> None:
    config_check.append(Finding(status, "config", "as it is", "do this"))
    assert run_command(main, ["--only", "config", "--cluster", "local"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{status:4}  config      as it is -> do this")
    assert lines[1:] == [summary]
    assert run_command(main, ["--only", "config", "--cluster", "local", "--json"]) == code
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["status"], row["what"], row["detail"], row["advice"]) == (status, "config", "as it is", "do this")
