"""A sweep's name that is used again with other settings: said before anything is submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.design.expansion import expand
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import load_spec, parse_axes, parse_settings
from jobs.launch.submit import Submitted
from jobs.runs.earlier_trials import earlier_line
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trials import plan_sweep
from jobs.sweep import main
from petseg.run_folder.layout import CONFIG_NAME, claim_folder
from shards.command import OK, run_command

LAB = Path(__file__).parents[3] / "jobs" / "sweeps" / "lab.yaml"


@pytest.fixture
def line(sets: ShardSets, pet_shards: Path, tmp_path: Path):
    """Plan a sweep in one folder, again and again; returns what is said of the earlier ones."""

    def plan(*settings: str, axis: tuple[str, ...] = ()) -> str:
        fixed = parse_settings([f"data.shards={pet_shards}", *settings], "--set")
        cells = expand(spec := load_spec(LAB).changed(parse_axes(axis), fixed))
        sweep, chosen = plan_sweep(spec, cells, sets, tmp_path / "lab"), sets.by_id(cells)
        said = earlier_line(sweep, chosen)
        save_sweep(sweep)
        for trial in sweep.trials:
            if trial.id in chosen:
                claim_folder(chosen[trial.id].config, sweep.hash_of(trial), trial.folder)
        return said

    return plan


def test_other_settings_are_named_with_both_values_and_a_count(line, tmp_path: Path) -> None:
    assert line() == ""
    assert line() == ""
    assert line("train.epochs=50") == (
        f"{tmp_path / 'lab'} has 18 trials of other settings (train.epochs 100, now 50): they stay in it, and in its "
        "report beside the new ones; another --name keeps them apart"
    )
    said = line("optim.lr=0.1", axis=("train.seed=0",))
    assert "has 36 trials of other settings (" in said
    assert "optim.lr 0.001, now 0.1" in said
    assert "train.epochs 50, now 100" in said


def test_another_place_on_an_axis_is_no_other_setting(line) -> None:
    line()
    assert line(axis=("train.seed=0",)) == ""
    assert line(axis=("train.seed=0,1,2,3", "augment.policy=none,strong")) == ""
    assert "model.width 64, now 8" in line("model.width=8")
    assert line(axis=("model.width=8,16",)) == ""  # all differ on an axis of what is asked for now


def test_tracking_and_threads_are_no_settings_and_many_fields_are_counted(line) -> None:
    line()
    assert line("tracking.project=other", "data.threads=1") == ""
    said = line("optim.lr=0.1", "train.epochs=5", "train.batch_size=8", "model.width=8", "train.loss=dice")
    assert "18 trials" in said
    assert "and 2 more fields" in said


def test_trials_that_cannot_be_read_are_not_counted(line, tmp_path: Path) -> None:
    line()
    first, second, *_ = sorted((tmp_path / "lab" / "trials").iterdir())
    (first / CONFIG_NAME).unlink()
    (second / CONFIG_NAME).write_text("{")
    assert "has 16 trials" in line("train.epochs=50")


def test_the_command_says_so_in_a_dry_run_and_before_it_submits(
    tiny_sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, [*tiny_sweep, "--cluster", "debug", "--axis", "model.arch=unet"]) == OK
    assert "of other settings" not in capsys.readouterr().out
    longer = [*tiny_sweep, "--axis", "model.arch=unet", "--set", "train.epochs=2"]
    said = f"{tmp_path / 'runs' / 'lab'} has 1 trial of other settings (train.epochs 1, now 2): "
    assert run_command(main, [*longer, "--dry-run", "--no-probe"]) == OK
    assert said in capsys.readouterr().out
    nothing = Submitted(())
    monkeypatch.setattr("jobs.launch.run.submit_trials", lambda *_: nothing if seen() else pytest.fail("submitted"))

    def seen() -> bool:
        return said in capsys.readouterr().out

    run_command(main, [*longer, "--cluster", "debug"])
