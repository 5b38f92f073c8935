"""What the next command of a prediction by jobs does, and how it ends, by what its folder holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.launch import prediction
from jobs.launch.prediction import LISTED, SOME_BAD, Standing, look, report, report_unfinished, settle_weights
from jobs.launch.prediction_options import PredictionOptions
from jobs.node.prediction import output_folder
from jobs.runs.parts import load_parts, plan_parts, write_pictures
from jobs.runs.trial import Submission
from jobs.runs.trial_state import TrialState
from jobs.state.observed import Observed
from jobs.state.trial_status import TrialStatus
from petseg.inference.many.inputs import Input
from petseg.inference.many.outputs import COMMAND_NAME, WINNER_NAME, Row
from shards.command import FAILED, INTERRUPTED, OK
from tests.jobs.written_trials import sweep_of


@pytest.fixture
def options(tmp_path: Path) -> PredictionOptions:
    """Six pictures."""
    (tmp_path / "photos").mkdir()
    for number in range(6):
        (tmp_path / "photos" / f"{number}.png").touch()
    return PredictionOptions(source=(str(tmp_path / "photos"),), out=tmp_path / "out", weights=(Path("w.safetensors"),))


def stand(options: PredictionOptions, job_state: str) -> Standing:
    """Picture 0 is done, 1 could not be read, 2 has lost its mask; a job has 3 and 4, of which 3 is done."""
    output = output_folder(options.wanted, options.out)
    names = [f"{number}" for number in range(6)]
    (options.out / "masks").mkdir(parents=True)
    for number in (0, 3):
        output.path("masks", names[number]).touch()
    rows = [Row(names[number], "", error="no picture" if number == 1 else "") for number in range(4)]
    output.note(rows, 0)
    ((part, items),) = plan_parts(options.out, [Input(names[3], "3.png"), Input(names[4], "4.png")], 1)
    write_pictures(items, part.folder / "pictures.jsonl")
    sweep = load_parts(options.out)
    sweep.add_submissions([Submission(part.id, "99999999", "debug", "x.out")])
    part.write_state(TrialState(job_state, job_id="99999999", host="another"))
    return look(options, output, load_parts(options.out))


def test_what_no_job_holds_and_no_mask_shows_is_submitted(options: PredictionOptions) -> None:
    standing = stand(options, "running")
    assert [item.name for item in standing.missing] == ["2", "5"]
    assert standing.held == {"4"}
    assert standing.text == "6 pictures, 3 done, 1 in 1 queued or running jobs"


def test_what_a_job_left_undone_is_submitted_again(options: PredictionOptions) -> None:
    standing = stand(options, "failed")
    assert [item.name for item in standing.missing] == ["2", "4", "5"]
    assert standing.held == frozenset()


def test_pictures_that_could_not_be_read_are_tried_again_where_asked_for(options: PredictionOptions) -> None:
    standing = stand(replace(options, again=True), "running")
    assert [item.name for item in standing.missing] == ["1", "2", "5"]


def test_jobs_find_the_weights_from_any_folder(
    options: PredictionOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    several = replace(options, weights=(Path("a.safetensors"), tmp_path / "b.safetensors"))
    assert settle_weights(several) == (tmp_path / "a.safetensors", tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("there", "is_written"),
    [
        ((), True),
        ((COMMAND_NAME, WINNER_NAME), False),  # what began with it goes on with it
        ((WINNER_NAME,), True),  # left by a command that was killed before it claimed the folder
        ((COMMAND_NAME,), True),
    ],
)
def test_a_sweeps_winner_is_settled_by_the_first_command(
    options: PredictionOptions, monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], is_written: bool
) -> None:
    options.out.mkdir()
    for name in there:
        (options.out / name).touch()
    written: list[Any] = []
    monkeypatch.setattr(prediction, "find_runs", lambda sweep, runs_dir: None)
    monkeypatch.setattr(prediction, "best_trials", lambda sweep, all_seeds: [])
    monkeypatch.setattr(prediction, "write_winner", lambda folders, path, *rest: written.append(path))
    winner = options.out / WINNER_NAME
    assert settle_weights(replace(options, weights=(), sweep="lab")) == (winner,)
    assert written == [winner] * is_written


@pytest.mark.parametrize(("count", "code"), [(0, OK), (1, SOME_BAD), (LISTED, SOME_BAD), (LISTED + 2, SOME_BAD)])
def test_pictures_that_could_not_be_read_are_named_to_a_limit(
    options: PredictionOptions, count: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(options, [Row(f"{number}", f"{number}.png", error="no picture") for number in range(count)]) == code
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("not read: ") for line in lines) == min(count, LISTED)
    assert any(line.startswith("and 2 more, listed in ") for line in lines) == (count > LISTED)
    assert not any(line.startswith(("and 0", "and -")) for line in lines)


@pytest.mark.parametrize(
    ("cluster", "left", "code", "words"),
    [
        ("local", 0, FAILED, "pictures are left: see the logs in "),
        ("slurm", 3, INTERRUPTED, "3 jobs are left: Slurm takes no more of yours now"),
        ("slurm", 0, OK, "the same command again shows how far they are"),
    ],
)
def test_how_a_command_ends_while_pictures_are_left(
    options: PredictionOptions, cluster: Any, left: int, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, items in plan_parts(options.out, [Input("a", "a.png"), Input("b", "b.png")], 2):
        write_pictures(items, part.folder / "pictures.jsonl")
    done, failed = load_parts(options.out).trials
    done.write_state(TrialState("done"))
    failed.write_state(TrialState("failed", error="no GPU"))
    assert report_unfinished(replace(options, cluster=cluster), left) == code
    out = capsys.readouterr().out
    assert words in out
    assert (f"part {failed.id}: failed no GPU\n" in out) is (cluster == "local")
    assert done.id not in out


def test_a_part_that_ended_too_early_is_told_once(
    options: PredictionOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    observed: Observed = stand(options, "failed").observed
    prediction.print_ended(observed)
    (part,) = observed.sweep.trials
    assert capsys.readouterr().out.startswith(f"part {part.id} failed: ")
    part.write_state(TrialState("done"))
    prediction.print_ended(observed)
    assert capsys.readouterr().out == ""


def test_only_parts_that_ended_too_early_are_told(
    options: PredictionOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many as fit; what Slurm does not say comes last."""
    sweep = sweep_of(options.out / "lab", LISTED + 5)
    states = ["running", "done", "unknown", *["interrupted", "failed"] * 11]
    rows = [
        TrialStatus(trial, state, note="[why]", log="x.out", silence="timed out")
        for trial, state in zip(sweep.trials, states, strict=True)
    ]
    sweep.trials[3].write_state(TrialState("done"))  # its result is in the masks
    prediction.print_ended(Observed(sweep, tuple(rows)))
    *parts, doubt = capsys.readouterr().out.splitlines()
    ended = list(zip(sweep.trials, states, strict=True))[4 : 4 + LISTED]
    assert parts == [f"part {trial.id} {state}: [why]; its log: x.out" for trial, state in ended]
    assert doubt.startswith(f"unknown: 1 of {LISTED + 5} trials, because Slurm does not answer (timed out)")


def test_a_report_names_the_summary_and_what_was_not_read(
    options: PredictionOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = options.out / "summary.csv"
    assert report(options, []) == OK
    assert capsys.readouterr().out == f"{options.out}: all done, see {summary}\n"
    report(options, [Row("a", "[a].png", error="no picture")] * (LISTED + 2))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["not read: [a].png: no picture"] * LISTED + [f"and 2 more, listed in {summary}"]
