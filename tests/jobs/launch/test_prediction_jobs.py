"""Which parts a command of a prediction submits, with which work, and how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.launch import prediction as module
from jobs.launch.dry_run import SLURM_PATIENCE_S
from jobs.launch.prediction import (
    SOME_BAD,
    Standing,
    identity_of,
    launch_prediction,
    recover,
    settle_weights,
    show_prediction,
    submit_missing,
    task_of,
)
from jobs.launch.prediction_options import PredictionOptions
from jobs.launch.submit import Submitted
from jobs.node.prediction import PredictTask
from jobs.runs.parts import JOBS_NAME, PICTURES_NAME, load_parts, plan_parts, read_pictures, write_pictures
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.state.observed import Observed
from jobs.state.trial_status import TrialStatus
from petseg.inference.many.inputs import Input
from petseg.inference.many.outputs import COMMAND_NAME, Row
from petseg.inference.many.wanted import Wanted
from shards.command import FAILED, INTERRUPTED, NOT_KNOWN, OK
from shards.files import read_json_object
from slurm.request import Request
from slurm.resources import Resources
from tests.jobs.written_trials import sweep_of


@pytest.fixture
def options(tmp_path: Path) -> PredictionOptions:
    """Four pictures in two parts."""
    (tmp_path / "photos").mkdir()
    for number in range(4):
        (tmp_path / "photos" / f"{number}.png").touch()
    (tmp_path / "w.safetensors").write_text("weights")
    return PredictionOptions(
        source=(str(tmp_path / "photos"),), out=tmp_path / "out", weights=(tmp_path / "w.safetensors",), parts=2,
        resources=Resources(gpus_per_node=0, cpus_per_task=3), wanted=Wanted(tta="flips"), max_parallel=1,
    )  # fmt: skip


class Submissions:
    """Takes the place of Slurm, which has room for so many jobs; notes what it is given."""

    def __init__(self) -> None:
        self.room, self.calls = 9, list[Any]()

    def submit_tasks(
        self, launch: Any, sweep: Sweep, parts: Sequence[Trial], make_task: Any, show: bool = True
    ) -> Submitted:
        work = make_task(Resources(cpus_per_task=5))
        pictures = [[item.name for item in read_pictures(part.folder / PICTURES_NAME)] for part in parts]
        self.calls.append(
            SimpleNamespace(launch=launch, sweep=sweep, parts=parts, work=work, show=show, given=pictures)
        )
        return Submitted(tuple(parts), tuple(parts[self.room :]))


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Submissions:
    taken = Submissions()
    monkeypatch.setattr(module, "submit_tasks", taken.submit_tasks)
    return taken


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the end of a prediction is asked for; no picture is left unless the test says so."""
    asked: list[Any] = []
    monkeypatch.setattr(module, "finish", lambda output, weights: asked.append((output.folder, weights)) or [])
    return asked


