"""How often is the verdict wrong, and what does it find? On drawn sweeps of a known truth, beside other ways to decide.

python -m benchmarks.verdict --json verdict.json
python -m benchmarks.verdict --ways report holm --sweeps 4000

A sweep is drawn as six (or two) cells of two to five seeds on 368 pictures: the Dice of a picture after a run is what
the run does to all pictures (sd 0.0045), what the picture does in all cells (0.08), what it does in one cell (0.02),
and the rest (0.02). `wild`: one or two cells whose runs spread three times as widely. `uneven`: each cell's own sd, by
a factor of exp(0.5 z). For each truth: the share of sweeps without any difference in which one is found (familywise
false findings), that of differences of 0.01 between the first cell and each other that are found, and half the mean
width of the intervals of pairs that hold no wild cell.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import special

from jobs.reporting.statistics.compare import Cells, draw_errors, pairs
from shards.command.flags import parse

Floats = NDArray[np.float64]
SHIFT, LEVEL, DRAWS = 0.01, 0.05, 1_999
CHUNK = 100  # sweeps drawn at a time


@dataclass(frozen=True)
class Truth:
    """What a drawn sweep is made of: standard deviations, in Dice."""

    cells: int = 6
    seeds: int = 3
    pictures: int = 368
    run: float = 0.0045  # of a training run, on all pictures
    picture: float = 0.08  # of a picture, in all cells
    taste: float = 0.02  # of a picture in one cell
    rest: float = 0.02
    wild: int = 0  # of the last cells, whose runs spread WILD times as widely
    uneven: float = 0.0  # sd of the logarithm of each cell's run

    def draw(self, rng: np.random.Generator, sweeps: int) -> list[Cells]:
        """Summaries of sweeps whose cells all have one true mean, 0."""
        shape = (sweeps, self.cells, self.seeds)
        run = self.run * np.exp(self.uneven * rng.standard_normal((sweeps, self.cells, 1)))
        run[:, self.cells - self.wild :] *= WILD
        taste = self.taste * rng.standard_normal((sweeps, self.cells, self.pictures), dtype=np.float32)
        common = self.picture * rng.standard_normal((sweeps, 1, self.pictures), dtype=np.float32)
        rest = self.rest * rng.standard_normal((*shape, self.pictures), dtype=np.float32)
        by_picture = (common + taste + rest.mean(axis=2)).astype(np.float64)
        runs = run * rng.standard_normal(shape) + (common + taste).mean(axis=-1)[..., None] + rest.mean(axis=-1)
        centred = by_picture - by_picture.mean(axis=-1, keepdims=True)
        covariance = centred @ centred.transpose(0, 2, 1) / (self.pictures - 1)
        residual = rest - rest.mean(axis=-1, keepdims=True) - rest.mean(axis=2, keepdims=True)
        residual += rest.mean(axis=(2, 3), keepdims=True)
        both = (residual.astype(np.float64) ** 2).sum(axis=(2, 3)) / ((self.seeds - 1) * (self.pictures - 1))
        seeds = np.full(self.cells, self.seeds)
        return [
            Cells(runs[i].mean(axis=1), seeds, self.pictures, covariance[i], runs[i].var(axis=1, ddof=1), both[i])
            for i in range(sweeps)
        ]


WILD = 3.0
TRUTHS = {
    "6 x 3": Truth(),
    "6 x 5": Truth(seeds=5),
    "6 x 2": Truth(seeds=2),
    "2 x 3": Truth(cells=2),
    "2 x 2": Truth(cells=2, seeds=2),
    "6 x 3, one wild": Truth(wild=1),
    "6 x 3, two wild": Truth(wild=2),
    "6 x 5, one wild": Truth(seeds=5, wild=1),
    "6 x 3, uneven": Truth(uneven=0.5),
}
Found = tuple[Floats, Floats]  # adjusted p and half the interval's width, of each pair
Way = Callable[[Cells, np.random.Generator], Found]


def report(cells: Cells, rng: np.random.Generator) -> Found:
    """As the report decides."""
    found, above = pairs(cells, draw_errors(cells, DRAWS, rng)), np.triu_indices(len(cells.mean), 1)
    return found.p[above], (found.high - found.value)[above]


def holm(cells: Cells, rng: np.random.Generator) -> Found:
    """Pooled spread unless the pair's own is larger, Satterthwaite's t, p after Holm, intervals of each pair alone: how
    the report decided before, whose intervals and p values could contradict each other."""
    value, pictures, both = _parts(cells)
    degrees = cells.seeds - 1
    own, own_square = (
        _of_pairs(cells.run_variance / cells.seeds),
        _of_pairs((cells.run_variance / cells.seeds) ** 2 / degrees),
    )
    pooled = float((degrees * cells.run_variance).sum() / degrees.sum()) * _of_pairs(1 / cells.seeds)
    excess = np.maximum(own - pooled, 0)
    variance = pooled + excess + np.maximum(pictures - both, 0)
    square = pooled**2 / degrees.sum() + np.where(excess > 0, (excess / own) ** 2 * own_square, 0)
    freedom = np.maximum(variance**2 / (square + pictures**2 / (cells.num_pictures - 1)), 1)
    p = 2 * special.stdtr(freedom, -np.abs(value) / np.sqrt(variance))
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted, special.stdtrit(freedom, 0.975) * np.sqrt(variance)


def welch(cells: Cells, rng: np.random.Generator) -> Found:
    """Each cell's own spread, Satterthwaite's t, Bonferroni."""
    value, pictures, both = _parts(cells)
    own = cells.run_variance / cells.seeds
    return _bonferroni(value, _of_pairs(own), _of_pairs(own**2 / (cells.seeds - 1)), pictures, both, cells)


def moderated(cells: Cells, rng: np.random.Generator) -> Found:
    """Moderated variances (Smyth 2004) with parameters fitted to the cells, Satterthwaite's t, Bonferroni."""
    value, pictures, both = _parts(cells)
    degrees = float(cells.seeds[0] - 1)
    prior, weight = moderate(cells.run_variance, degrees)
    weight = min(weight, degrees * len(cells.mean))
    own = (weight * prior + degrees * cells.run_variance) / (weight + degrees) / cells.seeds
    return _bonferroni(value, _of_pairs(own), _of_pairs(own**2 / (weight + degrees)), pictures, both, cells)


