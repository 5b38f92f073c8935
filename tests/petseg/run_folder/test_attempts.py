"""Attempts at a run: numbered, fenced, and not without end."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from petseg.config import RunConfig
from petseg.run.parts import Parts
from petseg.run.progress import PartialEpoch
from petseg.run.run import Run
from petseg.run_folder import attempts as attempts_module
from petseg.run_folder import heartbeat as heartbeat_module
from petseg.run_folder.attempts import Attempt, begin_attempt, read_attempts, require_newest
from petseg.run_folder.checkout import Checkout
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import read_metrics
from petseg.training import epoch as epoch_module
from petseg.training import loop as train_module
from petseg.training.loop import train
from shards.command import Failure, Interrupted

Tiny = Callable[..., RunConfig]


def test_a_later_attempt_fences_off_earlier_ones(tmp_path: Path) -> None:
    first = begin_attempt(tmp_path, 0)
    require_newest(tmp_path, first)
    second = begin_attempt(tmp_path, 7)
    assert (first.number, second.number, second.first_step) == (1, 2, 7)
    require_newest(tmp_path, second)
    with pytest.raises(Interrupted, match=r"goes on in another process \(start 2 on .*\): this one, start 1, stops"):
        require_newest(tmp_path, first)


def test_an_attempt_notes_where_and_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("PETSEG_CODE", "0123456789ab")
    monkeypatch.setattr(attempts_module, "running_code", lambda: Checkout("c0ffee", True, "git@host:lab"))
    monkeypatch.setattr("petseg.run_folder.attempts.time.time", lambda: 12.5)
    begun = begin_attempt(tmp_path, 3, world_size=8)
    assert begun == Attempt(
        number=1, host=socket.gethostname(), job_id="4711", code="0123456789ab", first_step=3, time=12.5, world_size=8,
        commit="c0ffee", changed=True, remote="git@host:lab",
    )  # fmt: skip
    monkeypatch.delenv("SLURM_JOB_ID")
    later = begin_attempt(tmp_path, 3)
    assert (later.number, later.job_id, later.world_size) == (2, "", 0)
    assert read_attempts(tmp_path) == [begun, later]


@pytest.mark.parametrize("content", ["{}", "[1]", "[{}]", "not JSON", '[{"number": 1}]'])
def test_a_damaged_list_of_attempts_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "lives.json").write_text(content)
    with pytest.raises(ValueError, match=r"lives.json is damaged \(.*then delete the file and start the run again"):
        read_attempts(tmp_path)


def test_a_run_that_never_began_has_no_attempts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_attempts(tmp_path) == read_attempts(tmp_path / "file") == []


def test_starts_without_progress_end(tmp_path: Path) -> None:
    for _ in range(3):
        begin_attempt(tmp_path, 4, max_without_progress=3)
    with pytest.raises(Failure, match=r"made no progress in 3 starts, all at step 4 \(on .*delete .*lives\.json"):
        begin_attempt(tmp_path, 4, max_without_progress=3)
    assert begin_attempt(tmp_path, 5, max_without_progress=3).number == 4
    assert begin_attempt(tmp_path, 5).number == 5  # no limit for who starts it by hand


def test_a_run_that_moved_on_between_its_starts_is_not_stuck(tmp_path: Path) -> None:
    for first_step in (4, 5, 5):
        begin_attempt(tmp_path, first_step, max_without_progress=3)
    assert begin_attempt(tmp_path, 5, max_without_progress=3).number == 4
    with pytest.raises(Failure, match="no progress in 3 starts, all at step 5"):
        begin_attempt(tmp_path, 5, max_without_progress=3)


def test_only_the_newest_attempts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_module, "KEPT_ATTEMPTS", 3)
    for _ in range(5):
        begin_attempt(tmp_path, 0)
    assert [attempt.number for attempt in read_attempts(tmp_path)] == [3, 4, 5]


def test_a_run_that_was_taken_over_writes_nothing_more(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Split brain: the job was requeued, and its old copy on a node without network goes on."""
    validate, calls = train_module.validate, []

    def taken_over(parts: Parts) -> dict[str, float]:
        calls.append(parts)
        if len(calls) == 2:
            begin_attempt(tmp_path, 4)
        return validate(parts)

    monkeypatch.setattr(train_module, "validate", taken_over)
    with pytest.raises(Interrupted, match="goes on in another process"):
        train(tiny(train__epochs=3), tmp_path)
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1]
    assert [c.state["epoch"] for c in list_checkpoints(tmp_path / "checkpoints")] == [1]


def test_a_run_that_was_taken_over_saves_nothing_within_an_epoch(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_within = epoch_module.save_within

    def taken_over(run: Run, partial: PartialEpoch) -> None:
        if partial.steps == 2:
            begin_attempt(tmp_path, run.progress.done_steps)
        save_within(run, partial)

    monkeypatch.setattr(epoch_module, "save_within", taken_over)
    with pytest.raises(Interrupted, match="goes on in another process"):
        train(tiny(train__epochs=1, train__log_every=1, train__save_every_min=1e-9), tmp_path)
    assert [c.step for c in list_checkpoints(tmp_path / "checkpoints")] == [1]


def test_a_run_saves_by_the_clock_and_says_how_far_it_is(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    save_within = epoch_module.save_within

    def noted(run: Run, partial: PartialEpoch) -> None:
        save_within(run, partial)
        saved.append(run.progress.partial.steps)

    monkeypatch.setattr(epoch_module, "save_within", noted)
    monkeypatch.setattr(heartbeat_module, "HEARTBEAT_EVERY_S", 0.0)
    train(tiny(train__epochs=1, train__log_every=1, train__save_every_min=1e-9), tmp_path)
    assert saved == [1, 2, 3]  # and the fourth step ends the epoch
    beat = heartbeat_module.read_heartbeat(tmp_path)
    assert beat is not None
    assert (beat.epoch, beat.epochs, beat.step, beat.steps_per_epoch) == (1, 1, 4, 4)


def test_a_run_resumed_with_other_code_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = []
    for code in ("0123456789ab", "0123456789ab", "ba9876543210", "ba9876543210", ""):
        caplog.clear()
        monkeypatch.setenv("PETSEG_CODE", code)
        begin_attempt(tmp_path, 0)
        said.append([record.getMessage() for record in caplog.records if record.levelname == "WARNING"])
    assert [len(lines) for lines in said] == [0, 0, 1, 0, 1]
    assert f"{tmp_path} goes on with code ba9876543210, where start 2 on " in said[2][0]
    assert "ran code 0123456789ab" in said[2][0]
    assert "goes on with the code of the working tree, where start 4 on " in said[4][0]


def test_code_of_the_working_tree_has_no_hash_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("PETSEG_CODE", raising=False)
    begin_attempt(tmp_path, 0)
    begin_attempt(tmp_path, 4)
    assert not caplog.records
