"""The verdict in words: which differences are shown, which are not, and which cannot be known yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.reporting.statistics.compare import LEVEL
from jobs.reporting.statistics.power_wording import power_points
from jobs.reporting.statistics.records import NOISE_DICE, Group
from jobs.reporting.statistics.verdict import Comparison, Difference, Effects, Leaderboard, Mean

MAX_POINTS = 6  # of a kind
MAX_NAMED = 4
ROUNDING = 1e-18  # a variance that is none
FINDINGS = {
    "apart": "apart",
    "same": f"same within {NOISE_DICE}",
    "open": "no difference shown",
    "unknown": "one seed: not known",
}


@dataclass(frozen=True)
class Verdict:
    lead: str
    points: tuple[str, ...] = ()


def verdict_of(board: Leaderboard) -> Verdict:
    """The verdict: a sentence, and the differences behind it."""
    val = board.val
    if val is None:
        return Verdict(lead(board))
    points = [*_main(board), *_cells(val, brief=bool(board.main)), *_interaction(board.interaction), *_test(board, val)]
    points += [*power_points(val), *_identical(val)]
    if val.left_out:
        points.append(
            f"Not compared, because the pictures of their per_image.npz are missing or others: {_names(val.left_out)}."
        )
    return Verdict(lead(board), tuple(points))


def lead(board: Leaderboard) -> str:
    """The verdict's first sentence, with a note if its data are drawn."""
    val = board.val
    if val is not None:
        first = _best(board, val) if len(val.groups) > 1 else _alone(board, val)
        return f"{first}{_drawn(board)}"
    if not any(group.done for group in board.groups):
        return "Nothing can be compared yet: no trial has finished."
    return "Nothing can be compared: no finished cell has the Dice of two val pictures or more, in each of its trials."


def _alone(board: Leaderboard, val: Comparison) -> str:
    (only,) = val.groups
    measured = f"{only.label} has a mean val Dice of {interval(val.means[only.key])} ({basis(val)})"
    if val.left_out:
        return f"{measured}. No other cell was measured on the same pictures, so it is compared with none."
    if len(board.groups) > 1:
        return f"{measured}. It is the only cell with a result so far, so it is compared with none."
    return f"{measured}. The sweep has no other cell to compare it with."


def _best(board: Leaderboard, val: Comparison) -> str:
    best, others = val.groups[0], val.groups[1:]
    differences = [val.difference(0, j) for j in range(1, len(val.groups))]
    mean = f"{_highest(board, val)}, {interval(val.means[best.key])} ({basis(val)})"
    findings = [difference.finding for difference in differences]
    if all(finding == "unknown" for finding in findings):
        return f"{mean}, {_unknown(val)}"
    beaten = findings.count("apart")
    if beaten == len(others):
        return f"{mean}, and is shown to be better than {others[0].label if beaten == 1 else f'all {beaten} others'}."
    equal = [group for group, difference in zip(others, differences, strict=True) if difference.value == 0]
    rest = [group for group, finding in zip(others, findings, strict=True) if finding != "apart" and group not in equal]
    if equal:
        mean += f"; so {_have(equal)} {_names(equal)}"
    if not beaten:
        return f"No winner: {mean}{f', but is not shown to be better than {_names(rest)}' if rest else ''}."
    unbeaten = f", but not than {_names(rest)}" if rest else ""
    return f"{mean}. It is shown to be better than {beaten} of {len(others)} others{unbeaten}."


def _highest(board: Leaderboard, val: Comparison) -> str:
    """`unet has the highest mean val Dice`, limited to the cells that were compared."""
    best = val.groups[0]
    of_best = best.spread("val/dice")
    higher = [
        one for group in val.left_out if (one := group.spread("val/dice")) and of_best and one.mean > of_best.mean
    ]
    among = "Of the cells measured on the same pictures " if higher else ""
    open_ = any(record.result is None for group in board.groups for record in group.records)
    return f"{among}{best.label} has the highest mean val Dice{' so far' if open_ else ''}"


def _unknown(val: Comparison) -> str:
    """The second half of a sentence on a best cell that cannot be tested, because seeds are missing."""
    others = val.groups[1:]
    if val.cells.is_single.all():
        return "but with one seed each it is not known whether it is better: another seed may turn it round."
    if val.cells.is_single[0]:
        return "but with one seed of it it is not known whether it is better: another seed may turn it round."
    return f"but {_names(others)} {_have(others)} one seed, so it is not known whether it is better."


def _have(groups: Sequence[Group]) -> str:
    return "has" if len(groups) == 1 else "have"


def _drawn(board: Leaderboard) -> str:
    """A sentence for synthetic data, which say nothing about real pictures; "" for others, or for an unknown source."""
    drawn = sum(one.is_synthetic for one in board.sets)
    if not drawn:
        return ""
    where = "Measured" if drawn == len(board.sets) else f"Measured in part ({drawn} of {len(board.sets)} shard sets)"
    return f" {where} on drawn pictures: it says nothing about real ones."


def _main(board: Leaderboard) -> list[str]:
    lines = []
    for effects in board.main:
        others = ", ".join(short(axis) for axis in board.axes if axis not in effects.axes)
        lines += [f"{short(effects.axes[0])}, averaged over {others}: {line}" for line in _sorted(effects.differences)]
    return lines


def _cells(val: Comparison, brief: bool) -> list[str]:
    """Sentences that compare the best cell with the next ones."""
    last = min(len(val.groups), 2 if brief else 1 + MAX_POINTS)
    return [f"{sentence(val.difference(0, j))}." for j in range(1, last)]


