"""Searches: what is proposed, what survives a kill, and how it is shown."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import optuna
import pytest
import yaml

from jobs.design.expansion import STARTUP, Cell, draws, expand
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Spec, parse_spec
from jobs.report import leaderboard
from jobs.reporting.statistics.records import read_records
from jobs.runs.sweep_file import load_sweep, save_sweep
from jobs.runs.trial import Submission, Trial
from jobs.runs.trial_state import TrialState
from jobs.runs.trials import plan_sweep
from jobs.search.journal import JOURNAL_NAME
from jobs.search.rounds import Round, next_round
from jobs.state.trial_status import trial_statuses
from jobs.sweep import main
from petseg.config import RunConfig
from petseg.config.training import TrainConfig
from petseg.config.values import trial_id
from petseg.run_folder.layout import Pruned, Result, save_pruned, save_result
from shards.cause import Cause
from shards.command import run_command
from shards.manifest import Manifest

PARAMETERS = {
    "optim.lr": {"min": 1e-5, "max": 1e-1, "distribution": "log_uniform_values"},
    "optim.weight_decay": {"min": 0.0, "max": 0.5},
    "augment.policy": {"values": ["none", "elastic"]},
    "train.batch_size": {"min": 8, "max": 64, "q": 8, "distribution": "q_uniform"},
}


def search_of(shards: Path, **top: object) -> Spec:
    parameters = {**PARAMETERS, "data.shards": {"value": str(shards)}}
    return parse_spec({"method": "bayes", "run_cap": 20, "parameters": parameters, **top}, "s")


def sets_of(spec: Spec, manifest: Manifest) -> ShardSets:
    return ShardSets({spec.fixed["data.shards"]: manifest})


def propose(spec: Spec, manifest: Manifest, folder: Path, batch: int) -> Round:
    """A round, its trials in sweep.json."""
    folder.mkdir(exist_ok=True)
    found = next_round(spec, sets_of(spec, manifest), folder, batch)
    sweep = plan_sweep(spec, [*found.known, *found.new], sets_of(spec, manifest), folder)
    save_sweep(sweep)
    return found


def trial_of(cell: Cell, manifest: Manifest, folder: Path) -> Trial:
    identifier = trial_id(cell.config, manifest.hash)
    return Trial(identifier, cell.axes, folder / "trials" / identifier)


def finish(trial: Trial, dice: float) -> None:
    trial.folder.mkdir(parents=True, exist_ok=True)
    save_result(
        Result(trial.id, {"val/dice": dice}, 1, 1, 9, 1, "h", "cpu, 1 threads", 1.0, 1.0, 0.0, 1.0), trial.folder
    )


def prune(trial: Trial, dice: float) -> None:
    trial.folder.mkdir(parents=True, exist_ok=True)
    save_pruned(Pruned(trial.id, 1, 3, 1, dice, dice, 0.9, 4, "h", 1.0), trial.folder)


def fail(trial: Trial, folder: Path) -> None:
    trial.write_state(TrialState("failed", error="Failure: a NaN", cause=Cause.NAN, job_id="1", host="h"))
    load_sweep(folder).add_submissions([Submission(trial.id, "1", "local", "")])


def score(cell: Cell) -> float:
    """A made-up Dice that likes a learning rate of 1e-3."""
    return 0.9 - abs(cell.config.optim.lr - 1e-3) ** 0.5


def run_to_the_end(spec: Spec, manifest: Manifest, folder: Path, batch: int = 4) -> list[Cell]:
    while new := propose(spec, manifest, folder, batch).new:
        for number, cell in enumerate(new):
            (prune if number % 3 == 2 else finish)(trial_of(cell, manifest, folder), score(cell))
    return propose(spec, manifest, folder, batch).known


def ids(cells: list[Cell], manifest: Manifest) -> list[str]:
    return [trial_id(cell.config, manifest.hash) for cell in cells]


def test_a_search_proposes_each_trial_once_until_run_cap(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    spec = search_of(pet_shards)
    cells = run_to_the_end(spec, manifest, tmp_path / "a")
    assert len(cells) == len(set(ids(cells, manifest))) == 20
    assert cells[:STARTUP] == expand(spec)  # chance first, the same as method random has it
    by_chance = itertools.islice(draws(spec, cells[0].config), 20)
    assert cells[STARTUP:] != list(by_chance)[STARTUP:]
    assert run_to_the_end(spec, manifest, tmp_path / "b") == cells  # the same results lead to the same search
    before = (tmp_path / "a" / JOURNAL_NAME).read_bytes()
    assert propose(spec, manifest, tmp_path / "a", 4).new == []
    assert (tmp_path / "a" / JOURNAL_NAME).read_bytes() == before
    more = propose(search_of(pet_shards, run_cap=22), manifest, tmp_path / "a", 4)
    assert more.known == cells
    assert len(more.new) == 2


def test_a_search_learns(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    """More of what follows than of what chance gives lies within a factor of 5 of the best learning rate."""
    spec = search_of(pet_shards, run_cap=40)
    cells = run_to_the_end(spec, manifest, tmp_path)
    near = [2e-4 <= cell.config.optim.lr <= 5e-3 for cell in cells]
    assert sum(near[STARTUP:]) / 30 > 0.5  # 0.35 by chance


def test_proposals_are_limited_by_the_batch(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    spec = search_of(pet_shards)
    first = propose(spec, manifest, tmp_path, 4)
    assert (len(first.known), len(first.new)) == (0, 4)
    assert propose(spec, manifest, tmp_path, 4) == Round(first.new, [])  # the same command at once
    finish(trial_of(first.new[0], manifest, tmp_path), 0.5)
    fail(trial_of(first.new[1], manifest, tmp_path), tmp_path)
    assert len(propose(spec, manifest, tmp_path, 4).new) == 2  # the failed one keeps no place
    assert len(propose(spec, manifest, tmp_path, 6).new) == 2


def test_leftovers_of_a_killed_launcher_are_removed(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    """Half a line of a proposal that nobody saw is proposed again as it was; a whole one is kept, submitted or not."""
    spec, path = search_of(pet_shards), tmp_path / JOURNAL_NAME
    first = next_round(spec, sets_of(spec, manifest), tmp_path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    path.with_name(f"{JOURNAL_NAME}.lock").touch()
    again = next_round(spec, sets_of(spec, manifest), tmp_path, 3)
    assert (again.known, again.new) == (first.new[:2], first.new[2:])
    assert next_round(spec, sets_of(spec, manifest), tmp_path, 3) == Round(first.new, [])
    for cut in range(0, len(whole), 97):  # anywhere
        path.write_bytes(whole[:cut])
        found = next_round(spec, sets_of(spec, manifest), tmp_path, 3)
        assert [*found.known, *found.new] == first.new


def test_a_dry_run_writes_nothing(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    spec = search_of(pet_shards)
    ahead = next_round(spec, sets_of(spec, manifest), tmp_path / "s", 4, record=False)
    assert not (tmp_path / "s").exists()
    assert propose(spec, manifest, tmp_path / "s", 4) == ahead
    for cell in ahead.new:
        finish(trial_of(cell, manifest, tmp_path / "s"), score(cell))
    before = (tmp_path / "s" / JOURNAL_NAME).read_bytes()
    ahead = next_round(spec, sets_of(spec, manifest), tmp_path / "s", 4, record=False)
    assert (tmp_path / "s" / JOURNAL_NAME).read_bytes() == before
    assert propose(spec, manifest, tmp_path / "s", 4) == ahead


def test_a_finite_space_ends_the_search(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    parameters = {"train.seed": {"min": 0, "max": 12}, "data.shards": {"value": str(pet_shards)}}
    cells = run_to_the_end(search_of(pet_shards, parameters=parameters), manifest, tmp_path)
    assert sorted(cell.config.train.seed for cell in cells) == list(range(13))


def test_another_search_in_the_same_folder_is_refused(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    propose(search_of(pet_shards), manifest, tmp_path, 2)
    for other in (
        search_of(pet_shards).changed({}, {"train.epochs": 3}),
        search_of(pet_shards).changed({"train.seed": [0, 1]}, {}),
    ):
        with pytest.raises(ValueError, match="holds a search with other parameters, fixed values or shards"):
            next_round(other, sets_of(other, manifest), tmp_path, 2)
        with pytest.raises(ValueError, match="give it another --name"):
            next_round(other, sets_of(other, manifest), tmp_path, 2, record=False)
    same = search_of(pet_shards, seed=7).changed({}, {"train.log_every": 3})  # which makes no number
    assert next_round(same, sets_of(same, manifest), tmp_path, 2).new == []


def test_a_grid_and_a_search_cannot_share_a_folder(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    propose(search_of(pet_shards), manifest, tmp_path, 2)
    grid = Spec("g", {"train.seed": [0]}, {"data.shards": str(pet_shards)})
    with pytest.raises(ValueError, match=r"holds a sweep by method bayes, .* give this one another --name"):
        plan_sweep(grid, expand(grid), ShardSets({str(pet_shards): manifest}), tmp_path)


def test_without_optuna_the_message_names_the_next_step(
    pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"method": "bayes", "run_cap": 2, "parameters": PARAMETERS}))
    flags = ["--sweep", str(path), "--runs-dir", str(tmp_path), "--set", f"data.shards={pet_shards}"]
    assert run_command(main, [*flags, "--cluster", "local"]) == 2
    assert "method bayes needs optuna: pip install 'petseg[search]', or use method random" in capsys.readouterr().err


def test_status_and_report_keep_what_was_stopped_early_apart(
    pet_shards: Path, manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = search_of(pet_shards)
    cells = propose(spec, manifest, tmp_path, 3).new
    trials = [trial_of(cell, manifest, tmp_path) for cell in cells]
    finish(trials[0], 0.6)
    finish(trials[1], 0.7)
    prune(trials[2], 0.8)
    sweep = load_sweep(tmp_path)
    assert [(row.status, row.epoch, row.epochs, row.dice) for row in trial_statuses(sweep)] == [
        ("done", 1, 1, 0.6),
        ("done", 1, 1, 0.7),
        ("pruned", 1, 3, 0.8),
    ]
    table = leaderboard(sweep, read_records(sweep))
    assert table.row_count == 2
    assert "2 done, 0 failed, 1 pruned" in str(table.title)


def test_a_folders_journal_holds_one_study_under_the_name_of_earlier_searches(
    pet_shards: Path, manifest: Manifest, tmp_path: Path
) -> None:
    """A search that was begun by another version is found under this name, and goes on."""
    propose(search_of(pet_shards), manifest, tmp_path / "s", 2)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "s" / JOURNAL_NAME))
    )
    assert optuna.study.get_all_study_names(storage) == ["petseg"]
    assert optuna.load_study(study_name="petseg", storage=storage).direction.name == "MAXIMIZE"


def test_other_trials_in_the_folder_take_no_room_of_a_search(
    pet_shards: Path, manifest: Manifest, tmp_path: Path
) -> None:
    other = expand(search_of(pet_shards, run_cap=3), RunConfig(train=TrainConfig(epochs=7)))
    spec, sets = search_of(pet_shards), sets_of(search_of(pet_shards), manifest)
    (tmp_path / "s").mkdir()
    save_sweep(plan_sweep(spec, other, sets, tmp_path / "s"))
    assert len(load_sweep(tmp_path / "s").trials) == len(other) > 0  # planned, and not to be proposed by this search
    assert len(propose(spec, manifest, tmp_path / "s", 4).new) == 4
