"""A launch from the sweep file on: whose lock it holds, how a search goes on, and what a refusal leaves."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.design.cells import Cells
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Spec
from jobs.launch import run as module
from jobs.launch.lock import launcher_lock
from jobs.launch.options import Options
from jobs.launch.run import (
    find_cells,
    launch_sweep,
    run_search,
)
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Submission, Sweep
from jobs.runs.trials import Trials
from jobs.search.rounds import Round
from jobs.state.observed import Observed
from jobs.state.trial_status import TrialStatus
from shards.command import FAILED, INTERRUPTED, OK


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch, trials: Trials) -> Callable[..., list[list[str]]]:
    """Plays a search whose rounds are given as (known, new) seeds, with the code and the states after each."""

    def play(options: Options, *played: tuple[str, str, int, list[str]]) -> list[list[str]]:
        cells = {str(cell.axes["train.seed"]): cell for cell in trials.cells.values()}
        ids = dict(zip((cell.config for cell in trials.cells.values()), trials.cells, strict=True))
        plays, submitted = iter(played), list[list[str]]()
        asked: list[Any] = []
        now: Any = None

        def next_round(spec: Spec, sets: ShardSets, folder: Path, batch: int) -> Round:
            nonlocal now
            now = next(plays)
            asked.append(batch)
            return Round(*([cells[seed] for seed in seeds] for seeds in now[:2]))

        def submit(options: Options, meant: Trials) -> int:
            submitted.append([str(meant.cells[identifier].axes["train.seed"]) for identifier in meant.cells])
            assert {trial.id for trial in meant.sweep.trials} == {ids[cells[s].config] for s in now[0] + now[1]}
            return now[2]

        def observe(sweep: Sweep) -> Observed:
            return Observed(sweep, tuple(TrialStatus(t, s) for t, s in zip(sweep.trials, now[3], strict=True)))

        monkeypatch.setattr(module, "next_round", next_round)
        monkeypatch.setattr(module, "submit_missing", submit)
        monkeypatch.setattr(module, "observe", observe)
        spec = Spec("lab", {"train.seed": [0, 1, 2]}, {}, method="bayes", run_cap=3)
        code = run_search(options, Cells(spec, (), trials.sets), options.folder(spec))
        assert asked == [options.search_slots] * len(asked)
        return [*submitted, [str(code)]]

    return play


def test_a_search_here_goes_on_until_nothing_new_is_proposed(
    options: Options, rounds: Callable[..., list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    """What failed in an earlier search is tried once more, what fails in this one is left."""
    local = replace(options, cluster="local")
    played = rounds(
        local, ("0", "1", FAILED, ["failed", "done"]), ("01", "2", OK, ["failed", "done", "done"]), ("012", "", OK, []),
    )  # fmt: skip
    assert played == [["0", "1"], ["2"], [str(FAILED)]]
    assert capsys.readouterr().out.splitlines() == [
        "search: 2 of 3 trials proposed, 1 of them now", "search: 3 of 3 trials proposed, 1 of them now",
    ]  # fmt: skip


def test_a_search_ends_early(options: Options, rounds: Callable[..., list[list[str]]]) -> None:
    """On Slurm after a round; here where all trials of a round have failed."""
    assert rounds(options, ("", "01", OK, ["queued", "queued"])) == [["0", "1"], ["0"]]
    failed = rounds(replace(options, cluster="local"), ("", "01", FAILED, ["failed", "failed"]))
    assert failed == [["0", "1"], [str(FAILED)]]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, trials: Trials) -> list[Any]:
    """What a launch does in turn, with the sweep's lock held or not."""
    done: list[Any] = []

    @contextmanager
    def lock(folder: Path) -> Any:
        done.append(("locked", folder.exists()))
        with launcher_lock(folder):
            yield
        done.append("unlocked")

    def submit(options: Options, planned: Trials) -> int:
        save_sweep(planned.sweep)
        done.append(("submit", len(planned.cells)))
        return INTERRUPTED

    monkeypatch.setattr(module, "launcher_lock", lock)
    monkeypatch.setattr(module, "remember", lambda named: done.append(("remember", list(named))))
    monkeypatch.setattr(module, "submit_missing", submit)
    monkeypatch.setattr(module, "run_search", lambda *given: done.append("search") or OK)
    monkeypatch.setattr(module, "report_wandb", lambda launch, sweep: done.append(("wandb", sweep.name)))
    monkeypatch.setattr(module.signal, "signal", lambda *given: done.append(given))
    return done


def test_a_launcher_has_the_sweep_to_itself_until_it_has_reported(
    options: Options, launched: list[Any], trials: Trials, monkeypatch: pytest.MonkeyPatch, pet_shards: Path
) -> None:
    spec = Spec("lab", {}, {})
    monkeypatch.setattr(module, "find_cells", lambda options: Cells(spec, tuple(trials.cells.values()), trials.sets))
    assert launch_sweep(options) == INTERRUPTED
    steps = [("remember", [str(pet_shards)]), ("locked", True), ("submit", 3), ("wandb", "lab"), "unlocked"]
    assert launched == steps
    launched.clear()
    assert launch_sweep(replace(options, cluster="local")) == INTERRUPTED
    handlers = [(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)]
    assert launched == [steps[0], *handlers, *steps[1:]]
    launched.clear()
    search = Cells(replace(spec, method="bayes"), (), trials.sets)
    monkeypatch.setattr(module, "find_cells", lambda options: search)
    assert launch_sweep(options) == OK
    assert launched[2] == "search"


@pytest.mark.parametrize(("submitted", "stays"), [(False, False), (True, True)])
def test_a_new_folder_goes_with_a_launch_that_was_refused(
    options: Options, launched: list[Any], trials: Trials, monkeypatch: pytest.MonkeyPatch, submitted: bool, stays: bool
) -> None:
    def refuse(options: Options, planned: Trials) -> int:
        save_sweep(planned.sweep)
        if submitted:
            planned.sweep.add_submissions([Submission(planned.sweep.trials[0].id, "7", "slurm", "")])
        raise ValueError("refused")

    cells = Cells(Spec("lab", {}, {}), tuple(trials.cells.values()), trials.sets)
    monkeypatch.setattr(module, "find_cells", lambda options: cells)
    monkeypatch.setattr(module, "submit_missing", refuse)
    with pytest.raises(ValueError, match="refused"):
        launch_sweep(options)
    assert trials.sweep.folder.exists() is stays


@pytest.mark.parametrize(
    ("flags", "asks"),
    [({}, False), ({"dry_run": True}, True), ({"dry_run": True, "allow_pipe": True}, False)],
)
def test_only_a_dry_run_asks_whether_the_user_knows_the_sets(
    options: Options,
    pet_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any],
    asks: bool,
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("parameters: {train.seed: {values: [0, 1]}}\n")
    asked: list[Any] = []
    monkeypatch.setattr(
        module, "require_known_sets", lambda cells, typed, file: asked.append((len(cells), typed, file))
    )
    words = (f"data.shards={pet_shards}",)
    cells = find_cells(replace(options, sweep=file, set=words, axis=("model.width=8,16",), **flags))
    assert [cell.axes for cell in cells.cells] == [
        {"train.seed": seed, "model.width": width} for seed in (0, 1) for width in (8, 16)
    ]
    assert list(cells.sets.manifests) == [str(pet_shards)]
    assert [(count, path) for count, _, path in asked] == [(4, file)] * asks