def _interaction(effects: Effects | None) -> list[str]:
    if effects is None or not effects.differences:
        return []
    one, other = map(short, effects.axes)
    shown = [d for d in effects.differences if d.finding == "apart"]
    if shown:
        listed = "; ".join(f"{d.name} differs from {d.other} by {numbers(d.upright)}" for d in shown[:MAX_NAMED])
        return [f"What {other} does depends on {one}, so read their averages with care: {listed}."]
    if any(d.finding == "unknown" for d in effects.differences):
        return []
    widest = max(max(-d.low, d.high) for d in effects.differences)
    return [f"That {other} does more for one {one} than for another is not shown; up to {widest:.3f} is not ruled out."]


def _test(board: Leaderboard, val: Comparison) -> list[str]:
    best, test = val.groups[0], board.by_split.get("test")
    mean = test.mean(best) if test else None
    if test is None or mean is None:
        return []
    measured = f"On test ({test.num_pictures:,} pictures, which chose nothing) {best.label} has {interval(mean)}"
    return [f"{measured}: its val mean was picked as the highest, and says a little too much."]


def _identical(val: Comparison) -> list[str]:
    """A warning about cells whose runs all have the same numbers, which different seeds do not give."""
    cells = val.cells
    alike = ~cells.is_single & (cells.run_variance < ROUNDING) & (cells.both < ROUNDING)
    groups = [group for group, same in zip(val.groups, alike, strict=True) if same]
    if not groups:
        return []
    alike_words = "have the same Dice on every picture, as if they had one seed"
    return [f"The runs of {_names(groups)} {alike_words}: look whether the seed does anything before you believe this."]


def _sorted(differences: Sequence[Difference]) -> list[str]:
    upright = [difference.upright for difference in differences]
    upright.sort(key=lambda d: ("apart", "same", "open", "unknown").index(d.finding))
    listed = len(upright) if len(upright) <= MAX_POINTS + 1 else MAX_POINTS
    more = [f"and {len(upright) - listed} more pairs."] if len(upright) > listed else []
    return [f"{sentence(difference)}." for difference in upright[:listed]] + more


def sentence(difference: Difference) -> str:
    """`unet beats resnet34_unet by 0.0040 [0.0020, 0.0060], p = 0.003`."""
    one = difference.upright
    if one.finding == "apart":
        small = f", though by less than {NOISE_DICE}" if one.high < NOISE_DICE else ""
        return f"{one.name} beats {one.other} by {numbers(one)}{small}"
    if one.finding == "same":
        return f"{one.name} against {one.other}: the same within {NOISE_DICE} ({numbers(one)})"
    if one.finding == "open":
        return f"{one.name} against {one.other}: no difference shown ({numbers(one)})"
    return f"{one.name} against {one.other}: not known ({numbers(one)} over pictures alone, with one seed)"


def numbers(difference: Difference) -> str:
    p = f", {p_text(difference.p)}" if difference.p is not None else ""
    return f"{minus(difference.value)} {bounds(difference.low, difference.high)}{p}"


def interval(mean: Mean) -> str:
    return f"{mean.value:.4f} [{mean.low:.4f}, {mean.high:.4f}]"


def basis(comparison: Comparison) -> str:
    """`3 seeds, 368 pictures`."""
    least, most = int(comparison.cells.seeds.min()), int(comparison.cells.seeds.max())
    count = f"{least}" if least == most else f"{least}-{most}"
    groups = "" if comparison.units is None else f" in {comparison.cells.num_pictures:,} groups"
    return f"{count} seed{'s' * (most > 1)}, {comparison.num_pictures:,} pictures{groups}"


def ranks_text(mean: Mean) -> str:
    """`1-3`: a tie spans the ranks it may have."""
    return f"{mean.ranks[0]}" if mean.ranks[0] == mean.ranks[1] else f"{mean.ranks[0]}\N{EN DASH}{mean.ranks[1]}"


def p_text(p: float) -> str:
    number = p_number(p)
    return "p = 1" if p >= 1 else f"p < {number[1:]}" if number.startswith("<") else f"p = {number}"


def p_number(p: float) -> str:
    """`<0.001` or `0.012`; with more digits where it would look like LEVEL and is less."""
    if p < 0.001:
        return "<0.001"
    return f"{p:.5f}" if p < LEVEL <= round(p, 3) else f"{p:.3f}"


def bounds(low: float, high: float) -> str:
    """`[-0.0010, 0.0020]`, with a true minus sign."""
    return f"[{end(low)}, {end(high)}]".replace("-", "\N{MINUS SIGN}")


def end(value: float, sign: str = "") -> str:
    """An end of an interval, with enough digits to show on which side of 0 it lies."""
    texts = [format(value, f"{sign}z.{digits}f") for digits in (4, 5, 6)]
    return next((text for text in texts if float(text) != 0), texts[0])


def minus(value: float) -> str:
    """The number with a true minus sign, and without one before zero."""
    return f"{value:z.4f}".replace("-", "\N{MINUS SIGN}")


def short(axis: str) -> str:
    return axis.rpartition(".")[2]


def _names(groups: Sequence[Group]) -> str:
    named = len(groups) if len(groups) <= MAX_NAMED + 1 else MAX_NAMED
    more = f" and {len(groups) - named} others" if len(groups) > named else ""
    return ", ".join(group.label for group in groups[:named]) + more