def single(cells: Cells, rng: np.random.Generator) -> Found:
    """One spread for all cells, all pairs together by draws: Tukey and Kramer's."""
    degrees = (cells.seeds - 1).sum()
    mean = float(((cells.seeds - 1) * cells.run_variance).sum() / degrees)
    variances = mean * degrees / rng.chisquare(degrees, (DRAWS, 1))
    size = (DRAWS, len(cells.mean))
    value, pictures, both = _parts(cells)
    over = np.sqrt(np.maximum(pictures - both, 0).mean() / 2)
    errors = np.sqrt(variances / cells.seeds) * rng.standard_normal(size) + over * rng.standard_normal(size)
    one, other = np.triu_indices(len(cells.mean), 1)
    largest = np.sort(np.abs(errors[:, one] - errors[:, other]).max(axis=1))
    p = (1 + DRAWS - np.searchsorted(largest, np.abs(value))) / (DRAWS + 1)
    return p, np.full(value.shape, largest[1 - round(LEVEL * (DRAWS + 1))])


WAYS: dict[str, Way] = {"report": report, "holm": holm, "single": single, "moderated": moderated, "welch": welch}


def moderate(variances: Floats, degrees: float) -> tuple[float, float]:
    """Variance and degrees of freedom of the prior that the cells' variances tell of (Smyth 2004, section 6.2)."""
    logs = np.log(np.maximum(variances, 1e-14)) - special.digamma(degrees / 2) + np.log(degrees / 2)
    excess = float(logs.var(ddof=1) - special.polygamma(1, degrees / 2))
    if excess <= 0:
        return float(variances.mean()), np.inf
    half = 0.5 + 1 / excess
    for _ in range(30):  # trigamma(half) = excess
        trigamma = special.polygamma(1, half)
        half += trigamma * (1 - trigamma / excess) / special.polygamma(2, half)
    return float(np.exp(logs.mean() + special.digamma(half) - np.log(half))), 2 * float(half)


