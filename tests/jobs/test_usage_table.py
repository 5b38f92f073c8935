"""The table and the document of `jobs/usage.py`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cost.usage import Line, Usage
from jobs.usage import main, render, to_document
from shards.command import NOT_KNOWN, OK, run_command
from tests.jobs.written_trials import sweep_of

METERED = Line("unet seed=0", "12_0", ("a", "b"), 2, "COMPLETED", 8.0, 1.25, 0.25, 1.5)
PLAIN = Line("unet [b]seed[/b]=1", "12_1", ("c",), 1, "FAILED", None, 0.75, 0.75)
USAGE = Usage("sacct", "GPU hours", (METERED, PLAIN), ("a note",))


def columns_of(usage: Usage, folder: Path) -> dict[str, list[str]]:
    """By its header, how a column is justified, its cells and its footer."""
    return {
        str(column.header): [column.justify, *(str(cell) for cell in column.cells), str(column.footer)]
        for column in render(sweep_of(folder / "lab", 1), usage).columns
    }


def test_each_job_has_a_row_and_the_sums_stand_below(tmp_path: Path) -> None:
    assert columns_of(USAGE, tmp_path) == {
        "axes": ["left", "unet seed=0", "unet [b]seed[/b]=1", "all"],
        "job": ["left", "12_0", "12_1", ""],
        "starts": ["right", "2", "1", ""],
        "state": ["left", "COMPLETED", "FAILED", ""],
        "asked": ["right", "8", "", "8"],
        "used": ["right", "1.25", "0.75", "2"],
        "wasted": ["right", "0.25", "0.75", "1 (50 %)"],
        "kWh": ["right", "1.5", "", "1.5"],
    }


def test_without_meters_and_without_use(tmp_path: Path) -> None:
    unused = Usage("records", "CPU hours", (replace(PLAIN, used_h=0.0, wasted_h=0.0),), ())
    columns = columns_of(unused, tmp_path)
    assert "kWh" not in columns
    assert columns["wasted"] == ["right", "0", "0"]
    assert to_document(sweep_of(tmp_path / "x", 1), unused)["lower_bound"] is True


@pytest.mark.parametrize(("doubts", "code"), [((), OK), (("sacct does not answer",), NOT_KNOWN)])
def test_doubts_are_told_and_are_in_the_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    doubts: tuple[str, ...],
    code: int,
) -> None:
    sweep = sweep_of(tmp_path / "runs" / "lab", 1)
    monkeypatch.setattr("jobs.usage.measure", lambda _: replace(USAGE, doubts=doubts))
    monkeypatch.setenv("COLUMNS", "60")
    assert run_command(main, [str(sweep.folder)]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip() == "lab: GPU hours, by sacct"
    assert lines[-1 - len(doubts) :] == ["a note", *doubts]
    assert run_command(main, [str(sweep.folder), "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["notes"] == ["a note", *doubts]
    assert (document["asked_h"], document["used_h"], document["wasted_h"]) == (8.0, 2.0, 1.0)
    assert (document["energy_kwh"], document["lower_bound"]) == (1.5, False)
    assert document["lines"][1]["trials"] == ["c"]
