"""Which runs are sent to wandb, with which content, and what is noted of those that were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.runs.naming import trial_name
from jobs.runs.trial import Submission, Sweep
from jobs.runs.trial_state import TrialState
from jobs.state.observed import Observed
from jobs.state.trial_status import TrialStatus
from jobs.wandb_sync import trials
from jobs.wandb_sync.replay import Outcome, Replay
from jobs.wandb_sync.trials import (
    NOTE_NAME,
    SyncPlan,
    Target,
    begin_of,
    content_hash,
    find_runs,
    location_of,
    mark_sent,
    plan_replays,
    read_note,
    summary_of,
)
from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run_folder.layout import Pruned, load_result, save_pruned
from petseg.tracking.artifacts import Artifact
from petseg.tracking.evaluation import OPTIONS
from petseg.tracking.naming import RunName
from petseg.tracking.note import TrackingNote
from petseg.tracking.note import read_note as read_tracking_note
from tests.jobs.reporting.written_sweep import Lab, epoch_rows, finish

URL = "https://api.wandb.ai"
PRUNED = Pruned("x", 3, 10, 2, 0.6, 0.55, 0.65, 4, "node1", 60.0)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A trial that is finished, one that was interrupted after two epochs, and one that has not begun."""
    (tmp_path / "shards").mkdir()
    sweep = Lab(tmp_path / "runs" / "lab", tmp_path / "shards", {"train.seed": [0, 1, 2]}).plan()
    finish(sweep.trials[0], 0.9)
    stopped = sweep.trials[1]
    epoch_rows(stopped, [0.4, 0.5])
    sweep.add_submissions([Submission(stopped.id, "no-such-job", "local", "")])
    stopped.write_state(TrialState("interrupted", job_id="no-such-job"))
    return sweep


def plan(sweep: Sweep, again: bool = False, **target: Any) -> SyncPlan:
    return plan_replays(sweep.folder, Target(URL, **target), again)


def ids(replays: tuple[Replay, ...]) -> list[str]:
    return [one.id for one in replays]


def test_a_run_that_was_sent_is_sent_again_once_its_content_or_its_project_is_another(sweep: Sweep) -> None:
    done, stopped, _ = sweep.trials
    first = plan(sweep)
    names = ids(first.replays)
    assert names == [trial_name(sweep, one.id, RunConfig()).wandb_id for one in (done, stopped)]
    assert [one.ended for one in first.replays] == ["finished", "interrupted"]
    assert (first.left_out, first.sent_before, first.project_urls) == ((), (), ())
    mark_sent(first.replays[0], Outcome(names[0], url=f"{URL}/run", project_url=f"{URL}/p"))
    second = plan(sweep)
    assert (ids(second.replays), ids(second.sent_before), second.project_urls) == (names[1:], names[:1], (f"{URL}/p",))
    assert ids(plan(sweep, again=True).replays) == names
    for target in ({"project": "other"}, {"entity": "team"}, {"artifacts": "small"}):
        assert ids(plan(sweep, **target).replays) == names, target
    epoch_rows(done, [0.5, 0.6, 0.9])
    assert ids(plan(sweep).replays) == names


def test_what_is_damaged_is_left_out_and_said(sweep: Sweep) -> None:
    """The rest is sent all the same."""
    done, stopped, planned = sweep.trials
    (planned.folder / "config.json").write_text("{")
    (done.folder / "result.json").write_text('{"speed": 3}')
    found = plan(sweep)
    assert [one.note_path.parent for one in found.replays] == [stopped.folder]
    of_config, of_result = found.left_out
    assert of_config.startswith(f"{planned.id} seed=2: {planned.folder / 'config.json'} ")
    assert of_result.startswith(f"{done.folder}: {done.folder / 'result.json'} ")


