"""The gap between train and val at the best and the last epoch, and the rise of val loss since its lowest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.reporting.sections.curves import Line, curve_of
from jobs.reporting.statistics.records import Group

MAX_ROWS = 60


@dataclass(frozen=True)
class At:
    """Train and val at the end of an epoch, means over seeds."""

    epoch: int
    train_dice: float | None
    val_dice: float | None
    train_loss: float | None
    val_loss: float | None

    @property
    def dice_gap(self) -> float | None:
        """Train minus val."""
        return None if self.train_dice is None or self.val_dice is None else self.train_dice - self.val_dice

    @property
    def loss_gap(self) -> float | None:
        """Val minus train: above 0 is overfitting too."""
        return None if self.train_loss is None or self.val_loss is None else self.val_loss - self.train_loss


@dataclass(frozen=True)
class Gap:
    label: str
    best: At  # in the epoch of the best mean val Dice
    last: At
    opens: int | None  # epoch of the lowest mean val loss
    rise: float | None  # of val loss from there to the end


@dataclass(frozen=True)
class GapTable:
    rows: tuple[Gap, ...]
    left_out: int


def measure_gaps(groups: Sequence[Group]) -> GapTable:
    """The gaps of the first cells that have a val Dice, in their order."""
    rows = [gap for group in groups[:MAX_ROWS] if (gap := gap_of(group))]
    return GapTable(tuple(rows), max(0, len(groups) - MAX_ROWS))


def gap_of(group: Group) -> Gap | None:
    """None before there is a val Dice."""
    curve = curve_of(group, group.label, 0)
    if curve is None or curve.best_dice_epoch is None:
        return None
    lines = curve.lines
    last = at(lines, lines["val/dice"].epochs[-1])
    opens, rise = curve.lowest_loss_epoch, None
    if opens is not None and last.val_loss is not None:
        rise = last.val_loss - min(lines["val/loss"].mean)
    return Gap(group.label, at(lines, curve.best_dice_epoch), last, opens, rise)


def at(lines: dict[str, Line], epoch: int) -> At:
    def value(name: str) -> float | None:
        line = lines.get(name)
        return dict(zip(line.epochs, line.mean, strict=True)).get(epoch) if line else None

    return At(epoch, value("train/dice"), value("val/dice"), value("train/loss"), value("val/loss"))
