"""What sacct is asked, how its lines are read, and what its silence means."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from jobs.cost import accounting
from jobs.cost.accounting import Accounts, Start, ask_sacct, parse_starts


def line(**fields: str) -> str:
    """A line of sacct; FIELDS in their order."""
    usual = {
        "job": "12_0", "state": "COMPLETED", "elapsed": "600", "began": "1000", "limit": "60", "cores": "4",
        "asked_cores": "8", "held": "cpu=4", "asked": "cpu=8", "energy": "",
    }  # fmt: skip
    return "|".join((usual | fields).values())


USUAL = Start("12_0", "COMPLETED", 600.0, 1000.0, 3600.0, 4, None, None)


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"elapsed": ""}, "elapsed_s", 0.0),
        ({"began": "None"}, "began", float("inf")),
        ({"limit": "1"}, "limit_s", 60.0),
        ({"limit": "Partition_Limit"}, "limit_s", 0.0),
        ({"cores": "0"}, "cores", 8),
        ({"cores": "", "asked_cores": ""}, "cores", 0),
        ({"held": "cpu=4,gres/gpu=1", "asked": "gres/gpu=2"}, "gpus", 1),
        ({"held": "", "asked": "cpu=4,gres/gpu=2"}, "gpus", 2),
        ({"held": "cpu=4,gres/gpu:a100=4"}, "gpus", None),
        ({"held": "cpu=4,xgres/gpu=4"}, "gpus", None),
        ({"energy": "1"}, "energy_j", 1.0),
        ({"energy": "0"}, "energy_j", None),
        ({"energy": "999999999999999"}, "energy_j", 999_999_999_999_999.0),
        ({"energy": "1000000000000000"}, "energy_j", None),
        ({"state": "CANCELLED by 1000"}, "state", "CANCELLED"),
    ],
)
def test_one_field_of_a_line(fields: dict[str, str], name: str, value: Any) -> None:
    (start,) = parse_starts(line(**fields))
    assert vars(start) == vars(USUAL) | {name: value}


def test_lines_of_another_form_and_of_waiting_tasks_are_left_out() -> None:
    lines = [line(job="12_[3-9]"), "sacct: hello", line() + "|more", line(), "", line(job="13")]
    assert [start.job_id for start in parse_starts("\n".join(lines))] == ["12_0", "13"]


@pytest.mark.parametrize(
    ("state", "elapsed_s", "early", "asked_s"),
    [
        ("PENDING", 0.0, False, 3600.0),
        ("RUNNING", 5.0, False, 3600.0),
        ("SUSPENDED", 5.0, False, 3600.0),
        ("COMPLETING", 5.0, False, 3600.0),
        ("RESIZING", 5.0, False, 3600.0),
        ("COMPLETED", 0.0, False, 3600.0),
        ("FAILED", 5.0, True, 3600.0),
        ("TIMEOUT", 5.0, True, 3600.0),
        ("CANCELLED", 0.0, True, 0.0),
    ],
)
def test_a_start_asked_for_its_limit_unless_it_ended_in_the_queue(
    state: str, elapsed_s: float, early: bool, asked_s: float
) -> None:
    start = Start("1", state, elapsed_s, 0.0, 3600.0, 1, None)
    assert (start.ended_early, start.asked_s) == (early, asked_s)


def test_sacct_is_asked_once_for_each_array_and_other_tasks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], dict[str, Any]]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append((command, options))
        return subprocess.CompletedProcess(
            command, 0, "\n".join(line(job=one) for one in ("12_0", "12_1", "12_2", "9"))
        )

    monkeypatch.setattr(accounting.subprocess, "run", run)
    monkeypatch.setenv("KEPT", "yes")
    accounts = ask_sacct(["12_0", "12_2", "9", "12_0"])
    assert ([start.job_id for start in accounts.starts], accounts.silence) == (["12_0", "12_2", "9"], "")
    ((command, options),) = calls
    assert (command[0], command[-1]) == ("sacct", "--jobs=12,9")
    assert set(command[1:-1]) == {
        "--noheader", "--parsable2", "--allocations", "--duplicates",
        "--format=JobID,State,ElapsedRaw,Start,TimelimitRaw,AllocCPUS,ReqCPUS,AllocTRES,ReqTRES,ConsumedEnergyRaw",
    }  # fmt: skip
    assert (options["env"]["SLURM_TIME_FORMAT"], options["env"]["KEPT"]) == ("%s", "yes")
    assert (options["timeout"], options["check"], options["text"], options["capture_output"]) == (
        60.0,
        True,
        True,
        True,
    )
    assert ask_sacct([]) == Accounts()
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("error", "silence"),
    [
        (subprocess.TimeoutExpired("sacct", 60), "no answer in 60 s"),
        (FileNotFoundError("sacct"), ""),
        (subprocess.CalledProcessError(1, "sacct"), ""),
        (subprocess.CalledProcessError(1, "sacct", stderr="Slurm accounting storage is disabled\n"), ""),
        (subprocess.CalledProcessError(1, "sacct", stderr="sacct: error: refused\n"), "refused"),
    ],
)
def test_accounting_that_is_off_is_not_silent(monkeypatch: pytest.MonkeyPatch, error: Exception, silence: str) -> None:
    def run(*command: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(accounting.subprocess, "run", run)
    assert ask_sacct(["12"]) == Accounts(silence=silence)
