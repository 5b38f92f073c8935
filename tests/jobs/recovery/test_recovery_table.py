"""Each row of the table in docs/operating.md names tests that exist."""

from __future__ import annotations

import re

from tests.jobs.faulty_checkout import REPOSITORY

PAGE = REPOSITORY / "docs" / "operating.md"


def test_each_row_names_tests_that_exist() -> None:
    text = PAGE.read_text().partition("### Failures and tests")[2]
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 25
    for number, row in rows:
        cells = [cell.strip() for cell in row.split(" | ")]
        assert len(cells) == 4, number
        assert all(cells), number
        assert re.search(r"`tests/\S+::\w+`", cells[-1]) or "cannot be rehearsed" in cells[-1], number
    named = set(re.findall(r"`(tests/[^`]+)`", text))
    for name in named:
        path, _, test = name.partition("::")
        assert re.search(rf"^def {test}\(", (REPOSITORY / path).read_text(), re.MULTILINE), name
