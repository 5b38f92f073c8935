"""What a chain's folder says of its jobs: the notes of their submission, how each ended, and the end of its log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.runs.log_files import RAISED, START_OF_ATTEMPT
from jobs.runs.trial import CHAIN_NOTES
from jobs.state import chain_state
from jobs.state.chain_state import (
    FOLDER,
    Note,
    _standing,
    _tail,
    add_note,
    chain_jobs,
    chain_lines,
    forget_end,
    has_chain,
    to_rows,
    write_end,
)
from slurm.cluster import JobState
from tests.jobs.written_trials import sweep_of

MISSING = JobState("MISSING", "", "", "squeue")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "lab"
    (folder / FOLDER).mkdir(parents=True)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], float | None]]:
    """What Slurm is asked, which has forgotten all jobs."""
    questions: list[tuple[list[str], float | None]] = []

    def states(ids: Sequence[str], timeout_s: float | None) -> dict[str, JobState]:
        questions.append((list(ids), timeout_s))
        return dict.fromkeys(ids, MISSING)

    monkeypatch.setattr(chain_state, "job_states", states)
    return questions


def submit(folder: Path, step: str, job_id: str) -> None:
    add_note(folder, Note(step, job_id, "", str(folder / FOLDER / f"{job_id}_0_log.out")))


def test_slurm_is_asked_about_the_jobs_that_have_noted_no_end(
    folder: Path, asked: list[tuple[list[str], float | None]]
) -> None:
    assert chain_jobs(folder) == []
    for step, job_id in (("pack", "1"), ("train", "2"), ("report", "3")):
        submit(folder, step, job_id)
    write_end(folder / FOLDER, "2", "jobs.chain", 0)
    assert [job.status for job in chain_jobs(folder, 2.5)] == ["unknown", "done", "unknown"]
    assert asked == [([], None), (["1", "3"], 2.5)]
    sweep_of(folder, 1)  # there are trials: who wrote them was at work, whether or not the report was made
    assert [job.status for job in chain_jobs(folder)] == ["done", "done", "unknown"]


def test_a_chain_that_failed_before_stays_failed_beside_a_sweep(
    folder: Path, asked: list[tuple[list[str], float | None]]
) -> None:
    submit(folder, "train", "2")
    write_end(folder / FOLDER, "2", "jobs.chain", 3)
    sweep_of(folder, 1)
    assert [job.status for job in chain_jobs(folder)] == ["failed"]


def test_the_jobs_since_the_last_pack_are_the_chain_each_step_once(
    folder: Path, asked: list[tuple[list[str], float | None]]
) -> None:
    for step, job_id in (
        ("report", "1"),
        ("pack", "2"),
        ("train", "3"),
        ("pack", "4"),
        ("report", "5"),
        ("report", "6"),
    ):
        submit(folder, step, job_id)
    assert [job.note.job_id for job in chain_jobs(folder)] == ["4", "6"]


def test_a_chain_without_a_pack_begins_with_its_first_note(
    folder: Path, asked: list[tuple[list[str], float | None]]
) -> None:
    submit(folder, "train", "1")
    submit(folder, "report", "2")
    assert [job.note.step for job in chain_jobs(folder)] == ["train", "report"]


def test_notes_of_strangers_name_no_file_elsewhere_and_no_option(
    folder: Path, asked: list[tuple[list[str], float | None]]
) -> None:
    assert not has_chain(folder)
    add_note(folder, Note("pack", "--all", "", "x"))
    add_note(folder, Note("pack", "7", "", "/etc/passwd"))
    with (folder / CHAIN_NOTES).open("a") as file:
        file.write('{"step": "train", "job\n7\n{"step": "train"}\n')
    add_note(folder, Note("train", "8", "afterok:7", "8_0_log.out"))
    assert has_chain(folder)
    logs = folder / FOLDER
    assert [job.note for job in chain_jobs(folder)] == [
        Note("pack", "7", "", str(logs / "passwd")),
        Note("train", "8", "afterok:7", str(logs / "8_0_log.out")),
    ]


def test_a_job_that_starts_again_has_not_ended(folder: Path, asked: list[tuple[list[str], float | None]]) -> None:
    submit(folder, "pack", "1")
    write_end(folder / FOLDER, "1", "shards.pack", 0)
    assert json.loads((folder / FOLDER / "1_end.json").read_text()) == {"module": "shards.pack", "code": 0}
    assert [job.status for job in chain_jobs(folder)] == ["done"]
    forget_end(folder / FOLDER, "1")
    forget_end(folder / FOLDER, "1")  # nothing is there to forget
    assert [job.status for job in chain_jobs(folder)] == ["unknown"]
    (folder / FOLDER / "1_end.json").write_text("{")
    assert [job.status for job in chain_jobs(folder)] == ["unknown"]


def log_of(folder: Path, text: str) -> Note:
    path = folder / FOLDER / "1_0_log.out"
    path.write_text(text)
    return Note("pack", "1", "", str(path))


def test_the_tail_of_a_log_is_what_the_step_said_last(folder: Path) -> None:
    started = f"submitit INFO (x) - {START_OF_ATTEMPT}job_id=1)\n"
    said = "one\n\n  two  \nsubmitit INFO (x) - a word\n" + "3" * 401 + f"\n\nfour\nsubmitit ERROR - {RAISED}\nTrace\n"
    assert _tail(log_of(folder, started + "before\n" + started + said)) == ("two", "3" * 400, "four")
    assert _tail(log_of(folder, started + "one\n")) == ("one",)
    assert _tail(Note("pack", "1", "", str(folder / "none"))) == ()


@pytest.mark.parametrize(
    ("end", "state", "status", "why", "tail"),
    [
        ({"code": 3, "module": "a.b"}, None, "failed", "python -m a.b ended with exit code 3", ("bye",)),
        ({"module": "a.b"}, None, "done", "", ()),
        ({}, JobState("MISSING", "", "", "squeue"), "unknown",
         "Slurm no longer knows it, and it did not record its end: see its log", ("bye",)),
        ({}, JobState("PENDING", "", "", "squeue"), "queued", "pending", ()),
        ({}, JobState("REQUEUED", "", "", "squeue"), "queued", "requeued", ()),
        ({}, JobState("PENDING", "JobHeldUser", "", "squeue"), "queued", "JobHeldUser", ()),
        ({}, JobState("RUNNING", "", "n1", "squeue"), "running", "running", ()),
        ({}, JobState("CANCELLED", "", "", "sacct"), "cancelled", "cancelled by somebody, or by Slurm", ()),
        ({}, JobState("TIMEOUT", "TimeLimit", "", "squeue"), "failed", "ended by Slurm: TIMEOUT TimeLimit", ("bye",)),
        ({}, JobState("NODE_FAIL", "", "", "sacct"), "failed", "ended by Slurm: NODE_FAIL", ("bye",)),
    ],
)  # fmt: skip
def test_a_job_that_did_not_end_well_shows_why_and_its_last_words(
    folder: Path, end: dict[str, Any], state: JobState | None, status: str, why: str, tail: tuple[str, ...]
) -> None:
    job = _standing(log_of(folder, "bye\n"), end, state)
    assert (job.status, job.why, job.tail) == (status, why, tail)


def test_a_job_that_never_starts_says_what_to_do(folder: Path) -> None:
    state = JobState("PENDING", "DependencyNeverSatisfied", "", "squeue")
    job = _standing(log_of(folder, "bye\n"), {}, state)
    assert job.why.startswith("never starts (DependencyNeverSatisfied): the job that it waits for failed")
    *_, last = chain_lines([job])
    assert last == (
        "  next: fix that, and run the same `python jobs/chain.py ...` again, which continues with what is there"
    )


def test_the_rows_of_a_document_have_the_note_and_the_state(folder: Path) -> None:
    job = _standing(Note("pack", "1", "afterok:9", "x.out"), {"code": 3, "module": "a.b"}, None)
    assert to_rows([job]) == [
        {
            "step": "pack", "job_id": "1", "dependency": "afterok:9", "log": "x.out", "state": "failed",
            "why": "python -m a.b ended with exit code 3",
        }
    ]  # fmt: skip
