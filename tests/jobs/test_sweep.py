"""Sweeps as users run them on this machine, what is refused, and what a dry run shows."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from jobs.design.expansion import expand
from jobs.design.shard_sets import read_shard_sets
from jobs.design.spec import load_spec, parse_axes, parse_settings
from jobs.launch.lock import has_begun
from jobs.launch.options import Options as Command
from jobs.runs.sweep_file import load_sweep, save_sweep
from jobs.runs.trial import Submission, Sweep
from jobs.runs.trials import plan_sweep
from jobs.state.trial_status import trial_statuses
from jobs.sweep import main
from shards.command import run_command
from shards.manifest import load_manifest, save_manifest
from shards.pack import PackConfig, pack

REPOSITORY = Path(__file__).parents[2]


def test_a_sweep_on_this_machine_runs_once_and_no_trial_twice(
    tiny_sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, [*tiny_sweep, "--cluster", "local", "--max-parallel", "2"]) == 0
    assert "2 trials, 0 done, 0 queued or running, 2 to submit" in capsys.readouterr().out
    sweep = load_sweep(tmp_path / "runs" / "lab")
    rows = trial_statuses(sweep)
    assert [row.status for row in rows] == ["done", "done"]
    assert [row.epoch for row in rows] == [1, 1]
    assert all("epoch 1/1" in Path(row.log).read_text() for row in rows)
    assert {row.trial.axes["model.arch"] for row in rows} == {"unet", "resnet34_unet"}
    before = (sweep.folder / "submissions.jsonl").read_text()

    assert run_command(main, [*tiny_sweep, "--cluster", "local"]) == 0
    assert "2 done, 0 queued or running, 0 to submit" in capsys.readouterr().out
    assert (sweep.folder / "submissions.jsonl").read_text() == before

    (rows[0].trial.folder / "result.json").unlink()  # what is missing, and nothing else
    assert run_command(main, [*tiny_sweep, "--cluster", "local"]) == 0
    assert "1 done, 0 queued or running, 1 to submit" in capsys.readouterr().out

    more = [*tiny_sweep, "--axis", "model.arch=unet", "--axis", "train.seed=0,1"]
    assert run_command(main, [*more, "--cluster", "debug"]) == 0
    assert "2 trials, 1 done, 0 queued or running, 1 to submit" in capsys.readouterr().out
    assert len(load_sweep(tmp_path / "runs" / "lab").trials) == 3


def test_a_failed_trial_is_reported_with_its_error_and_tried_again(
    tiny_sweep: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = [*tiny_sweep, "--axis", "model.arch=unet", "--set", "optim.lr=1e30", "--cluster", "local"]
    assert run_command(main, flags) == 3
    assert "NaN or infinite" in caplog.text
    (row,) = trial_statuses(load_sweep(tmp_path / "runs" / "lab"))
    assert (row.status, row.cause) == ("failed", "nan")
    assert "Failure: the loss became NaN or infinite" in row.note
    assert "Traceback" in Path(row.log).read_text()


def test_dry_run_lists_the_trials_and_the_sbatch_text_and_does_nothing(
    tiny_sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--partition", "gpu", "--gpus", "2", "--timeout-min", "90", "--account", "pets", "--dry-run", "--no-probe"]
    assert run_command(main, [*tiny_sweep, *flags]) == 0
    out = capsys.readouterr().out
    assert "resnet34_unet" in out
    for line in ("--array=0-1%2", "--partition=gpu", "--gpus-per-node=2", "--time=90", "--account=pets"):
        assert f"#SBATCH {line}" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (
            "0,1,2",
            r"With 3 seeds and 3 val pictures a difference of about 0\.\d+ Dice between the two cells is shown in",
        ),
        ("0", r"With one seed no difference can be shown: how far another seed would move a cell is not known\."),
    ],
)
def test_dry_run_says_what_the_planned_seeds_can_show(
    seeds: str, said: str, tiny_sweep: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--axis", f"train.seed={seeds}", "--cluster", "local", "--dry-run", "--no-probe"]
    assert run_command(main, [*tiny_sweep, *flags]) == 0
    out = capsys.readouterr().out
    assert re.search(said, out), out
    assert ("by a reference on published photos" in out) == (seeds != "0")


@pytest.mark.slow
def test_a_sweep_beyond_the_budget_is_not_submitted(
    tiny_sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_command(main, [*tiny_sweep, "--cluster", "local", "--set", "train.epochs=100000", "--budget", "0.1cpuh"])
        == 2
    )
    captured = capsys.readouterr()
    assert "over the budget of 0.1" in captured.err
    assert "core" in captured.out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--set", "data.shards=nowhere"],
            f"no shard set in {Path.cwd() / 'nowhere'}: `python -m shards.pack --download",
        ),
        (["--axis", "model.arc=unet"], "there is no config field 'model.arc'; near it: model.arch"),
        (["--set", "train.epochs=many"], "train.epochs = 'many': must be of type int"),
        (["--axis", "model.arch=vgg"], "model.arch = 'vgg': choose one of unet, resnet34_unet"),
        (["--set", "train.epochs"], "write --set NAME=VALUE"),
        (["--sweep", "none.yaml"], f"no sweep file {Path.cwd() / 'none.yaml'}: "),
        (["--nodes", "0"], "nodes=0: must be at least 1"),
    ],
)
def test_wrong_use_is_one_line_with_what_to_do(
    tiny_sweep: list[str], capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run_command(main, [*tiny_sweep, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_no_sbatch_says_what_to_do(
    tiny_sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_command(main, [*tiny_sweep, "--partition", "gpu"]) == 2
    assert "no sbatch on PATH" in (error := capsys.readouterr().err)
    assert "--cluster local" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "train.mixed_precision=fp16"], "fp16' needs a GPU, and these trials have none"),
        (["--set", "train.mixed_precision=fp16", "--dry-run"], "fp16' needs a GPU, and these trials have none"),
        (["--nodes", "2"], "nodes=2: this machine is one node"),
        (["--cluster", "slurm", "--nodes", "16", "--gpus", "2"], "train.batch_size = 16 is the batch of all 32"),
    ],
)
def test_what_no_trial_could_do_is_refused_and_leaves_no_folder(
    tiny_sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run_command(main, [*tiny_sweep, "--cluster", "local", *flags]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_the_set_or_the_packages_lack_is_said_before_anything_is_written(
    tiny_sweep: list[str], pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    assert run_command(main, [*tiny_sweep, "--cluster", "local", "--axis", "model.arch=unet,fpn"]) == 2
    assert (
        "model.arch = 'fpn' needs segmentation_models_pytorch: pip install 'petseg[encoders]'"
        in capsys.readouterr().err
    )
    whole = load_manifest(pet_shards)
    others = [tmp_path / "train", tmp_path / "val"]
    for other in others:
        splits = {name: split for name, split in whole.splits.items() if name != other.name}
        other.mkdir()
        save_manifest(replace(whole, splits=splits, shards=tuple(s for s in whole.shards if s.split in splits)), other)
        assert run_command(main, [*tiny_sweep, "--cluster", "local", "--set", f"data.shards={other}"]) == 2
        assert f"{other} has no samples in its split '{other.name}' (samples: " in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == others


@pytest.mark.slow
def test_pictures_that_would_be_enlarged_are_said_before_they_are_trained_on(
    tiny_sweep: list[str], pet_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run = [*tiny_sweep, "--dry-run", "--no-probe"]
    assert run_command(main, dry_run) == 0
    assert "enlarged" not in capsys.readouterr().out
    assert run_command(main, [*dry_run, "--set", "data.image_size_px=96"]) == 0
    said = f"pictures of {pet_shards} were packed at 64 px, and are enlarged to data.image_size_px = 96: choose 64, or"
    assert capsys.readouterr().out.count(said) == 1
    original = tmp_path / "original"
    pack(PackConfig(out=original, synthetic=60, workers=1))
    assert run_command(main, [*dry_run, "--set", "data.image_size_px=96", "--set", f"data.shards={original}"]) == 0
    assert "enlarged" not in capsys.readouterr().out


def test_what_sbatch_refuses_leaves_no_new_folder_and_each_old_one(
    tiny_sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "srun", "squeue", "scontrol"):
        (commands / name).write_text(f"#!/bin/sh\necho '{name}: error: invalid partition specified: gpu' >&2\nexit 1\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    slurm = [*tiny_sweep, "--partition", "gpu"]
    assert run_command(main, slurm) == 2
    assert "sbatch refused the job: invalid partition" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert run_command(main, [*tiny_sweep, "--cluster", "debug"]) == 0
    assert run_command(main, [*slurm, "--axis", "train.seed=1"]) == 2
    assert [trial.result() is not None for trial in load_sweep(tmp_path / "runs" / "lab").trials] == [
        True,
        True,
        False,
        False,
    ]


def test_a_folder_stays_where_jobs_may_have_been_submitted(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "lab", {}, "", "", ())
    save_sweep(sweep)
    assert not has_begun(tmp_path, KeyboardInterrupt())
    sweep.add_submissions([Submission("a", "", "slurm", "", "petseg:0a")])
    assert has_begun(tmp_path, KeyboardInterrupt())  # in the middle of sbatch
    assert has_begun(tmp_path, OSError())
    assert not has_begun(tmp_path, ValueError("refused"))
    sweep.add_submissions([Submission("b", "7", "slurm", "")])
    assert has_begun(tmp_path, ValueError("the second array was refused"))


def test_another_shard_set_under_the_same_name_is_refused(
    tiny_sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    other = tmp_path / "other"
    pack(PackConfig(out=other, synthetic=8, seed=9, image_size_px=64, workers=1))
    save_sweep(sweep_of(tiny_sweep))
    assert run_command(main, [*tiny_sweep, "--set", f"data.shards={other}", "--cluster", "local"]) == 2
    assert "is a sweep on another shard set" in capsys.readouterr().err


def sweep_of(flags: list[str]) -> Sweep:
    command = tyro.cli(Command, args=flags)
    spec = load_spec(command.sweep).changed(parse_axes(command.axis), parse_settings(command.set, "--set"))
    cells = expand(spec)
    return plan_sweep(spec, cells, read_shard_sets(cells), command.runs_dir / "lab")


def test_two_launchers_at_once_are_told_apart(
    tiny_sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    folder = tmp_path / "runs" / "lab"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        assert run_command(main, [*tiny_sweep, "--cluster", "local"]) == 2
    assert "another launcher is at work" in capsys.readouterr().err
