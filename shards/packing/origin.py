"""The samples that a pack is asked for, whatever their source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.labels.rules import LabelRules, load_rules
from shards.packing.options import PackConfig
from shards.sources import coco, patterns
from shards.sources.listing import Listing
from shards.sources.pets import oxford, synthetic


@contextmanager
def listed_samples(config: PackConfig, staging: Path) -> Iterator[Listing]:
    """The samples to pack. Drawn pictures lie in `staging` while the context lasts. Raises as the sources do."""
    if config.synthetic:
        folder = config.synthetic_folder or staging / "drawn"
        synthetic.draw_folder(
            folder,
            number=config.synthetic,
            seed=config.seed,
            longer_side_px=config.synthetic_longer_side_px,
            num_workers=config.num_workers(config.synthetic),
        )
        yield oxford.read_folder(folder)
    elif config.download:
        yield oxford.read_folder(oxford.download(config.download_root))
    else:
        yield list_files(config)


def list_files(config: PackConfig) -> Listing:
    """The samples of a source that is there already; raises as the sources do."""
    if config.source is not None:
        return oxford.read_folder(config.source)
    rules = rules_of_config(config)
    if config.coco:
        return coco.read_coco(config.coco_options(), rules)
    assert rules is not None
    return patterns.read_pairs(config.pairs(), rules)


def rules_of_config(config: PackConfig) -> LabelRules | None:
    """The class table that is named; None where the source has its own labels, as COCO's categories."""
    return load_rules(Path(config.classes)) if config.classes else None


def list_again(packer: Mapping[str, Any], source: Path) -> Listing:
    """The samples that a set was packed from, by its manifest's packer; `source` is the folder that holds them.

    Raises ValueError if they are not there or the manifest does not say how they were found.
    """
    try:
        if "coco" in packer:
            return coco.coco_again(packer, source)
        if "pairs" in packer:
            return patterns.pairs_again(packer, source)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the manifest does not say how the set was packed ({error!r})") from None
    return oxford.read_folder(source)
