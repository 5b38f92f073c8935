"""What a trial's state.json says, and what is read of one that somebody else wrote."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.runs.trial_state import NOT_BEGUN, TrialState, read_state, write_state
from shards.cause import Cause
from shards.files import NotRegular


def written(folder: Path, state: TrialState) -> dict[str, Any]:
    write_state(state, folder)
    content: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return content


def test_a_state_is_written_with_the_time_and_without_what_does_not_apply(tmp_path: Path) -> None:
    running = TrialState("running", host="node1", job_id="12_0", pid=7)
    content = written(tmp_path, running)
    assert content | {"time": 0} == {
        "status": "running", "host": "node1", "job_id": "12_0", "pid": 7, "restarts": 0, "time": 0,
    }  # fmt: skip
    assert content["time"] > 1.7e9
    failed = TrialState("failed", job_id="12_0", slot=2, at_once=3, error="a NaN", cause=Cause.NAN)
    content = written(tmp_path, failed)
    assert (content["slot"], content["at_once"], content["error"], content["cause"]) == (2, 3, "a NaN", "nan")
    assert read_state(tmp_path).cause is Cause.NAN


def test_a_state_is_that_of_one_job() -> None:
    state = TrialState("running", job_id="12_0")
    assert state.of_job("12_0") is state
    assert state.of_job("12_1") == NOT_BEGUN


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", "null", '{"status": NaN', "[" * 100_000],
    ids=["empty", "cut", "list", "null", "nan", "deep"],
)
def test_a_damaged_state_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    assert read_state(tmp_path) == NOT_BEGUN
    assert read_state(tmp_path / "none") == NOT_BEGUN


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", "melted"), ("status", 5), ("host", ["a"]), ("job_id", 12), ("pid", -1), ("pid", True),
        ("restarts", 1.5), ("slot", 2**31), ("at_once", None), ("error", {}), ("cause", "bad luck"), ("cause", None),
        ("time", float("inf")), ("time", "now"), ("time", 2**60), ("folder", "/etc"),
    ],
)  # fmt: skip
def test_invalid_values_of_a_state_are_left_out(tmp_path: Path, name: str, value: Any) -> None:
    good = {"status": "running", "host": "node1", "job_id": "12_0", "pid": 7, "time": 5}
    (tmp_path / "state.json").write_text(json.dumps(good | {name: value}))
    kept = {key: one for key, one in good.items() if key != name}
    assert read_state(tmp_path) == TrialState(**kept)


values = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.just(["a"])


@given(content=st.dictionaries(st.sampled_from([*TrialState.__dataclass_fields__, "other"]), values))
def test_any_values_are_a_state(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("trial")
    (folder / "state.json").write_text(json.dumps(content))
    state = read_state(folder)
    again = written(folder, state)
    assert read_state(folder) == TrialState(**(vars(state) | {"time": again["time"]}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pid", 0), ("pid", 2**31 - 1), ("restarts", 7), ("slot", 2), ("at_once", 3), ("status", "pruned"), ("time", 5),
        ("time", -1.5), ("error", ""), ("host", "node1"), ("job_id", "12_0"),
    ],
)  # fmt: skip
def test_valid_values_of_a_state_are_kept(tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / "state.json").write_text(json.dumps({name: value, "no_such": 1}))
    assert read_state(tmp_path) == replace(NOT_BEGUN, **{name: value})


def test_states_are_neither_read_nor_written_through_a_link(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere, trial = tmp_path / "elsewhere", tmp_path / "trial"
    write_state(TrialState("done"), elsewhere)
    trial.mkdir()
    os.mkfifo(trial / "state.json")
    assert read_state(trial) == NOT_BEGUN  # and nobody waits for a writer
    assert str(trial / "state.json") in caplog.text
    linked = tmp_path / "linked"
    linked.symlink_to(elsewhere)
    with pytest.raises(NotRegular):
        write_state(TrialState("failed"), linked)
    assert read_state(elsewhere).status == "done"


def test_a_first_state_makes_the_folder_and_the_time_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.runs.trial_state.time.time", lambda: 1234.5)
    write_state(TrialState("running", time=7.0), tmp_path / "trials" / "a")
    assert read_state(tmp_path / "trials" / "a") == TrialState("running", time=1234.5)
    assert read_state(tmp_path / "none") == NOT_BEGUN
