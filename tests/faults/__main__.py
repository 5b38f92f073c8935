"""Which changes to the code does no test notice?

python -m tests.faults lines                                   once, some 12 minutes: which test runs which line
python -m tests.faults petseg/losses.py                        tries all changes of a file and prints those not found
python -m tests.faults petseg/losses.py --function focal       those of one function
python -m tests.faults petseg/losses.py --tests tests/petseg/test_losses.py    with tests that are newer than the notes

A change is found if a test of the default suite fails. Many that are not found change nothing that matters: read them.
Each stands in the file while it is tried; if the command is killed, `git checkout` brings the file back.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections import Counter

import pytest

from tests.faults.changes import Change, changes_of
from tests.faults.lines import NOTES, REPOSITORY, read_lines
from tests.faults.trials import MISSED, Outcome, Trials

DEFAULT_TESTS = ["-m", "not slow"]


def note_lines() -> int:
    """Run the default tests on two workers and note which lines each runs."""
    NOTES.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "tests.faults.lines", *DEFAULT_TESTS, "--quiet"]
    command += ["--numprocesses", "2", "--dist", "worksteal"]
    # this one fills a disk: the notes do not survive
    command += ["--deselect", "tests/petseg/run_folder/test_checkpoint_disk.py"]
    return subprocess.run(command, cwd=REPOSITORY, check=False).returncode


def try_changes(changes: list[Change], extra_tests: list[str], most_tests: int, limit_s: float) -> Counter[str]:
    """Try each change with the tests in `extra_tests`, then with the quickest that are known to run its line."""
    lines, seconds = read_lines()
    counts: Counter[str] = Counter()

    def tests_of(change: Change, collected: list[str]) -> list[str]:
        of_file = lines.get(str(change.path.relative_to(REPOSITORY)), {})
        # a long expression may be known by the line on which its statement begins
        known = next((of_file[line] for line in range(change.line, change.line - 8, -1) if line in of_file), [])
        given = [name for name in collected if any(name.startswith(extra) for extra in extra_tests)]
        return list(dict.fromkeys(sorted(given, key=lambda name: seconds.get(name, 0.1)) + known[:most_tests]))

    def report(outcome: Outcome) -> None:
        counts[outcome.verdict] += 1
        change = outcome.change
        if outcome.verdict == MISSED:
            place = f"{change.path.relative_to(REPOSITORY)}:{change.line} {change.function}"
            by = "" if outcome.num_tests else " (no test runs this line)"
            print(f"{place}: {change.description}{by}", file=sys.__stderr__, flush=True)

    files = {test.split("::")[0] for change in changes for test in tests_of(change, [])}
    arguments = [*sorted(files | {test.split("::")[0] for test in extra_tests}), *DEFAULT_TESTS]
    arguments += ["--quiet", "-p", "no:cacheprovider", "-p", "no:xdist"]
    pytest.main(arguments, plugins=[Trials(changes, tests_of, report, limit_s)])
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="source files, or the word lines")
    parser.add_argument("--function", help="only changes of functions whose qualified name contains this")
    parser.add_argument("--draw", type=int, help="so many of the changes, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--tests", nargs="*", default=[], help="files or ids of tests to run for every change")
    parser.add_argument("--most-tests", type=int, default=30, help="of those that the notes name for a line")
    parser.add_argument("--limit-s", type=float, default=60, help="a change that runs longer counts as found")
    args = parser.parse_args()
    if args.files == ["lines"]:
        return note_lines()
    if not (NOTES / "seconds.json").is_file() and not args.tests:
        parser.error("which test runs which line is not known yet: run `python -m tests.faults lines`, or name --tests")
    if missing := [file for file in args.files if not (REPOSITORY / file).is_file()]:
        parser.error(f"no file {missing[0]} in {REPOSITORY}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(REPOSITORY)
    changes = [
        change
        for file in args.files
        for change in changes_of(REPOSITORY / file)
        if not args.function or args.function in change.function
    ]
    if args.draw:
        chosen = sorted(random.Random(args.seed).sample(range(len(changes)), min(args.draw, len(changes))))
        changes = [changes[number] for number in chosen]
    counts = try_changes(changes, args.tests, args.most_tests, args.limit_s)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()), file=sys.__stderr__)
    return 0


if __name__ == "__main__":  # processes that tests start import this module too
    sys.exit(main())
