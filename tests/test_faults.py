"""The tool that tries changes: which it makes, and what it says of a change that is found and of one that is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.faults.changes import changes_of

REPOSITORY = Path(__file__).parents[1]

SOURCE = '''
def last(values: list[int], most: int = 3) -> int:
    """The last of the first few."""
    if len(values) <= most:
        return values[
            -1
        ]
    return values[most - 1]
'''


def test_changes_keep_the_lines_and_leave_annotations_and_docstrings_alone(tmp_path: Path) -> None:
    path = tmp_path / "source.py"
    path.write_text(SOURCE)
    changes = list(changes_of(path))
    assert [(change.line, change.description) for change in changes] == [
        (4, "len(values) <= most -> len(values) < most"),
        (5, "return values[ -1 ] -> return None"),
        (6, "-1 -> 1"),
        (6, "1 -> 2"),
        (8, "return values[most - 1] -> return None"),
        (8, "most - 1 -> most + 1"),
        (8, "1 -> 2"),
    ]
    for change in changes:
        assert change.function == "last"
        assert change.text.count("\n") == SOURCE.count("\n")
        compile(change.text, "source.py", "exec")


TRY = """
import sys
from pathlib import Path

import pytest

from tests.faults.changes import changes_of
from tests.faults.trials import Trials

changes = list(changes_of(Path("source.py").resolve()))
report = lambda outcome: print(outcome.change.description, outcome.verdict, outcome.test, sep="|", file=sys.__stdout__)
trials = Trials(changes, lambda change, collected: collected, report)
pytest.main(["--quiet", "-p", "no:cacheprovider", "test_source.py"], plugins=[trials])
"""
TESTS = """
import os

from source import last

class Touchy:
    @property
    def __class__(self):
        raise RuntimeError("not to be asked")

touchy = Touchy()

def test_few():
    assert last([5, 6]) == 6

def test_many():
    assert last([5, 6, 7, 8, 9]) == 7

def test_that_fails_without_a_change():
    assert False
"""


def test_what_a_test_notices_is_told_from_what_none_does(tmp_path: Path) -> None:
    """Three values for `most` of 3 are in no test; a test that fails in any case finds nothing; the file is whole."""
    (tmp_path / "source.py").write_text(SOURCE)
    (tmp_path / "test_source.py").write_text(TESTS)
    command = [sys.executable, "-c", TRY]
    env = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{tmp_path}"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True, timeout=120)
    told = dict(line.split("|", 1) for line in done.stdout.splitlines() if "|" in line)
    few, many = "test_source.py::test_few", "test_source.py::test_many"
    assert told == {
        "len(values) <= most -> len(values) < most": "missed|",
        "return values[ -1 ] -> return None": f"found|{few}",
        "-1 -> 1": "missed|",
        "1 -> 2": f"found|{many}",
        "return values[most - 1] -> return None": f"found|{many}",
        "most - 1 -> most + 1": f"found|{many}",
    }
    assert (tmp_path / "source.py").read_text() == SOURCE
