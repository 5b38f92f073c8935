"""Which jobs a sweep's folder says its trials had."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.design.shard_sets import ShardSet
from jobs.runs.trial import SUBMISSIONS_NAME, Submission, Trial
from jobs.runs.trial_state import TrialState
from petseg.run_folder.attempts import begin_attempt
from petseg.run_folder.layout import Pruned, save_pruned
from tests.jobs.written_trials import finish, sweep_of


def test_only_a_last_line_that_a_kill_cut_short_is_left_out_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = sweep_of(tmp_path / "runs" / "lab", 1)
    (trial,) = sweep.trials
    sweep.add_submissions([Submission(trial.id, "12", "slurm", "")])
    path = sweep.folder / SUBMISSIONS_NAME
    whole = path.read_text()
    path.write_text(whole + '{"trial": "0')
    with caplog.at_level(logging.WARNING):
        assert [one.job_id for one in sweep.all_submissions()] == ["12"]
        assert not caplog.records
        path.write_text('{"trial": "0\n' + whole)
        assert [one.job_id for one in sweep.all_submissions()] == ["12"]
    assert f"{path}:1 is damaged" in caplog.text


@pytest.mark.parametrize(
    ("axes", "label"),
    [
        ({"model.arch": "unet", "augment.policy": "elastic", "train.seed": 3}, "unet elastic"),
        ({"model.arch": "unet"}, "unet"),
        ({"train.seed": 3}, "all trials"),
        ({}, "all trials"),
    ],
)
def test_a_cell_is_called_by_its_values_but_the_seed(axes: dict[str, Any], label: str) -> None:
    assert Trial("0123456789", axes, Path("none")).cell == label


def test_submissions_are_read_in_their_order_less_those_that_were_withdrawn(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "runs" / "lab", 3)
    a, b, c = (trial.id for trial in sweep.trials)
    assert sweep.all_submissions() == []
    sweep.add_submissions([Submission(a, "7", "slurm", "/elsewhere/7_0_log.out", "petseg:ab", 0)])
    sweep.add_submissions(Submission(one, "", "slurm", "", "petseg:ab", place) for place, one in ((1, b), (2, c)))
    sweep.add_submissions([Submission(c, "", "slurm", "", "petseg:cd", 0)])
    sweep.withdraw_intent("petseg:ab")
    logs = sweep.folder.absolute() / "logs"
    own = Submission(a, "7", "slurm", str(logs / "7_0_log.out"), "petseg:ab", 0)
    assert sweep.all_submissions() == [own, Submission(c, "", "slurm", "", "petseg:cd", 0)]
    sweep.add_submissions([Submission(a, "8", "slurm", "")])
    assert {name: one.job_id for name, one in sweep.submissions().items()} == {a: "8", c: ""}


@pytest.mark.parametrize(
    "changed",
    [
        {"trial": ""}, {"trial": "../x"}, {"trial": "a" * 65}, {"job_id": "--help"}, {"job_id": "7 8"}, {"place": -1},
        {"intent": "petseg:"}, {"intent": "../x"}, {"intent": "petseg:xyz"},
    ],
)  # fmt: skip
def test_a_submission_names_no_path_and_no_option(changed: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"trial": "a" * 64, "job_id": "12_0", "cluster": "slurm", "log": "", "intent": "petseg:0f"}
    Submission(**fields)
    Submission(**fields | {"intent": "", "job_id": "", "place": 1})
    with pytest.raises(ValueError, match="a submission"):
        Submission(**fields | changed)


def test_a_pruned_trial_that_goes_on_counts_as_interrupted(tmp_path: Path) -> None:
    trial = sweep_of(tmp_path / "runs" / "lab", 1).trials[0]
    trial.resume_pruned()
    assert (trial.state(), trial.has_ended, trial.pruned()) == (TrialState(), False, None)
    save_pruned(Pruned(trial.id, 4, 10, 3, 0.7, 0.6, 0.65, 16, "node9", 60.0), trial.folder)
    trial.write_state(TrialState("pruned", host="node9", job_id="7"))
    assert trial.has_ended
    trial.resume_pruned()
    state = trial.state()
    assert (state.status, state.host, state.job_id, state.error) == (
        "interrupted",
        "node9",
        "7",
        "it was stopped early",
    )
    assert (trial.has_ended, trial.pruned()) == (False, None)
    finish(trial)
    assert trial.has_ended


def test_a_trial_has_its_share_of_a_job_and_starts_that_can_be_read(tmp_path: Path) -> None:
    trial = sweep_of(tmp_path / "runs" / "lab", 1).trials[0]
    assert (trial.share(), trial.attempts(), trial.label) == (1.0, [], "unet seed=0")
    trial.write_state(TrialState("running", at_once=4))
    assert trial.share() == 0.25
    trial.write_state(TrialState("running", at_once=0))
    assert trial.share() == 1.0
    (trial.folder / "lives.json").write_text(json.dumps([{"number": "x"}]))
    assert trial.attempts() == []


def test_a_trial_is_measured_on_its_own_set_or_on_the_first_of_the_sweep(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "runs" / "lab", 2)
    first, second = sweep.trials
    assert (sweep.hash_of(first), sweep.hashes) == ("0" * 16, ("0" * 16,))
    assert sweep.hash_of(replace(second, manifest_hash="b")) == "b"
    sets = tuple(ShardSet(name, name) for name in ("b", "0" * 16, "c"))
    assert replace(sweep, shard_sets=sets).hashes == ("0" * 16, "b", "c")


OPTION = '{"trial": "a", "job_id": "--all", "cluster": "slurm", "log": ""}'


@pytest.mark.parametrize("line", ["[1]", "7", "null", '{"trial": "a"}', OPTION])
def test_a_line_that_is_no_submission_hides_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    sweep = sweep_of(tmp_path / "lab", 1)
    sweep.add_submissions([Submission(sweep.trials[0].id, "12", "slurm", "")])
    path = sweep.folder / SUBMISSIONS_NAME
    path.write_text(f"{line}\n{path.read_text()}")
    assert [one.job_id for one in sweep.all_submissions()] == ["12"]
    assert f"{path}:1 is damaged" in caplog.text


def test_a_damaged_line_that_stands_alone_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = sweep_of(tmp_path / "lab", 1)
    path = sweep.folder / SUBMISSIONS_NAME
    path.write_text('{"trial": "0')
    assert sweep.all_submissions() == []
    assert f"{path}:1 is damaged" in caplog.text


def test_submissions_are_not_read_through_a_link(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "lab", 1)
    (tmp_path / "elsewhere").touch()
    (sweep.folder / SUBMISSIONS_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=SUBMISSIONS_NAME):
        sweep.all_submissions()


def test_starts_are_read_and_damage_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = sweep_of(tmp_path / "lab", 2).trials
    attempt = begin_attempt(one.folder, 5)
    assert one.attempts() == [attempt]
    (two.folder / "lives.json").write_text("[")
    assert two.attempts() == two.attempts() == []
    (told,) = caplog.messages
    assert told.startswith(f"left out: {two.folder / 'lives.json'}")


def test_a_trial_has_ended_once_it_has_a_result_or_was_stopped_early(tmp_path: Path) -> None:
    done, pruned, neither = sweep_of(tmp_path / "lab", 3).trials
    finish(done)
    where = Pruned(pruned.id, 4, 10, 3, 0.7, 0.6, 0.65, 16, "node9", 60.0)
    save_pruned(where, pruned.folder)
    assert [trial.has_ended for trial in (done, pruned, neither)] == [True, True, False]
    assert [trial.pruned() for trial in (done, pruned, neither)] == [None, where, None]
    assert done.result() is not None
    assert [trial.result() for trial in (pruned, neither)] == [None, None]
