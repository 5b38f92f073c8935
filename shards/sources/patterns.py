"""Pictures and masks in any folders that two patterns describe, such as `images/{split}/{key}.jpg`."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.labels.masks import MaskFiles, MaskSource, read_mask
from shards.labels.observed import LabelMask
from shards.labels.rules import LabelRules, rules_of
from shards.manifest import SPLITS, Source
from shards.sources.keys import key_of
from shards.sources.listing import NAMED, Listing, Mask, NamedSample
from shards.sources.splits import groups_of, read_lists, refuse_divided, share_splits, split_of_word
from shards.sources.walk import Match, Pattern, find_files, parse_pattern

MAX_SHARE = 0.9


@dataclass(frozen=True)
class SplitOptions:
    """How samples come to their splits where no folder names them."""

    lists: tuple[Path, ...] = ()
    val_share: float = 0.0
    test_share: float = 0.0
    group_by: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, share in (("val-share", self.val_share), ("test-share", self.test_share)):
            if not 0 <= share <= MAX_SHARE:
                raise ValueError(f"--{flag} is {share}: from 0 to {MAX_SHARE} of the samples")

    @property
    def shares(self) -> dict[str, float]:
        return {"val": self.val_share, "test": self.test_share}

    @classmethod
    def again(cls, content: Mapping[str, Any], root: Path, seed: int) -> SplitOptions:
        """The options that a manifest holds."""
        lists = tuple(root / name for name in content["splits_from"])
        return cls(lists, content["val_share"], content["test_share"], content["group_by"], seed)

    def content(self, root: Path | None) -> dict[str, Any]:
        """For the manifest, which knows no folder outside of the data set's `root`."""
        return {
            "splits_from": [below(path, root) for path in self.lists],
            "val_share": self.val_share,
            "test_share": self.test_share,
            "group_by": self.group_by,
        }


@dataclass(frozen=True)
class PairOptions:
    """The patterns that pair files, and how the pairs are split."""

    images: str
    masks: str
    splits: SplitOptions = field(default_factory=SplitOptions)
    takes_nearest: bool = False


@dataclass(frozen=True)
class Pair(NamedSample):
    """A picture and its mask, or the masks of its classes."""

    masks: MaskFiles
    rules: LabelRules = field(repr=False)
    takes_nearest: bool = False

    def files(self) -> tuple[Path, ...]:
        return (self.picture, *(path for _, path in self.masks))

    def read_mask(self, picture: np.ndarray) -> Mask:
        source = MaskSource(self.masks, str(self.masks[0][1]), self.split, self.takes_nearest)
        return as_mask(read_mask(source, self.rules, picture))


def as_mask(mask: LabelMask) -> Mask:
    return Mask(Image.fromarray(mask.indices), None, mask.oddities, mask.observed)


def read_pairs(options: PairOptions, rules: LabelRules) -> Listing:
    """List the samples that two patterns pair.

    Raises ValueError that names the file or the flag: nothing matches, two pictures have one key, a split that cannot
    be told, a link out of the folders.
    """
    images, masks = parse_pattern(options.images, "--images"), parse_pattern(options.masks, "--masks")
    if "class" in images.names or ("split" in masks.names and "split" not in images.names):
        raise ValueError("--images takes {key} and {split}, and --masks takes {split} only where --images has it")
    found = _match(images, masks, rules)
    if not found.paired:
        raise ValueError(_nothing_paired(options, found))
    names = _names_of(found.paired)
    splits, unlisted = choose_splits(
        names, [match.split for match in found.paired], "split" in images.names, options.splits
    )
    groups = groups_of((name for name in names if name in splits), options.splits.group_by)
    refuse_divided(groups, splits)
    pairs = tuple(
        Pair(
            key=key_of(name),
            name=name,
            split=splits[name],
            group=groups[name],
            picture=match.path,
            masks=found.masks_of(match),
            rules=rules,
            takes_nearest=options.takes_nearest,
        )
        for name, match in zip(names, found.paired, strict=True)
        if name in splits
    )
    oddities = {
        "picture_without_mask": tuple(str(match.path) for match in found.unpaired),
        "unlisted_picture": tuple(unlisted),
        "mask_without_picture": found.spare_masks(),
    }
    return Listing(
        source=Source(rules.name, rules.attribution, values={}),
        samples=pairs,
        oddities={kind: names for kind, names in oddities.items() if names},
        settings=_settings(images, masks, options, rules),
        rules=rules,
    )


@dataclass(frozen=True)
class _Matched:
    """The files that two patterns match."""

    masks: Mapping[tuple[str, str], MaskFiles]  # by the split's word and key; without the word if masks have no {split}
    by_split: bool
    paired: list[Match]
    unpaired: list[Match]

    def masks_of(self, picture: Match) -> MaskFiles:
        return self.masks.get((picture.split if self.by_split else "", picture.key), ())

    def spare_masks(self) -> tuple[str, ...]:
        """The masks of no picture."""
        used = {path for picture in self.paired for _, path in self.masks_of(picture)}
        return tuple(sorted(str(path) for files in self.masks.values() for _, path in files if path not in used))


def _match(images: Pattern, masks: Pattern, rules: LabelRules) -> _Matched:
    mask_files = _mask_files(masks, rules)
    are_masks = {path for files in mask_files.values() for _, path in files}
    found = _Matched(mask_files, "split" in masks.names, [], [])
    for picture in find_files(images):
        if picture.path not in are_masks:  # which may lie beside their pictures
            (found.paired if found.masks_of(picture) else found.unpaired).append(picture)
    return found


