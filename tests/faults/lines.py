"""A pytest plugin that notes which test runs which line: `pytest -p tests.faults.lines`, then `read_lines`."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

REPOSITORY = Path(__file__).parents[2]
NOTES = REPOSITORY / ".faults"
WINGS = ("jobs", "petseg", "shards", "slurm")

_seconds: dict[str, float] = defaultdict(float)
_coverage: coverage.Coverage | None = None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Each worker of pytest-xdist notes its own lines, and the process above them how long each test took."""
    global _coverage
    if session.config.getoption("numprocesses", None):
        return
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    source = [str(REPOSITORY / wing) for wing in WINGS]
    _coverage = coverage.Coverage(data_file=NOTES / f"lines.{worker}", source=source, config_file=False)
    _coverage.set_option("run:relative_files", True)
    _coverage.erase()
    _coverage.start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if _coverage:
        _coverage.switch_context(item.nodeid)
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid] += report.duration


def pytest_sessionfinish() -> None:
    if _coverage:
        _coverage.stop()
        _coverage.save()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        NOTES.mkdir(exist_ok=True)
        (NOTES / "seconds.json").write_text(json.dumps(_seconds))


def read_lines() -> tuple[dict[str, dict[int, list[str]]], dict[str, float]]:
    """File -> line -> tests, the quickest first; and each test's seconds. Both are empty before the first notes."""
    if not (NOTES / "seconds.json").is_file():
        return {}, {}
    seconds: dict[str, float] = json.loads((NOTES / "seconds.json").read_text())
    tests: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for file in NOTES.glob("lines.*"):
        data = coverage.CoverageData(str(file))
        data.read()
        for name in data.measured_files():
            for line, contexts in data.contexts_by_lineno(name).items():
                tests[name][line] |= set(filter(None, contexts))
    quick = {
        name: {line: sorted(found, key=lambda test: seconds.get(test, 0.0)) for line, found in lines.items()}
        for name, lines in tests.items()
    }
    return quick, seconds
