from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.logs import main, start_of_last_lines
from jobs.runs.choose import choose, choose_all
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from petseg.run_folder.layout import Result, save_result
from shards.command import run_command

PLACES = [("unet", "none"), ("unet", "elastic"), ("resnet34_unet", "none"), ("resnet34_unet", "elastic")]

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    folder = tmp_path / "runs" / "lab"
    axes = [{"model.arch": a, "augment.policy": p, "train.seed": seed} for a, p in PLACES for seed in (0, 1)]
    names = [f"{'ab'[number % 2]}{number}{'0' * 8}" for number in range(len(axes))]
    trials = tuple(Trial(name, place, folder / "trials" / name) for name, place in zip(names, axes, strict=True))
    sweep = Sweep(folder, "lab", {"train.seed": [0, 1]}, "0" * 16, "x", trials)
    save_sweep(sweep)
    (folder / "logs").mkdir()
    return sweep


def give_logs(sweep: Sweep, trial: Trial, job_id: str, texts: list[str], cluster: str = "local") -> list[Path]:
    paths = [sweep.folder / "logs" / f"{job_id}_{rank}_log.out" for rank in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    sweep.add_submissions([Submission(trial.id, job_id, cluster, str(paths[0]))])
    return paths


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ("a0", [0]),
        ("a", [0, 2, 4, 6]),
        ("unet elastic seed=0", [2]),
        ("seed=0 unet", [0, 2]),  # `unet` is no part of `resnet34_unet`
        ("elastic", [2, 3, 6, 7]),
    ],
)
def test_trials_by_what_people_type(sweep: Sweep, words: str, numbers: list[int]) -> None:
    assert choose(sweep, words) == [sweep.trials[number] for number in numbers]


def test_several_selections_are_joined_in_the_sweeps_order(sweep: Sweep) -> None:
    assert choose_all(sweep, ["elastic", "a0"]) == [sweep.trials[number] for number in (0, 2, 3, 6, 7)]
    assert choose_all(sweep, []) == list(sweep.trials)
    with pytest.raises(ValueError, match="no trial 'vgg' in"):
        choose_all(sweep, ["a0", "vgg"])


def test_an_ambiguous_name_lists_the_candidates(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, [str(sweep.folder), "unet", "elastic"]) == 2
    error = capsys.readouterr().err
    assert "'unet elastic' means 2 trials" in error
    assert f"  {sweep.trials[2].id} unet elastic seed=0\n  {sweep.trials[3].id} unet elastic seed=1" in error
    assert run_command(main, [str(sweep.folder)]) == 2
    assert "no trial ''" in capsys.readouterr().err


def test_the_last_lines_of_all_ranks_of_the_last_job(sweep: Sweep, capfd: pytest.CaptureFixture[str]) -> None:
    trial = sweep.trials[2]
    give_logs(sweep, trial, "11", ["an earlier job\n"])
    paths = give_logs(sweep, trial, "12", ["one\ntwo\nthree\n", "uno\ndue\ntre"])
    assert run_command(main, [str(sweep.folder), "unet", "elastic", "seed=0", "--lines", "2"]) == 0
    assert capfd.readouterr().out == f"==> {paths[0]} <==\ntwo\nthree\n\n==> {paths[1]} <==\ndue\ntre"
    assert run_command(main, [str(sweep.folder), trial.id[:4], "--rank", "1", "--lines", "0"]) == 0
    assert capfd.readouterr().out == "uno\ndue\ntre"


def test_no_log_yet_says_why(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, [str(sweep.folder), "a0"]) == 2
    assert capsys.readouterr().err == f"error: {sweep.trials[0].id} unet none seed=0 has no log yet: it is planned\n"
    assert run_command(main, [str(sweep.folder), "a0", "--lines", "-1"]) == 2


@pytest.mark.parametrize(("text", "lines", "rest"), [("", 3, ""), ("a\nb\nc\n", 2, "b\nc\n"), ("a\nb", 5, "a\nb")])
def test_last_lines(tmp_path: Path, text: str, lines: int, rest: str) -> None:
    (tmp_path / "log").write_text(text)
    assert text[start_of_last_lines(tmp_path / "log", lines) :] == rest


def test_last_lines_of_a_long_file(tmp_path: Path) -> None:
    lines = [f"{number:070}\n" for number in range(5000)]
    (tmp_path / "log").write_text("".join(lines))
    start = start_of_last_lines(tmp_path / "log", 2500)
    assert (tmp_path / "log").read_text()[start:] == "".join(lines[2500:])


def test_follow_shows_what_is_added_until_the_trial_is_over(sweep: Sweep, process: subprocess.Popen[bytes]) -> None:
    """In a process of its own: pytest's capture loses what another thread writes while it is read."""
    trial = sweep.trials[0]
    (path,) = give_logs(sweep, trial, str(process.pid), ["one\n"])
    trial.write_state(TrialState("running", host=socket.gethostname(), job_id=str(process.pid)))
    command = [sys.executable, "jobs/logs.py", str(sweep.folder), trial.id, "--follow"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        assert following.stdout.readline() == "one\n"
        with path.open("a") as file:
            file.write("two\n")
        assert following.stdout.readline() == "two\n"
        late = path.with_name(path.name.replace("_0_log", "_1_log"))  # a rank that came later
        late.write_text("uno\n")
        assert [following.stdout.readline() for _ in range(3)] == ["\n", f"==> {late} <==\n", "uno\n"]
        with path.open("a") as file:
            file.write("last\n")
        metrics = {"val/dice": 0.9}
        save_result(Result(trial.id, metrics, 1, 1, 31, 1, "node1", "cpu", 60.0, 83.0, 0.01, 84.0), trial.folder)
        trial.write_state(TrialState("done", host=socket.gethostname(), job_id=str(process.pid)))
        assert following.stdout.read() == f"\n==> {path} <==\nlast\n"
        assert f"{trial.id} unet none seed=0 is done" in following.stderr.read()