def test_a_damaged_config_hides_no_other_run(sweep: Sweep) -> None:
    (sweep.trials[0].folder / "config.json").write_text("{")
    runs, left_out = find_runs(sweep.folder)
    assert [run.folder for run in runs] == [one.folder for one in sweep.trials[1:]]
    assert (len(left_out), runs[0].ended) == (1, "interrupted")


def test_an_evaluation_is_a_run_of_its_own(sweep: Sweep) -> None:
    """It belongs to its trial, and goes to the same project; of a trial without rows it goes alone."""
    done, _, planned = sweep.trials
    content = dict.fromkeys(OPTIONS, 1) | {"no_native": False, "manifest_hash": "h", "split": "test", "weights": "ema"}
    content |= {"checkpoint": "best", "protocol": "p", "metrics": {"test/dice": 0.7}}
    for trial in (done, planned):
        (trial.folder / "evaluate-test.json").write_text(json.dumps(content))
    trial, evaluation, _, alone = plan(sweep, project="photos", entity="us").replays
    assert [one.is_evaluation for one in (trial, evaluation, alone)] == [False, True, True]
    assert evaluation.id.startswith(f"{trial.id}-eval-")
    assert evaluation.about["config"]["train_run"] == trial.id
    assert [evaluation.about[name] for name in ("project", "entity", "folder")] == ["photos", "us", str(done.folder)]
    assert (evaluation.note_path, evaluation.summary) == (done.folder / "wandb-sync-test.json", {"test/dice": 0.7})
    assert (evaluation.ended, alone.note_path.parent) == ("finished", planned.folder)


@pytest.mark.parametrize(("wanted", "which"), [(None, "all"), ("none", "none"), ("small", "small")])
def test_files_are_kept_as_the_command_says_and_else_as_the_config(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, wanted: Any, which: str
) -> None:
    asked: list[tuple[Any, ...]] = []

    def find(folder: Path, run_id: str, which: str) -> list[Artifact]:
        asked.append((folder, run_id, which))
        return [Artifact("weights", "model", {"a": "b"})]

    monkeypatch.setattr(trials, "find_artifacts", find)
    config = with_values(RunConfig(), {"tracking.artifacts": "all"})
    one = trials.build_replay(sweep.trials[0].folder, RunName("r"), config, "finished", Target(URL, artifacts=wanted))
    assert asked == [(sweep.trials[0].folder, "r", which)]
    assert one.note["artifacts"] == ["weights"]
    assert [artifact["name"] for artifact in one.artifacts] == ["weights"]


