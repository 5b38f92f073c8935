"""The verdict in words: what is shown, what is not, and what nobody can know yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.reporting.records import NOISE_DICE, Group
from jobs.reporting.verdict import Board, Comparison, Difference, Effects, Mean

MAX_POINTS = 6  # of a kind
MAX_NAMED = 4
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


def judge(board: Board) -> Verdict:
    """A sentence, and the differences behind it."""
    val = board.val
    if val is None:
        return Verdict("Nothing can be compared yet: no finished trial has Dice of single pictures.")
    points = [*_main(board), *_cells(val, brief=bool(board.main)), *_interaction(board.interaction), *_test(board, val)]
    if val.left_out:
        points.append(
            f"Not compared, because the pictures of their per_image.npz are missing or others: {_names(val.left_out)}."
        )
    return Verdict(_lead(val), tuple(points))


def _lead(val: Comparison) -> str:
    best, others = val.groups[0], val.groups[1:]
    mean = f"{best.label} has the highest mean val Dice, {interval(val.means[best.place])} ({basis(val)})"
    if not others:
        return f"{mean}: the only one so far."
    found = [val.difference(0, j).finding for j in range(1, len(val.groups))]
    if all(finding == "unknown" for finding in found):
        return f"{mean}, but with one seed each it is not known whether it is better: another seed may turn it round."
    beaten = found.count("apart")
    if beaten == len(others):
        return f"{mean}, and is shown to be better than {'the other' if beaten == 1 else f'all {beaten} others'}."
    rest = [group for group, finding in zip(others, found, strict=True) if finding != "apart"]
    if not beaten:
        return f"No winner: {mean}, but is not shown to be better than {_names(rest)}."
    return f"{mean}. It is shown to be better than {beaten} of {len(others)} others, but not than {_names(rest)}."


def _main(board: Board) -> list[str]:
    lines = []
    for effects in board.main:
        others = ", ".join(short(axis) for axis in board.axes if axis not in effects.axes)
        lines += [f"{short(effects.axes[0])}, averaged over {others}: {line}" for line in _sorted(effects.differences)]
    return lines


def _cells(val: Comparison, brief: bool) -> list[str]:
    """The best against the next ones."""
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


def _test(board: Board, val: Comparison) -> list[str]:
    best, test = val.groups[0], board.by_split.get("test")
    mean = test.mean(best) if test else None
    if test is None or mean is None:
        return []
    measured = f"On test ({test.num_pictures:,} pictures, which chose nothing) {best.label} has {interval(mean)}"
    return [f"{measured}: its val mean was picked as the highest, and says a little too much."]


def _sorted(differences: Sequence[Difference]) -> list[str]:
    upright = [difference.upright for difference in differences]
    upright.sort(key=lambda d: ("apart", "same", "open", "unknown").index(d.finding))
    more = [f"and {len(upright) - MAX_POINTS} more pairs."] if len(upright) > MAX_POINTS else []
    return [f"{sentence(difference)}." for difference in upright[:MAX_POINTS]] + more


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
    return f"{minus(difference.value)} [{minus(difference.low)}, {minus(difference.high)}]{p}"


def interval(mean: Mean) -> str:
    return f"{mean.value:.4f} [{mean.low:.4f}, {mean.high:.4f}]"


def basis(comparison: Comparison) -> str:
    """`3 seeds, 368 pictures`."""
    least, most = int(comparison.cells.seeds.min()), int(comparison.cells.seeds.max())
    count = f"{least}" if least == most else f"{least}-{most}"
    return f"{count} seed{'s' * (most > 1)}, {comparison.num_pictures:,} pictures"


def ranks_text(mean: Mean) -> str:
    """`1-3`: a tie spans the ranks it may have."""
    return f"{mean.ranks[0]}" if mean.ranks[0] == mean.ranks[1] else f"{mean.ranks[0]}\N{EN DASH}{mean.ranks[1]}"


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 1 else "p = 1"


def minus(value: float) -> str:
    """With a true minus sign, and none before a zero."""
    return f"{value:z.4f}".replace("-", "\N{MINUS SIGN}")


def short(axis: str) -> str:
    return axis.rpartition(".")[2]


def _names(groups: Sequence[Group]) -> str:
    named = len(groups) if len(groups) <= MAX_NAMED + 1 else MAX_NAMED
    more = f" and {len(groups) - named} others" if len(groups) > named else ""
    return ", ".join(group.label for group in groups[:named]) + more
