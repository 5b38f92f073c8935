"""Assigns samples to train, val and test: by folder names, by lists, or by shares of the groups."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from shards.files import read_text_file
from shards.manifest import SPLITS

SPLIT_WORDS = {
    "train": "train", "training": "train", "tr": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test", "ts": "test",
}  # fmt: skip


def split_of_word(word: str) -> str | None:
    """The split that a folder or a list is named after, or None."""
    return SPLIT_WORDS.get(word.lower())


def read_lists(paths: Sequence[Path]) -> dict[str, str]:
    """Split by name, from lists of names named train.txt, val.txt and test.txt; a leading `#` makes a comment.

    Raises ValueError for a list that is missing or named otherwise, and for a name in two lists.
    """
    splits: dict[str, str] = {}
    for path in paths:
        split = split_of_word(path.stem)
        if split is None:
            raise ValueError(f"{path}: a list is named after its split, as {', '.join(f'{s}.txt' for s in SPLITS)}")
        try:
            lines = read_text_file(path, "the list").splitlines()
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: it lists the pictures of {split}") from None
        for number, line in enumerate(lines, start=1):
            name = line.strip()
            if not name or name.startswith("#"):
                continue
            if splits.setdefault(name, split) != split:
                raise ValueError(f"{path}:{number}: {name!r} is in the list of {splits[name]}, too")
    return splits


def groups_of(names: Iterable[str], regex: str) -> dict[str, str]:
    """Map each name to its group: what the expression finds, or its first parenthesis; the name itself for "".

    Raises ValueError for an expression that is none, and for a name in which it finds nothing.
    """
    if not regex:
        return {name: name for name in names}
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise ValueError(f"--group-by {regex!r} is no regular expression ({error})") from None
    groups = {}
    for name in names:
        found = pattern.search(name)
        group = found and found[1 if pattern.groups else 0]
        if not group:
            raise ValueError(f"--group-by {regex!r} finds no group in {name!r}")
        groups[name] = group
    return groups


def share_splits(groups: Iterable[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Split by group, with about `shares[split]` of the samples in each and the rest in train; one group per sample.

    The groups are taken in an order that depends on the seed alone. Each share gets at least one group, and so does
    train. Raises ValueError for too few groups.
    """
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    wanted = {split: share * sum(sizes.values()) for split, share in shares.items() if share}
    if len(sizes) <= len(wanted):
        raise ValueError(f"{len(sizes)} groups are too few for {', '.join(('train', *wanted))}: see --group-by")
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}:split:{group}".encode()).digest())
    splits: dict[str, str] = {}
    for number, (split, samples) in enumerate(wanted.items(), start=1):
        taken, spare = 0, 1 + len(wanted) - number  # groups that the splits behind this one need
        while len(order) > spare and (not taken or taken + sizes[order[0]] / 2 <= samples):
            taken += sizes[order[0]]
            splits[order.pop(0)] = split
    return splits | dict.fromkeys(order, "train")


def refuse_divided(groups: Mapping[str, str], splits: Mapping[str, str]) -> None:
    """Raises ValueError that names a group of which some samples are in one split and some in another."""
    of_group: dict[str, str] = {}
    for name, group in groups.items():
        if of_group.setdefault(group, splits[name]) != splits[name]:
            raise ValueError(
                f"group {group!r} is divided: some of it is in {of_group[group]}, and {name!r} in {splits[name]}; "
                "leave {split} and --splits-from out and give --val-share, or leave --group-by out"
            )