def test_live_trials_wait_for_their_end(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    states = ("running", "unknown", "planned")
    rows = tuple(TrialStatus(trial, state) for trial, state in zip(sweep.trials, states, strict=True))
    monkeypatch.setattr("jobs.wandb_sync.trials.observe", lambda sweep: Observed(sweep, rows))
    runs, left_out = find_runs(sweep.folder)
    assert [(run.folder, run.ended) for run in runs] == [(sweep.trials[2].folder, "failed")]
    assert left_out == [
        f"{trial.id} {trial.label} is {state}: sync again when it has ended"
        for trial, state in zip(sweep.trials[:2], states, strict=False)
    ]


def test_a_run_without_rows_is_not_sent_and_a_folder_of_one_run_is(sweep: Sweep) -> None:
    done, stopped, planned = sweep.trials
    assert plan_replays(planned.folder, Target(URL), again=False) == SyncPlan((), (), (), ())
    (one,) = plan_replays(stopped.folder, Target(URL), again=False).replays
    assert (one.ended, one.note_path) == ("interrupted", stopped.folder / NOTE_NAME)
    (one,) = plan_replays(done.folder, Target(URL), again=False).replays
    assert one.ended == "finished"
    (done.folder / "wandb").symlink_to(planned.folder)
    left = plan_replays(done.folder, Target(URL), again=False)
    assert (left.replays, len(left.left_out)) == ((), 1)  # the client would write to what the link points to


def test_the_project_is_that_of_the_command_and_else_that_of_the_run() -> None:
    config = with_values(RunConfig(), {"tracking.project": "own", "tracking.entity": "us"})
    secret = "https://me:hidden@wandb.lab"
    by_config, by_target = (location_of(config, Target(secret, *names)) for names in ((), ("p", "e")))
    assert (by_config.url, by_config.project, by_config.entity) == ("https://wandb.lab", "own", "us")
    assert (by_target.project, by_target.entity) == ("p", "e")
    about = {"id": "x", "project": "", "config": {"host": "node7", "a": 1}}
    assert begin_of(about, by_target) == about | {"project": "p", "entity": "e", "host": "node7"}


def test_the_summary_is_that_of_the_end(sweep: Sweep) -> None:
    done, stopped, _ = sweep.trials
    result = load_result(done.folder)
    assert result
    assert summary_of(done.folder) == result.metrics | {"best_epoch": 2, "parameters": 31_037_698}
    assert summary_of(stopped.folder) == {}
    save_pruned(PRUNED, stopped.folder)
    assert summary_of(stopped.folder) == {"pruned_epoch": 3, "best_epoch": 2, "val/dice": 0.6}


@pytest.mark.parametrize(
    "name",
    ["metrics.jsonl", "result.json", "pruned.json", "overlay_masks.npz", "config.json", "overrides.json", "lives.json"],
)
def test_a_change_of_any_file_that_is_sent_is_noticed(tmp_path: Path, name: str) -> None:
    """A heartbeat is none of them."""
    bare = content_hash(tmp_path, "finished")
    (tmp_path / "heartbeat.json").write_text("{}")
    assert content_hash(tmp_path, "finished") == bare != content_hash(tmp_path, "failed")
    (tmp_path / name).write_text("1")
    first = content_hash(tmp_path, "finished")
    (tmp_path / name).write_text("2")
    assert len({bare, first, content_hash(tmp_path, "finished")}) == 3


def test_a_note_that_cannot_be_read_is_as_if_there_were_none(tmp_path: Path) -> None:
    path = tmp_path / NOTE_NAME
    assert read_note(path) == {}
    for text, note in (('{"id": "x"}', {"id": "x"}), ("[1]", {}), ("{", {})):
        path.write_text(text)
        assert read_note(path) == note


def test_what_was_sent_is_noted_and_its_offline_files_are_marked(tmp_path: Path) -> None:
    """Those of this run alone: others are still to be sent, and jobs/clean.py frees what is marked."""
    outcome = Outcome("r", url=f"{URL}/run", project_url=f"{URL}/p")
    for folder, name in (("offline-run-1", "r"), ("offline-run-2", "other"), ("run-3", "r")):
        (tmp_path / "wandb" / folder).mkdir(parents=True)
        (tmp_path / "wandb" / folder / f"run-{name}.wandb").touch()
    trial = Replay(tmp_path / NOTE_NAME, {"id": "r", "job_type": "train"}, {}, "finished", {"id": "r", "content": "c"})
    about, path = {"id": "r-val", "job_type": "eval"}, tmp_path / "wandb-sync-val.json"
    evaluation = replace(trial, note_path=path, about=about, note={"id": "r-val"})
    mark_sent(evaluation, replace(outcome, url=f"{URL}/eval"))
    assert read_tracking_note(tmp_path) is None
    mark_sent(trial, outcome)
    assert json.loads(trial.note_path.read_text()) == {"id": "r", "content": "c", "project_url": f"{URL}/p"}
    assert json.loads(evaluation.note_path.read_text()) == {"id": "r-val", "project_url": f"{URL}/p"}
    assert read_tracking_note(tmp_path) == TrackingNote("sent", url=f"{URL}/run", project_url=f"{URL}/p")
    marked = [str(path.relative_to(tmp_path)) for path in tmp_path.glob("wandb/*/*.synced")]
    assert marked == ["wandb/offline-run-1/run-r.wandb.synced"]
