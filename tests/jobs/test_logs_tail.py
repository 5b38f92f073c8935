"""What of a log is shown, and how long it is followed, without any job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import logs
from jobs.logs import BLOCK_BYTES, Tail, find_logs, follow, main, start_of_last_lines, why_not
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.state.trial_status import TrialStatus
from shards.command import NOT_KNOWN, printable, run_command
from tests.jobs.written_trials import sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A trial whose job on Slurm has two ranks."""
    sweep = sweep_of(tmp_path / "runs" / "lab", 1)
    (sweep.folder / "logs").mkdir()
    for rank, text in enumerate(("zero\n", "one\n")):
        (sweep.folder / "logs" / f"12_0_{rank}_log.out").write_text(text)
    sweep.add_submissions([Submission(sweep.trials[0].id, "12_0", "slurm", "12_0_0_log.out")])
    return sweep


def log(sweep: Sweep, rank: int) -> Path:
    return sweep.folder / "logs" / f"12_0_{rank}_log.out"


def test_new_text_follows_that_which_was_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log's name stands above its text where another one's came before; one that is written anew begins again."""
    one, other, tail = tmp_path / "one", tmp_path / "other", Tail(2)
    one.write_text("a\nb\nc\n")
    tail.show([one, tmp_path / "none"])
    assert capsys.readouterr().out == f"==> {one} <==\nb\nc\n"
    tail.show([one])
    assert capsys.readouterr().out == ""
    other.write_text("x\n")
    one.write_text("a\nb\nc\nd\n")
    tail.show([one, other])
    assert capsys.readouterr().out == f"d\n\n==> {other} <==\nx\n"
    one.write_text("e\n")
    tail.show([one, other])
    assert capsys.readouterr().out == f"\n==> {one} <==\ne\n"


def test_a_single_log_has_no_name_above_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").write_text("a\n")
    Tail(0).show([tmp_path / "one"])
    assert capsys.readouterr().out == "a\n"


def test_what_a_terminal_would_obey_is_shown_and_a_bar_becomes_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A character whose second byte comes later is one all the same."""
    path, tail = tmp_path / "one", Tail(0)
    path.write_bytes(b"10 %\r20 %\r\n\x1b[2J\xc3")
    tail.show([path])
    with path.open("ab") as file:
        file.write(b"\xa4\xff\n")
    tail.show([path])
    shown = capsys.readouterr().out
    assert shown.startswith("10 %\n20 %\n")
    assert "\x1b" not in shown
    assert shown.endswith("ä\N{REPLACEMENT CHARACTER}\n")


@pytest.mark.parametrize("lines", [1, 2, 3])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_lines_that_end_where_a_block_begins_are_counted_once(tmp_path: Path, lines: int, end: bytes) -> None:
    """Files are read from their end, in blocks."""
    for length in (BLOCK_BYTES - 2, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1):
        rows = [b"a", b"b" * length, b"c"]
        (tmp_path / "log").write_bytes(b"\n".join(rows) + end)
        assert start_of_last_lines(tmp_path / "log", lines) == (length + 3, 2, 0)[lines - 1], length


def test_a_rank_has_its_own_log(sweep: Sweep) -> None:
    (trial,) = sweep.trials
    assert find_logs(sweep, trial, None) == [log(sweep, 0), log(sweep, 1)]
    assert [find_logs(sweep, trial, rank) for rank in (0, 1, 2)] == [[log(sweep, 0)], [log(sweep, 1)], []]
    assert find_logs(sweep, Trial("other", {}, Path()), None) == []


@pytest.mark.parametrize(
    ("row", "rank", "words"),
    [
        ({"status": "running", "log": "x"}, 3, "rank 3 has not started, or the job has fewer"),
        ({"status": "running", "log": "x"}, 0, "it is running; --follow waits for it"),
        ({"status": "queued", "note": "Priority"}, None, "it is queued (Priority); --follow waits for it"),
        ({"status": "failed", "note": "killed", "silence": "no answer"}, None, "it is failed (killed: no answer)"),
        ({"status": "done"}, 3, "it is done"),
    ],
)
def test_why_there_is_no_log(row: dict[str, Any], rank: int | None, words: str) -> None:
    assert why_not(TrialStatus(Trial("x", {}, Path()), **row), rank) == words


