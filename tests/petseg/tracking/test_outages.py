"""A wandb that refuses, misbehaves, dies or is out of reach: training goes on, and says once what is missing there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from petseg.config import RunConfig
from petseg.run_folder.layout import read_metrics
from petseg.tracking.naming import RunName
from petseg.tracking.note import TrackingNote, read_note
from petseg.tracking.tracker import Tracker
from petseg.training.loop import train
from shards.command import without_secrets
from tests.petseg.tracking.online_runs import NAME, OFF, online, row, the_run
from tests.wandb_server import KEY, Fault, WandbServer

QUICK_FAULTS: list[tuple[Fault, str]] = [("wrong json", "UpsertBucket"), ("hang", "")]
ALL_FAULTS: list[tuple[Fault, str]] = [
    (fault, where)
    for fault in ("401", "429", "500", "403", "hang", "reset", "wrong json")
    for where in ("", "UpsertBucket", "RunResumeStatus", "file_stream")
]


@pytest.mark.parametrize(
    ("fault", "where"),
    [*QUICK_FAULTS, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL_FAULTS if case not in QUICK_FAULTS)],
)
def test_a_server_that_misbehaves_does_not_hold_up_the_training(
    tmp_path: Path, server: WandbServer, fault: Fault, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """That it ends at all is what is tried: left to itself wandb's client would go on for hours."""
    server.fault, server.fault_at = fault, where
    tracker = Tracker(tmp_path, online(wait_s=1.5), RunName("x"), {}, resumed_epoch=0)
    for epoch in (1, 2):
        tracker.log(row(epoch))
    tracker.finish({})
    assert caplog.text.count(OFF) == 1
    assert "; metrics.jsonl has everything\n" in caplog.text
    assert KEY not in caplog.text
    assert len(read_metrics(tmp_path)) == 2
    note = read_note(tmp_path)
    assert note is not None
    assert (note.state, bool(note.reason)) == ("lost", True)
    assert KEY not in str(note)


def test_a_refusal_is_reported_while_the_training_runs(
    tmp_path: Path, server: WandbServer, wait_for: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """wandb's client drops what it has, and raises nothing."""
    server.fault, server.fault_at = "403", "file_stream"
    tracker = Tracker(tmp_path, online(), NAME, {}, resumed_epoch=0)
    tracker.log(row(1))
    wait_for(lambda: OFF in caplog.text)
    assert "(LostRows: Fatal error while uploading data)" in caplog.text
    assert f"; metrics.jsonl has everything, {NAME.resend}\n" in caplog.text
    tracker.log(row(2))
    tracker.finish({})
    assert caplog.text.count(OFF) == 1


def test_trials_that_wandb_refused_alike_give_the_same_reason(tmp_path: Path, server: WandbServer) -> None:
    server.fault, server.message = "401", "user is not logged in"
    for name in ("lab-1", "lab-2"):
        (tmp_path / name).mkdir()
        Tracker(tmp_path / name, online(), RunName(name), {}, resumed_epoch=0).finish({})
    first, second = (read_note(tmp_path / name) for name in ("lab-1", "lab-2"))
    assert first == second
    assert first is not None
    assert "user is not logged in" in first.reason


def test_a_server_that_is_gone_is_reported(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    Tracker(tmp_path, online(wait_s=1), NAME, {}, resumed_epoch=0).finish({})
    reason = "TimeoutError: wandb has not taken the run until 1 s after its end"
    assert read_note(tmp_path) == TrackingNote("lost", reason)


@pytest.mark.slow
def test_a_server_that_dies_on_the_way(
    tmp_path: Path, server: WandbServer, wait_for: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(tmp_path, online(wait_s=2), RunName("x"), {}, resumed_epoch=0)
    tracker.log(row(1))
    wait_for(lambda: server.runs and the_run(server).epochs == [1])
    server.fault = "reset"
    for epoch in (2, 3):
        tracker.log(row(epoch))
    tracker.finish({})
    assert caplog.text.count(OFF) == 1
    server.fault = ""
    Tracker(tmp_path, online(), RunName("x"), {}, resumed_epoch=3).finish({})
    assert the_run(server).epochs == [1, 2, 3]


def test_training_without_a_network_ends_as_it_should(
    tiny: Callable[..., RunConfig], tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("WANDB_BASE_URL", "http://user:hidden@127.0.0.1:9")
    result = train(tiny(tracking__wandb="online", tracking__wandb_wait_s=0.5), tmp_path)
    assert result.epochs == 2
    assert caplog.text.count(OFF) == 1
    assert "hidden" not in caplog.text


def test_a_key_of_the_wrong_form_is_not_logged(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "local-too short and with / odd signs")
    Tracker(tmp_path, online(), RunName("x"), {}, resumed_epoch=0).finish({})
    assert caplog.text.count(OFF) == 1
    assert "odd signs" not in caplog.text


def test_a_client_that_reads_nothing_is_not_waited_for(
    tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(tmp_path, online(wait_s=0.1), RunName("x"), {}, resumed_epoch=0)
    assert tracker._wandb is not None
    os.kill(tracker._wandb._process._process.pid, signal.SIGSTOP)
    for _ in range(10_000):  # more than a pipe holds
        tracker._wandb.read_rows()
    tracker.finish({})
    assert caplog.text.count(OFF) == 1


def test_messages_hold_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert without_secrets(f"{KEY} at https://me:word@host/x") == "*** at https://host/x"
    assert without_secrets("https://me:w@rd@host/x") == "https://host/x"