def _mask_files(masks: Pattern, rules: LabelRules) -> dict[tuple[str, str], MaskFiles]:
    """The mask files of each (split word, key), with "" for the split where the pattern has none."""
    classes = {one.name: index for index, one in enumerate(rules.classes)}
    files: dict[tuple[str, str], list[tuple[int | None, Path]]] = defaultdict(list)
    for match in find_files(masks):
        index = None
        if "class" in masks.names:
            if match.class_name not in classes:
                raise ValueError(
                    f"{match.path}: {match.class_name!r} is none of the classes {', '.join(classes)}: name them in "
                    "classes.toml as the folders or files are named"
                )
            index = classes[match.class_name]
        found = files[match.split, match.key]
        if any(index == other for other, _ in found):
            raise ValueError(f"two masks have the key {match.key!r}: {found[0][1]} and {match.path}")
        found.append((index, match.path))
    return {key: tuple(found) for key, found in files.items()}


def _names_of(pictures: Sequence[Match]) -> list[str]:
    """The samples' names: their keys, behind their splits' names where two splits count their pictures alike."""
    seen: dict[tuple[str, str], Path] = {}
    for match in pictures:
        if (match.split, match.key) in seen:
            raise ValueError(
                f"two pictures have the key {match.key!r}: {seen[match.split, match.key]} and {match.path}"
            )
        seen[match.split, match.key] = match.path
    if max(Counter(match.key for match in pictures).values()) == 1:
        return [match.key for match in pictures]
    return [f"{match.split}/{match.key}" for match in pictures]


def choose_splits(
    names: Sequence[str], words: Sequence[str], has_words: bool, options: SplitOptions
) -> tuple[dict[str, str], list[str]]:
    """Split by name, and the names that are in no list.

    words: the name of each sample's split, as its folder has it, if `has_words`
    """
    if has_words and options.lists:
        raise ValueError("--images has {split}, and --splits-from lists the splits too: leave one of them out")
    if options.lists:
        listed = read_lists(options.lists)
        if missing := listed.keys() - set(names):
            some = ", ".join(sorted(missing)[:NAMED])
            raise ValueError(f"{len(missing)} names in the lists have no picture with a mask: {some}")
        splits = {name: listed[name] for name in names if name in listed}
    elif has_words:
        splits = {name: _split_named(word, name) for name, word in zip(names, words, strict=True)}
    else:
        splits = dict.fromkeys(names, "train")
    wanted = {split: share for split, share in options.shares.items() if share}
    if not wanted and set(splits.values()) == {"train"}:
        raise ValueError(
            "all pictures would be in train: tell the splits by {split} in --images, by --splits-from, or by a share "
            "such as --val-share 0.1"
        )
    for split in wanted:
        if split in splits.values():
            raise ValueError(f"--{split}-share takes samples out of train for {split}, which is there already")
    if wanted:
        train = [name for name, split in splits.items() if split == "train"]
        groups = groups_of(train, options.group_by)
        of_group = share_splits(groups.values(), wanted, options.seed)
        splits |= {name: of_group[group] for name, group in groups.items()}
    return splits, [name for name in names if name not in splits]


def _split_named(word: str, name: str) -> str:
    split = split_of_word(word)
    if split is None:
        raise ValueError(f"{{split}} is {word!r} for {name!r}: it must name {', '.join(SPLITS)} (or training, Tr, ...)")
    return split


def _nothing_paired(options: PairOptions, found: _Matched) -> str:
    keys = []
    if found.unpaired:
        keys.append(f"pictures have keys such as {found.unpaired[0].key!r}")
    if found.masks:
        keys.append(f"masks have keys such as {next(iter(found.masks))[1]!r}")
    return (
        f"no picture and mask match --images {options.images!r} and --masks {options.masks!r} ({len(found.unpaired)} "
        f"pictures, {len(found.masks)} masks); {' and '.join(keys) or 'folders that are links are left alone'}"
    )


def _settings(images: Pattern, masks: Pattern, options: PairOptions, rules: LabelRules) -> dict[str, Any]:
    root = common_root(images.root, masks.root)
    pairs = {
        "images": f"{below(images.root, root)}/{images.below}".removeprefix("./"),
        "masks": f"{below(masks.root, root)}/{masks.below}".removeprefix("./"),
        **options.splits.content(root),
        "takes_nearest": options.takes_nearest,
    }
    return {"pairs": pairs, "classes": rules.content()}


def common_root(*folders: Path) -> Path | None:
    """The folder that holds all of these; None if only the root of the file system does."""
    root = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    return None if root == Path(root.anchor) else root


def below(path: Path, root: Path | None) -> str:
    """The path below the data set's root; its name alone where it lies elsewhere."""
    if root is None or not path.absolute().is_relative_to(root):
        return path.name
    return path.absolute().relative_to(root).as_posix()


def pairs_again(packer: Mapping[str, Any], root: Path) -> Listing:
    """The samples that a set was packed from, by its manifest's packer; `root` holds pictures and masks.

    Raises ValueError if they are not there, or KeyError or TypeError if the manifest does not say enough.
    """
    pairs = packer["pairs"]
    splits = SplitOptions.again(pairs, root, packer["seed"])
    options = PairOptions(
        str(root / pairs["images"]), str(root / pairs["masks"]), splits, takes_nearest=pairs["takes_nearest"]
    )
    return read_pairs(options, rules_of(packer["classes"]))
