"""Under which rules a sweep's numbers were measured, and what keeps them from being compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from jobs.design.shard_sets import ShardSet
from jobs.reporting.sections.targets import counted_words, targets_of
from jobs.reporting.statistics.records import Record
from jobs.reporting.statistics.verdict import Comparison
from jobs.runs.trial import SEED_AXIS, Sweep
from petseg.targets.target import Target, implied_target
from petseg.targets.words import Words
from shards.command import typed
from shards.near_duplicates.note import summarise_duplicates

AVERAGING_OF_CLASSES = (
    "Dice and IoU per picture, the mean over the classes in its truth or prediction, then the mean over pictures"
)
FITS = {
    "squash": "pictures squashed to it",
    "letterbox": "pictures scaled to it in their own shape, margins not counted",
    "crop": "training on crops of it, whole pictures measured by overlapping windows at their own resolution",
}
MAX_NAMED = 20
# decide what a Dice means
PER_PICTURE = {
    "data.image_size_px": "image size",
    "data.fit": "fit",
    "data.border": "border rule",
    "data.target": "target",
    "data.shards": "shard set",
}
ORDER = ("done", "running", "stalled", "queued", "unknown", "interrupted", "failed", "planned", "pruned")

Facts = list[tuple[str, str]]


def state_counts(records: Sequence[Record]) -> list[tuple[str, int]]:
    """The number of trials by state, always with `done` and `failed`."""
    counts = Counter(record.trial_status.status for record in records)
    return [(state, counts[state]) for state in ORDER if counts[state] or state in ("done", "failed")]


def protocol(sweep: Sweep, records: Sequence[Record], val: Comparison | None = None) -> Facts:
    """The facts that decide whether two numbers can be compared. val: as the leaderboard compares the trials"""
    targets = targets_of(records) or _planned_targets(sweep)
    groups = [("Groups", groups_text(val))] if val and val.num_groups else []
    return [
        *shard_facts(sweep),
        *target_facts(targets, records),
        ("Image size", image_size(records)),
        ("Averaging", "; ".join(map(averaging, targets)) or AVERAGING_OF_CLASSES),
        *groups,
        ("Weights", "of the epoch with the best val Dice; test is measured once with them and never ranks"),
        ("Ranked by", "mean val/dice over seeds; test chooses nothing"),
        (floor_words(records, targets).floor, floors(records)),
        ("Training", training(records)),
        ("Seeds", ", ".join(dict.fromkeys(str(r.seed) for r in records if r.seed is not None)) or "unknown"),
    ]


def _planned_targets(sweep: Sweep) -> list[Target]:
    """What trials that have not begun will learn, as far as the sweep notes it: nothing in a set with a class table."""
    return [] if any(one.num_classes for one in sweep.shard_sets) else [implied_target()]


def target_facts(targets: Sequence[Target], records: Sequence[Record]) -> Facts:
    """The classes, where they are not the implied ones, and how disputed pixels count where rules differ."""
    facts = []
    if any(not target.is_implied for target in targets):
        facts.append(("Target", "; ".join(map(target_text, targets))))
    disputed = [target for target in targets if len(target.rules) > 1]
    if disputed:
        words = max(disputed, key=lambda target: target.is_implied).words
        facts.append((words.disputed.capitalize(), common(records, "data.border", words.rules)))
    return facts


def target_text(target: Target) -> str:
    """`as_packed, 11 classes: sky, building, ...`"""
    names = target.names
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{target.name}, {len(names)} classes: {', '.join(names[:MAX_NAMED])}{more}"


def averaging(target: Target) -> str:
    """How a target's Dice is averaged."""
    if target.is_binary:
        return f"Dice and IoU of the {target.names[1]} class per picture, then the mean over pictures"
    return (
        f"Dice and IoU per picture, the mean over {counted_words(target)} that are in its truth or prediction, then "
        "the mean over pictures"
    )


def groups_text(val: Comparison) -> str:
    """How the groups of a set that was packed with --group-by enter the intervals."""
    pictures = f"{val.num_pictures:,} val pictures in {val.num_groups:,} group{'s' * (val.num_groups > 1)} (--group-by)"
    if val.units is not None:
        return f"{pictures}: intervals and tests are for other groups, since pictures of one are not independent"
    if val.num_groups == 1:
        return f"{pictures}: intervals are for other pictures of this group, and say nothing about other groups"
    return f"{pictures}: each picture is a group by itself"


def shard_facts(sweep: Sweep) -> Facts:
    """The facts on each shard set of the sweep, with its location if there are several."""
    sets = [one if one.source else replace(one, source=one.location) for one in noted_sets(sweep)]
    facts = {
        "Shard set": [f"{one.source}: {one.attribution}" if one.attribution else one.source for one in sets],
        "Splits": [" / ".join(f"{count:,} {name}" for name, count in one.num_samples.items()) for one in sets],
        "Near-identical pictures": [duplicates(one) for one in sets],
        "Manifest hash": [one.hash for one in sets],
    }
    locations = [one.location for one in sets]
    return [(name, _by_location(texts, locations)) for name, texts in facts.items() if any(texts)]


def duplicates(noted: ShardSet) -> str:
    """The near-identical pictures of a shard set, "" if the set is unknown."""
    if not noted.num_samples:
        return ""
    if noted.near_duplicates is None:
        return f"not looked for: `{typed('-m', 'shards.duplicates', noted.location)}` does"
    return summarise_duplicates(noted.near_duplicates)


def noted_sets(sweep: Sweep) -> tuple[ShardSet, ...]:
    return sweep.shard_sets or (ShardSet(sweep.manifest_hash, sweep.shards),)