def test_a_first_command_claims_the_folder_and_submits_all_pictures(
    options: PredictionOptions, slurm: Submissions, finished: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch_prediction(options) == OK
    (call,) = slurm.calls
    assert (call.launch, call.show, call.given) == (options.launch, False, [["0", "1"], ["2", "3"]])
    assert call.sweep.trials == tuple(call.parts)
    weights = (str(options.weights[0]),)
    assert call.work == PredictTask(weights, options.wanted, str(options.out), str(Path.cwd()), 5)
    assert [item.name for item in read_pictures(options.out / JOBS_NAME / PICTURES_NAME)] == ["0", "1", "2", "3"]
    claimed = read_json_object(options.out / COMMAND_NAME)
    assert (claimed["tta"], claimed["sweep"]) == ("flips", "")
    assert finished == []
    assert capsys.readouterr().out.splitlines() == [
        f"{options.out}: 4 pictures, 0 done, 0 in 0 queued or running jobs, 4 to submit",
        "the same command again shows how far they are, and submits again what is missing by then",
    ]
    with pytest.raises(ValueError, match="tta differ"):
        launch_prediction(replace(options, wanted=Wanted(tta="none")))


def test_jobs_that_slurm_has_no_room_for_are_left(
    options: PredictionOptions, slurm: Submissions, finished: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.room = 1
    assert launch_prediction(options) == INTERRUPTED
    assert capsys.readouterr().out.splitlines()[1] == (
        "1 jobs are left: Slurm takes no more of yours now. The same command again submits them later"
    )


def standing_as(monkeypatch: pytest.MonkeyPatch, sweep: Sweep, missing: Sequence[str], *states: str) -> None:
    """Two pictures; parts of these states."""
    rows = [TrialStatus(Trial(f"{n}", {}, sweep.folder / f"{n}"), state) for n, state in enumerate(states)]
    items = [Input(name, f"{name}.png") for name in ("a", "b")]
    standing = Standing(Observed(sweep, tuple(rows)), items, frozenset(), [Input(name, name) for name in missing])
    monkeypatch.setattr(module, "look", lambda *given: standing)


@pytest.mark.parametrize(
    ("cluster", "missing", "states", "asks", "code"),
    [
        ("slurm", [], [], True, OK),  # all is done
        ("slurm", ["a"], [], False, OK),  # under way
        ("slurm", [], ["running"], False, OK),
        ("slurm", [], ["unknown"], False, NOT_KNOWN),
        ("local", ["a"], [], True, OK),  # the command has waited for them
        ("local", [], ["running"], True, OK),
    ],
)
def test_a_prediction_is_finished_once_nothing_is_under_way(
    options: PredictionOptions,
    slurm: Submissions,
    finished: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    cluster: Any,
    missing: list[str],
    states: list[str],
    asks: bool,
    code: int,
) -> None:
    standing_as(monkeypatch, load_parts(options.out), missing, *states)
    assert launch_prediction(replace(options, cluster=cluster)) == code
    assert finished == [(options.out, options.weights[0])] * asks
    assert len(slurm.calls) == bool(missing)


def test_pictures_that_nobody_predicted_here_fail_the_command(
    options: PredictionOptions, slurm: Submissions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "finish", lambda output, weights: None)
    assert launch_prediction(replace(options, cluster="local")) == FAILED


def test_pictures_that_could_not_be_read_fail_the_command(
    options: PredictionOptions, slurm: Submissions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "finish", lambda output, weights: [Row("a", "a.png", error="no picture")])
    assert launch_prediction(replace(options, cluster="local")) == SOME_BAD


@pytest.mark.parametrize(("states", "stays"), [(["running"], True), (["failed"], False), ([], False)])
def test_half_written_files_are_removed_unless_a_job_may_be_writing_them(
    options: PredictionOptions,
    slurm: Submissions,
    finished: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    states: list[str],
    stays: bool,
) -> None:
    launch_prediction(options)
    removed: list[str] = []
    monkeypatch.setattr(
        "petseg.inference.many.outputs.OutputFolder.remove_half_written", lambda out: removed.append("")
    )
    standing_as(monkeypatch, load_parts(options.out), [], *states)
    launch_prediction(options)
    assert bool(removed) is not stays


def test_parts_without_a_job_are_dropped_and_the_others_kept(options: PredictionOptions, slurm: Submissions) -> None:
    held, dead = plan_parts(options.out, [Input("a", "a.png"), Input("b", "b.png")], 2)
    for part, items in (held, dead):
        write_pictures(items, part.folder / PICTURES_NAME)
    sweep = load_parts(options.out)
    rows = (TrialStatus(held[0], "queued"), TrialStatus(dead[0], "failed"))
    missing = [Input(name, f"{name}.png") for name in "bcd"]
    standing = Standing(Observed(sweep, rows), [Input("a", "a.png"), *missing], frozenset("a"), missing)
    slurm.room = 1
    assert submit_missing(options, standing, options.weights) == 1
    (call,) = slurm.calls
    assert call.given == [["b"], ["c", "d"]]
    assert [trial.id for trial in call.sweep.trials] == [held[0].id, *(part.id for part in call.parts)]
    assert [held[0].folder.exists(), dead[0].folder.exists()] == [True, False]


def test_a_ctrl_c_says_what_goes_on(options: PredictionOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "submit_tasks", stop)
    with pytest.raises(KeyboardInterrupt, match=r"^the same command predicts what is missing$"):
        launch_prediction(options)


def test_the_work_of_a_part_names_folders_that_every_node_knows(
    options: PredictionOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = task_of(replace(options, out=Path("out")), ("a", "b"), Resources(cpus_per_task=7))
    assert task == PredictTask(("a", "b"), options.wanted, str(tmp_path / "out"), str(tmp_path), 7)


def test_the_winner_is_the_best_run_of_the_sweep_by_its_best_weights(
    options: PredictionOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sweep, calls = sweep_of(tmp_path / "runs" / "lab", 2), list[Any]()
    monkeypatch.setattr(module, "best_trials", lambda sweep, all_seeds: [sweep.trials[1]] if not all_seeds else [])
    monkeypatch.setattr(module, "write_winner", lambda *given: calls.append(given))
    by_sweep = replace(options, weights=(), sweep="lab", runs_dir=tmp_path / "runs")
    winner = options.out / "winner.safetensors"
    assert settle_weights(by_sweep) == (winner,)
    assert calls == [([sweep.trials[1].folder], winner, "best", False, None)]
    named = identity_of(by_sweep, options.weights)
    assert named.pop("sweep") == str(sweep.folder)
    plain = identity_of(options, options.weights)
    assert plain.pop("sweep") == ""
    assert plain == named


def test_intents_of_a_killed_launcher_are_withdrawn_once_their_jobs_are_known(
    options: PredictionOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, items in plan_parts(options.out, [Input("a", "a.png"), Input("b", "b.png")], 2):
        write_pictures(items, part.folder / PICTURES_NAME)
    sweep = load_parts(options.out)
    first, second = sweep.trials
    cut_off = [Submission(part.id, "", "slurm", "", "petseg:0123", place) for place, part in enumerate(sweep.trials)]
    sweep.add_submissions(cut_off)

    def adopt(sweep: Sweep) -> None:
        sweep.add_submissions([Submission(first.id, "7_0", "slurm", "", "petseg:0123")])

    monkeypatch.setattr(module, "reconcile", adopt)
    recover(sweep)
    assert {trial: one.job_id for trial, one in sweep.submissions().items()} == {first.id: "7_0"}
    assert second.id not in sweep.submissions()


@pytest.mark.parametrize(("cluster", "shown"), [("slurm", True), ("local", False)])
def test_a_dry_run_shows_the_script_and_leaves_no_trace(
    options: PredictionOptions,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cluster: Any,
    shown: bool,
) -> None:
    asked: list[Any] = []

    def scripts(count: int, request: Request, patience_s: float) -> list[str]:
        asked.append((count, request.folder, request.name, request.max_parallel, patience_s))
        return ["#!/bin/bash [1]"]

    monkeypatch.setattr(module, "render_scripts", scripts)
    assert show_prediction(replace(options, cluster=cluster)) == OK
    logs = options.out / JOBS_NAME / "logs"
    assert asked == [(2, logs, "petseg-predict-out", 1, SLURM_PATIENCE_S)] * shown
    counts = "4 pictures, 0 done, 0 in 0 queued or running jobs, 4 to submit in 2 jobs"
    assert capsys.readouterr().out.splitlines() == [f"{options.out}: {counts}", *["#!/bin/bash [1]"] * shown]
    assert not options.out.exists()


def test_a_dry_run_names_the_winner_and_what_slurm_does_not_say(
    options: PredictionOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(tmp_path / "runs" / "lab", 2)
    monkeypatch.setattr(module, "best_trials", lambda sweep, all_seeds: sweep.trials[:1])
    standing_as(monkeypatch, load_parts(options.out), [], "unknown")
    by_sweep = replace(options, weights=(), sweep="lab", runs_dir=tmp_path / "runs")
    assert show_prediction(by_sweep) == NOT_KNOWN
    assert capsys.readouterr().out.splitlines()[0] == f"weights: {sweep.trials[0].id} unet seed=0"
