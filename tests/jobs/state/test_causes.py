"""Causes are named where an error is raised, and no expression of ours reads what another room of ours says."""

from __future__ import annotations

import ast
import errno
import importlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.node.rendezvous import RanksNotMet
from jobs.runs import log_files
from jobs.runs.log_files import RAISED, START_OF_ATTEMPT, own_part
from jobs.runs.trial import INTENT, JOB_ID, TRIAL_ID
from petseg.data.local_cache import CacheTooSmall
from petseg.data.remote.staging import NotFetched
from petseg.footprint.gpus import NodeFault
from petseg.run.peers import LostPeer
from shards.cause import Cause, ShardSetError, cause_of
from shards.command import Failure, Interrupted

REPOSITORY = Path(__file__).parents[3]
FILES = [path for wing in ("shards", "petseg", "slurm", "jobs") for path in sorted((REPOSITORY / wing).rglob("*.py"))]
OF_NAMES = {TRIAL_ID, INTENT, JOB_ID}  # a whole name must match these; none is searched for in a text
# where the words of other programs stand in our source: the tables themselves, and what else looks for such words
FOREIGN = {
    "jobs/state/causes.py": "",
    "jobs/runs/log_files.py": "",
    "jobs/launch/bad_nodes.py": "DUE TO NODE FAILURE",
    "petseg/run/peers.py": "Connection (closed|reset) by peer|",
}


def patterns() -> dict[re.Pattern[str], str]:
    """The expressions of the rooms that read logs and errors -> where they stand."""
    found = {re.compile(re.escape(text)): "jobs.runs.log_files" for text in (START_OF_ATTEMPT, RAISED)}
    for room in ("jobs/state", "jobs/runs"):
        for path in sorted((REPOSITORY / room).glob("*.py")):
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            for value in vars(importlib.import_module(name)).values():
                found |= {pattern: name for pattern in patterns_in(value) if pattern not in OF_NAMES}
    return found


def patterns_in(value: Any) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from patterns_in(one)


def texts(path: Path) -> Iterator[str]:
    """All literals of a file but its docstrings, with `x` for what is filled in."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    firsts = (node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and node.body)
    skipped = {id(first.value) for first in firsts if isinstance(first, ast.Expr)}
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    for one in joined:
        skipped |= {id(part) for part in one.values}
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in one.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def test_no_expression_for_logs_and_errors_matches_a_text_of_ours() -> None:
    """So any message can be reworded."""
    expressions = patterns()
    assert len(expressions) > 15
    said = [(name, text) for path in FILES for name in [str(path.relative_to(REPOSITORY))] for text in texts(path)]
    assert any("the loss became NaN or infinite" in text for _, text in said)
    for name, text in said:
        if not (name in FOREIGN and text.startswith(FOREIGN[name])):
            read_by = [place for pattern, place in expressions.items() if pattern.search(text)]
            assert not read_by, f"{name}: {text!r} is looked for in {read_by}"


NAMED = {"cause", *(f"Cause.{cause.name}" for cause in Cause)}


def test_every_failure_that_a_trial_can_meet_names_its_cause() -> None:
    for path in (path for path in FILES if path.is_relative_to(REPOSITORY / "petseg")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Failure":
                assert ast.unparse(node.args[-1]) in NAMED, f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Failure("anything", Cause.NAN), Cause.NAN),
        (Failure("the loss became NaN or infinite"), None),
        (Interrupted("saved"), None),
        (LostPeer("gone"), Cause.UNKNOWN),
        (NodeFault("no GPU"), Cause.NODE_FAILURE),
        (ShardSetError("no set"), Cause.DATA),
        (NotFetched("no network"), Cause.DATA),
        (CacheTooSmall("4 GB"), Cause.DISK_FULL),
        (RanksNotMet("rank 0 is late"), Cause.LAUNCH),
        (OSError(errno.ENOSPC, "full"), Cause.DISK_FULL),
        (OSError(errno.ESTALE, "stale"), Cause.NODE_FAILURE),
        (OSError("no errno"), None),
        (ValueError("shards.verify: pack the set again"), None),
    ],
)
def test_causes_of_errors(error: Exception, cause: Cause | None) -> None:
    assert cause_of(error) is cause


def test_a_log_is_divided_by_the_lines_that_jobs_write() -> None:
    """Both sides share the texts: what one writes, the other finds."""
    record = logging.LogRecord("jobs.node.task", logging.ERROR, "", 0, log_files.TRIAL_FAILED, ("a-b_1",), None)
    formatter = logging.Formatter("%(asctime)s rank 0 %(levelname)s %(name)s: %(message)s", log_files.LOG_TIME)
    line = formatter.format(record)
    log = f"{line}\nTraceback (most recent call last):\nKeyError: 'x'\n{formatter.format(record)}"
    assert own_part(log, "a-b_1").strip() == "Traceback (most recent call last):\nKeyError: 'x'"
    started = log_files.START_OF_WORKER % ("JobEnvironment(job_id=1)", 1, 2)
    assert START_OF_ATTEMPT in started