def test_a_slurm_that_does_not_answer_may_have_a_log_later(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (trial,) = sweep.trials
    for rank in (0, 1):
        log(sweep, rank).unlink()
    row = TrialStatus(trial, "unknown", silence="squeue: timed out")
    monkeypatch.setattr(logs, "look", lambda sweep, trial: row)
    assert run_command(main, [str(sweep.folder), trial.id]) == NOT_KNOWN
    told = f"{trial.id} {trial.label} has no log yet: it is unknown (squeue: timed out); --follow waits for it"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("cluster", "asked"), [("slurm", ["12_0"]), ("local", [])])
def test_slurm_is_asked_for_the_job_of_the_trial_alone(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, cluster: str, asked: list[str]
) -> None:
    given: list[Any] = []

    def ask(folder: Path, job_ids: list[str], max_age_s: float, keep: bool) -> Any:
        given.append((folder, job_ids, max_age_s, keep))
        return SimpleNamespace(states={})

    monkeypatch.setattr(logs, "ask", ask)
    (trial,) = sweep.trials
    sweep.add_submissions([Submission(trial.id, "12_0", cluster, "x.out")])
    logs.look(sweep, trial)
    assert given == [(sweep.folder, asked, 10.0, False)]


class Looks:
    """Statuses in turn, a clock that a test moves on, and how often it was looked."""

    def __init__(self, trial: Trial, statuses: list[tuple[str, str]]) -> None:
        self.rows: Iterator[TrialStatus] = iter([TrialStatus(trial, one, note) for one, note in statuses])
        self.count, self.now = 0, 0.0
        self.slept: list[float] = []

    def look(self, sweep: Sweep, trial: Trial) -> TrialStatus:
        self.count += 1
        return next(self.rows)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += 5.0


@pytest.mark.parametrize(
    ("statuses", "told"),
    [
        ([("running", ""), ("done", "")], ["done"]),
        ([("queued", "Priority"), ("running", ""), ("failed", "a")], ["queued: Priority", "running", "failed: a"]),
        ([("queued", ""), ("queued", ""), ("unknown", ""), ("done", "")], ["queued", "unknown", "done"]),
        ([("stalled", "\x1b"), ("interrupted", "")], [printable("stalled: \x1b"), "interrupted"]),
    ],
)
def test_a_change_is_told_once_and_the_rest_of_the_log_comes_first(
    sweep: Sweep,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    statuses: list[tuple[str, str]],
    told: list[str],
) -> None:
    """Slurm is asked every ten seconds, here every second look at the log."""
    (trial,) = sweep.trials
    looks = Looks(trial, statuses)
    monkeypatch.setattr(logs, "look", looks.look)
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: looks.now, sleep=looks.sleep))
    follow(sweep, trial, Tail(0), 1, poll_s=0.25)
    captured = capsys.readouterr()
    assert captured.out == "one\n"
    said = [line.removeprefix(f"{trial.id} {trial.label} is ") for line in captured.err.splitlines()]
    assert said == told
    assert looks.count == len(statuses)
    assert looks.slept == [0.25] * 2 * (len(statuses) - 1)


def test_a_trial_that_says_that_it_is_over_is_looked_at_right_away(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trial,) = sweep.trials
    looks = Looks(trial, [("running", ""), ("done", "")])

    def sleep(seconds: float) -> None:
        looks.now += 1.0
        trial.write_state(TrialState("done"))

    monkeypatch.setattr(logs, "look", looks.look)
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: looks.now, sleep=sleep))
    follow(sweep, trial, Tail(0), None)
    assert looks.now == 1.0