def _of_pairs(values: Floats) -> Floats:
    one, other = np.triu_indices(len(values), 1)
    return values[one] + values[other]


def _parts(cells: Cells) -> tuple[Floats, Floats, Floats]:
    """Return each pair's difference, its variance over pictures, and the share of that which runs hold too."""
    one, other = np.triu_indices(len(cells.mean), 1)
    pictures = _of_pairs(np.diag(cells.covariance)) - 2 * cells.covariance[one, other]
    both = _of_pairs(cells.both / cells.seeds) / cells.num_pictures
    return cells.mean[one] - cells.mean[other], pictures / cells.num_pictures, both


def _bonferroni(value: Floats, runs: Floats, square: Floats, pictures: Floats, both: Floats, cells: Cells) -> Found:
    variance = runs + np.maximum(pictures - both, 0)
    freedom = np.maximum(variance**2 / (square + pictures**2 / (cells.num_pictures - 1)), 1)
    p = 2 * special.stdtr(freedom, -np.abs(value) / np.sqrt(variance))
    return np.minimum(p * len(p), 1), special.stdtrit(freedom, 1 - LEVEL / 2 / len(p)) * np.sqrt(variance)


@dataclass(frozen=True)
class Row:
    """One way on one truth."""

    truth: str
    way: str
    sweeps: int
    false_findings: float
    power: float
    half_width: float

    def text(self) -> str:
        error = (self.false_findings * (1 - self.false_findings) / self.sweeps) ** 0.5
        return (
            f"{self.truth:<16} {self.way:<10} false findings {self.false_findings:.3f} +- {error:.3f}, "
            f"power {self.power:.3f}, half width {self.half_width:.4f}"
        )


def measure(name: str, truth: Truth, way: str, sweeps: int, seed: int = 0) -> Row:
    """Over so many drawn sweeps, the same ones for all ways."""
    draws = np.random.default_rng(seed + 1)
    one, other = np.triu_indices(truth.cells, 1)
    tame = other < truth.cells - truth.wild
    false, power, width = [], [], []
    for cells in drawn_sweeps(truth, sweeps, seed):
        p, half = WAYS[way](cells, draws)
        false.append((p < LEVEL).any())
        width.append(half[tame].mean())
        shift = np.where(np.arange(truth.cells) == 0, SHIFT, 0.0)
        p, _ = WAYS[way](replace(cells, mean=cells.mean + shift), draws)
        power.append((p < LEVEL)[one == 0].mean())
    return Row(name, way, sweeps, float(np.mean(false)), float(np.mean(power)), float(np.mean(width)))


def false_findings(truth: Truth, way: str, sweeps: int, seed: int = 0) -> float:
    """The share of sweeps in which the way finds a difference: `measure` without power and widths, in half the time."""
    draws = np.random.default_rng(seed + 1)
    return float(np.mean([(WAYS[way](cells, draws)[0] < LEVEL).any() for cells in drawn_sweeps(truth, sweeps, seed)]))


def drawn_sweeps(truth: Truth, sweeps: int, seed: int) -> Iterator[Cells]:
    rng = np.random.default_rng(seed)
    for start in range(0, sweeps, CHUNK):
        yield from truth.draw(rng, min(CHUNK, sweeps - start))


@dataclass(frozen=True)
class BenchConfig:
    """Compare ways to decide between cells on drawn sweeps."""

    sweeps: int = 2_000
    """Sweeps of each truth."""
    ways: tuple[str, ...] = tuple(WAYS)
    """Which ways: report, holm, single, moderated, welch."""
    json: Path | None = None
    """Write the rows to this file too."""

    def __post_init__(self) -> None:
        if unknown := [way for way in self.ways if way not in WAYS]:
            raise ValueError(f"--ways {' '.join(unknown)}: the ways are {', '.join(WAYS)}")


def main() -> int:
    config = parse(BenchConfig, None, __doc__)
    rows = []
    for name, truth in TRUTHS.items():
        for way in config.ways:
            rows.append(measure(name, truth, way, config.sweeps))
            print(rows[-1].text(), flush=True)
    if config.json:
        config.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
