"""A pytest plugin that tries changes: it forks for each, swaps the code in the child, and runs the tests there.

The changed text stands in the file meanwhile, for processes that tests start.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from types import CodeType, FunctionType

import pytest

from tests.faults.changes import Change

FOUND, MISSED, TOO_LONG, NOT_IN = "found", "missed", "too long", "not put in"
UNNOTICED, NOTICED, NO_FUNCTION, BROKEN = range(4)  # exit codes of a child
COMMENT = "# harmless\n"


@dataclass(frozen=True)
class Outcome:
    change: Change
    verdict: str
    num_tests: int
    seconds: float = 0.0
    test: str = ""  # the one that failed


class Trials:
    """Tries each change with the tests that `tests_of` names, given those collected, and tells `report` of it."""

    def __init__(
        self,
        changes: list[Change],
        tests_of: Callable[[Change, list[str]], list[str]],
        report: Callable[[Outcome], None],
        limit_s: float = 60,
    ) -> None:
        self.changes, self.tests_of, self.report, self.limit_s = changes, tests_of, report, limit_s
        self.sound: set[str] = set()  # tests that pass in a child without a change

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        """No time is spent on the smallest example of a law that fails."""
        from hypothesis import Phase, settings  # pytest warns of what is imported before its plugins are

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("faults", settings.default, phases=phases, database=None)
        settings.load_profile("faults")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        for path in {change.path for change in self.changes}:
            _functions(str(path))  # once, not in each child
        gc.collect()
        gc.freeze()  # children share these pages
        for change in self.changes:
            while True:
                chosen = [items[name] for name in self.tests_of(change, list(items)) if name in items]
                outcome = _try(change, chosen, self.limit_s)
                if not outcome.test or outcome.test in self.sound:
                    break
                harmless = replace(change, text=change.path.read_text() + COMMENT)
                if _try(harmless, [items[outcome.test]], self.limit_s).verdict == MISSED:
                    self.sound.add(outcome.test)
                    break
                del items[outcome.test]  # it fails in any case: in a child, or as the working tree is not clean
            self.report(outcome)
        return True


def _try(change: Change, items: list[pytest.Item], limit_s: float) -> Outcome:
    if not items:
        return Outcome(change, MISSED, 0)
    before = change.path.read_bytes()
    began = time.monotonic()
    reader, writer = os.pipe()
    try:
        change.path.write_text(change.text)
        child = os.fork()
        if not child:
            _run(change, before.decode(), items, writer)  # does not return
        os.close(writer)
        status = _wait(child, began + limit_s)
    finally:
        change.path.write_bytes(before)
    os.set_blocking(reader, False)  # a process that the test left behind may still hold the other end
    with os.fdopen(reader, "rb") as file:
        test = (file.read() or b"").decode()
    if status == BROKEN:
        raise RuntimeError(f"the change could not be tried: {change.path}:{change.line}: {change.description}")
    verdict = {None: TOO_LONG, UNNOTICED: MISSED, NO_FUNCTION: NOT_IN}.get(status, FOUND)
    return Outcome(change, verdict, len(items), time.monotonic() - began, test)


def _wait(child: int, deadline: float) -> int | None:
    """The child's exit code; None, and the child with all its processes killed, once it is too late."""
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _run(change: Change, before: str, items: list[pytest.Item], writer: int) -> None:
    code = BROKEN
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        items[0].config.pluginmanager.unregister(name="terminalreporter")
        if not _swap(change, before) and change.text != before + COMMENT:
            code = NO_FUNCTION
            return
        code = NOTICED  # whatever ends this process from here on
        for item in items:
            notes = _Notes()
            item.config.pluginmanager.register(notes)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            item.config.pluginmanager.unregister(notes)
            if notes.failed:
                os.write(writer, item.nodeid.encode())
                return
        code = UNNOTICED
    finally:
        os._exit(code)


class _Notes:
    failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed


@cache
def _functions(path: str) -> list[FunctionType]:
    """All functions that this file has defined by now."""
    return [one for one in gc.get_objects() if type(one) is FunctionType and one.__code__.co_filename == path]


def _swap(change: Change, before: str) -> bool:
    """Give the changed code to all functions of the file that differ; False if there is none."""
    old, new = (dict(_codes(compile(text, str(change.path), "exec"))) for text in (before, change.text))
    differing = {name: new[name] for name in old if name in new and old[name] != new[name]}
    swapped = False
    for function in _functions(str(change.path)):
        code = function.__code__
        replacement = differing.get((code.co_qualname, code.co_firstlineno))
        if replacement and replacement.co_freevars == code.co_freevars:
            function.__code__ = replacement
            swapped = True
    return swapped


def _codes(code: CodeType) -> Iterator[tuple[tuple[str, int], CodeType]]:
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield (part.co_qualname, part.co_firstlineno), part
            yield from _codes(part)