def _by_location(texts: Sequence[str], locations: Sequence[str]) -> str:
    if len(set(texts)) == 1:
        return texts[0]
    return "; ".join(f"{location}: {text or 'unknown'}" for location, text in zip(locations, texts, strict=True))


def image_size(records: Sequence[Record]) -> str:
    """The network's size of pictures, and how they get it."""
    size = common(records, "data.image_size_px")
    fits = values_of(records, "data.fit") or ["squash"]  # earlier versions had no other
    how = FITS.get(fits[0], fits[0]) if len(fits) == 1 else f"fitted by {', '.join(fits)}"
    return f"{size} px{'' if 'x' in size else ' square'}, {how}"


def common(records: Sequence[Record], name: str, words: Mapping[str, str] | None = None) -> str:
    """The value that all trials share, or all values if they differ."""
    texts = [(words or {}).get(value, value) for value in values_of(records, name)]
    return texts[0] if len(texts) == 1 else f"differs: {', '.join(texts)}" if texts else "unknown"


def values_of(records: Sequence[Record], name: str) -> list[str]:
    """Each value once, in the order of the trials."""
    return list(dict.fromkeys(str(record.values[name]) for record in records if name in record.values))


def training(records: Sequence[Record]) -> str:
    parts = ("batch_size", "loss", "mixed_precision")
    listed = [f"{part.replace('_', ' ')} {common(records, f'train.{part}')}" for part in parts]
    optim = " ".join(common(records, f"optim.{part}") for part in ("name", "lr", "schedule"))
    return ", ".join([lengths(records), *listed, f"optimizer {optim}"])


def lengths(records: Sequence[Record]) -> str:
    """The length of training in epochs, optimizer steps or minutes; minutes end after as many steps as fit."""
    texts = list(dict.fromkeys(length(record) for record in records if "train.epochs" in record.values))
    text = texts[0] if len(texts) == 1 else f"differs: {', '.join(texts)}" if texts else "epochs unknown"
    epochs = {r.result.epochs for r in records if r.result and r.values.get("train.budget_min")}
    if not epochs:
        return text
    span = " to ".join(str(count) for count in sorted({min(epochs), max(epochs)}))
    return f"{text} (by minutes as many steps as fit: {span} epochs, the last of them perhaps in part)"


def length(record: Record) -> str:
    if steps := record.values.get("train.budget_steps"):
        return f"optimizer steps {steps}"
    if minutes := record.values.get("train.budget_min"):
        return f"minutes {minutes:g}"
    return f"epochs {record.values['train.epochs']}"


def floor_of(records: Sequence[Record], split: str) -> float | None:
    """Dice of calling every pixel the same class; the lowest, should it differ between trials."""
    values = [floor for r in records if r.result and (floor := r.result.floor(split)) is not None]
    return min(values, default=None)


def floor_words(records: Sequence[Record], targets: Sequence[Target] = ()) -> Words:
    """What `floor_of` is called; by the targets of the trials where nothing is measured."""
    metrics = [record.result.metrics for record in records if record.result]
    if any("val/one_class_dice" in one for one in metrics):
        return Words()
    implied = metrics or (targets and all(target.is_implied for target in targets))
    return implied_target().words if implied else Words()


def floors(records: Sequence[Record]) -> str:
    known = [(split, floor) for split in ("val", "test") if (floor := floor_of(records, split)) is not None]
    listed = ", ".join(f"{floor:.4f} {split}" for split, floor in known)
    return f"Dice {listed}: a model below it has learnt nothing" if known else "not measured yet"


def warnings(records: Sequence[Record], axes: Sequence[str], sweep_axes: Sequence[str]) -> list[str]:
    """The warnings that a reader needs before believing the tables."""
    warned = []
    for name, word in PER_PICTURE.items():
        if name in axes:
            values = ", ".join(values_of(records, name)) or "unknown"
            warned.append(
                f"The trials differ in {word} ({values}): their Dice is not the same measure, compare with care."
            )
    extra = [name for name in axes if name not in sweep_axes and name not in PER_PICTURE]
    if extra:
        warned.append(f"The trials also differ in {', '.join(extra)}, which the sweep does not vary: shown as axes.")
    if lost := [record.id for record in records if record.config is None]:
        warned.append(f"No readable config.json for {', '.join(lost)}: placed by the axes in sweep.json alone.")
    if pruned := [record for record in records if record.is_pruned]:
        listed = "; ".join(f"{record.id} {record.trial.label}" for record in pruned[:MAX_NAMED])
        more = f"; and {len(pruned) - MAX_NAMED} more" if len(pruned) > MAX_NAMED else ""
        warned.append(
            f"{len(pruned)} trials were stopped early, because others did better, and are in no mean, rank or curve; "
            f"where they differ from the others in the seed alone, the others' mean says too much: {listed}{more}."
        )
    if any(record.result is None and not record.is_pruned for record in records):
        waiting = (pair for pair in state_counts(records) if pair[1] and pair[0] not in ("done", "pruned"))
        states = ", ".join(f"{count} {state}" for state, count in waiting)
        warned.append(
            f"Not all of the {len(records)} trials are done ({states}): means are over the finished ones only."
        )
    floor = floor_of(records, "val")
    below = [r for r in records if r.result and floor is not None and r.result.metrics["val/dice"] < floor]
    if below:
        warned.append(
            f"{len(below)} finished trials are below {floor_words(records).floor_within} ({floor:.4f}): they have "
            "learnt nothing."
        )
    if not any(record.seed is not None for record in records) or len({r.seed for r in records}) == 1:
        warned.append(f"A single seed ({SEED_AXIS}): the spread between reruns is not known.")
    return warned
