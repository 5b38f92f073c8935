"""What difference a sweep can show: against drawn sweeps that have it, and in words."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.verdict import Truth
from jobs.design.expansion import Cell
from jobs.reporting.statistics import power_wording
from jobs.reporting.statistics.compare import Cells, draw_errors, pairs
from jobs.reporting.statistics.power import LADDER, POWER, Noise, least_difference, noise_of, seeds_for
from jobs.reporting.statistics.power_wording import planned_text
from jobs.reporting.statistics.records import Record
from jobs.runs.trial import Sweep
from petseg.config import RunConfig
from tests.jobs.written_trials import finish, sweep_of

NOISE = Noise(0.0045, 0.02, 368)


@pytest.mark.parametrize(("cells", "seeds"), [(6, 3), (6, 5), (2, 3)])
def test_the_least_difference_is_shown_in_80_per_cent_of_other_sweeps(cells: int, seeds: int) -> None:
    size, rng = least_difference(cells, seeds, NOISE), np.random.default_rng(7)
    shown = []
    for drawn in Truth(cells, seeds, run=NOISE.run, picture=0.0, taste=NOISE.picture, rest=0.0).draw(rng, 150):
        found, above = pairs(drawn, draw_errors(drawn, 999, rng)), np.triu_indices(cells, 1)
        shown += [*(found.low[above] + size > 0)]  # each pair, had it that difference: its interval moves with it
    assert np.mean(shown) == pytest.approx(POWER, abs=0.08)


def test_seeds_are_the_fewest_that_show_it() -> None:
    for fewer, seeds in itertools.pairwise(LADDER[:9]):
        size = 1.001 * least_difference(6, seeds, NOISE)
        assert least_difference(6, fewer, NOISE) > size
        assert seeds_for(size, 6, NOISE) == seeds
    assert seeds_for(1.0, 6, NOISE) == LADDER[0]
    assert seeds_for(0.0001, 6, NOISE) is None  # pictures alone leave more than that open


def test_noise_of_finished_cells_by_hand() -> None:
    """Runs pooled by degrees of freedom; of pictures what cells do not share, without what runs x pictures hold."""
    cells = Cells(
        mean=np.zeros(3),
        seeds=np.array([2, 3, 1]),
        num_pictures=50,
        covariance=0.01 + np.diag([4e-4, 6e-4, 9.0]),
        run_variance=np.array([1e-5, 4e-5, 0.0]),
        both=np.array([2e-4, 3e-4, 0.0]),
    )
    noise = noise_of(cells)
    assert noise
    assert noise.run**2 == pytest.approx((1e-5 + 2 * 4e-5) / 3)
    assert noise.picture**2 == pytest.approx((4e-4 + 6e-4) / 2 - (1e-4 + 1e-4) / 2)
    assert noise.num_pictures == 50
    single = Cells(np.zeros(2), np.array([3, 1]), 50, np.eye(2), np.ones(2), np.ones(2))
    assert noise_of(single) is None


def test_spreads_of_drawn_cells_are_found_again() -> None:
    drawn = Truth(cells=12, seeds=6).draw(np.random.default_rng(0), 10)
    noises = [noise for cells in drawn if (noise := noise_of(cells))]
    assert len(noises) == 10
    assert np.mean([noise.run for noise in noises]) == pytest.approx(0.0045, rel=0.1)
    assert np.mean([noise.picture for noise in noises]) == pytest.approx(0.02, rel=0.05)


def test_plans_in_words() -> None:
    assert planned_text(1, 3, 368, None) == "One cell alone is compared with nothing."
    assert planned_text(6, 1, 368, None).startswith("With one seed no difference can be shown")
    for unknown in (0, 1):  # pictures of a set that was not read
        assert planned_text(6, 3, unknown, None) == planned_text(6, 3, 2, None)
    said = planned_text(6, 3, 368, None)
    assert said.startswith(
        "With 3 seeds and 368 val pictures a difference of about 0.011 Dice between two of the 6 cells"
    )
    assert said.endswith("deviation of runs 0.0025, of pictures in a cell 0.020).")


def test_more_cells_and_wider_spreads_show_less() -> None:
    assert least_difference(2, 3, NOISE) < least_difference(6, 3, NOISE) < least_difference(20, 3, NOISE)
    assert least_difference(6, 3, Noise(0.002, 0.02, 368)) < least_difference(6, 3, NOISE)


def test_a_plan_counts_its_cells_and_the_fewest_seeds_and_knows_what_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seeds of one cell and one of another; what still runs tells no spread."""
    sweep = sweep_of(tmp_path / "lab", 3)
    for trial in sweep.trials[:2]:
        finish(trial)
    places = [{"model.arch": arch, "train.seed": seed} for arch, seed in (("unet", 0), ("unet", 1), ("fcn", 0))]
    cells = {trial.id: Cell(place, RunConfig()) for trial, place in zip(sweep.trials, places, strict=True)}
    boards: list[list[str]] = []

    def build(of: Sweep, records: list[Record]) -> SimpleNamespace:
        boards.append([record.id for record in records])
        return SimpleNamespace(val="what is known")

    monkeypatch.setattr(power_wording, "build_leaderboard", build)
    monkeypatch.setattr(power_wording, "planned_text", lambda *given: given)
    assert power_wording.plan_text(sweep, cells, 368) == (2, 1, 368, "what is known")  # type: ignore[comparison-overlap]
    assert boards == [[trial.id for trial in sweep.trials[:2]]]
