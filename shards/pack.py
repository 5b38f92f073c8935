"""Pack pictures and masks into tar shards that webdataset and petseg read.

python -m shards.pack --synthetic 400 --out data/shards
python -m shards.pack --download --out data/shards
python -m shards.pack --source data/pictures --image-size-px 256 --out data/shards256 --resume
python -m shards.pack --images 'camvid/images/{split}/{key}.jpg' --masks 'camvid/masks/{split}/{key}.png' \\
    --classes auto --out data/camvid
"""

from __future__ import annotations

import runpy
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

from shards import encoding
from shards import manifest as contract
from shards.command import OK, printable, run_command, typed
from shards.command.flags import parse
from shards.labels.faults import Fault, Tally, mask_faults, set_faults, table_faults
from shards.manifest import DROPPED, SPLITS, Manifest
from shards.near_duplicates.note import NearDuplicates, save_near_duplicates
from shards.near_duplicates.picture_hash import Hashes, find_duplicates
from shards.packing import pictures, publish, resume
from shards.packing.options import AUTO, PackConfig
from shards.packing.origin import list_files, listed_samples
from shards.packing.plan import BuildOptions, Built, build_shards, plan_shards, without_twins
from shards.packing.survey import write_table
from shards.sources.listing import NAMED, Listed, Listing
from shards.terminal import progress

SHOWN_DAMAGED = 50  # names in the summary, where each picture is to be looked at


@dataclass(frozen=True)
class Outcome:
    """The set that is in place now, whether it was there before, and what is odd about it."""

    manifest: Manifest
    oddities: dict[str, list[str]]  # names by kind
    was_there: bool
    duplicates: NearDuplicates
    faults: tuple[Fault, ...] = ()  # of labels of classes


@dataclass(frozen=True)
class _Written:
    """All shards of a set, written but not in place yet."""

    manifest: Manifest
    oddities: dict[str, list[str]]
    hashes: Hashes
    labels: Tally


def pack(config: PackConfig) -> Outcome:
    """Pack a shard set into `config.out`; a set that is there already stays as it is.

    The set depends on the samples, image_size_px, samples_per_shard and seed alone, byte for byte.
    Raises ValueError for wrong use, Failure (naming the files) for pictures and masks that cannot be packed, and
    LabelFaults for masks that do not fit their class table. Killed or interrupted, it leaves the finished shards in a
    hidden folder, for a pack with `resume` to continue with.
    """
    with publish.staging_folder(config.out, resume=config.resume) as staging:
        existing = _existing_set(config)
        with listed_samples(config, staging) as listing:
            _refuse_other_table(existing, listing, config)
            written = _write_shards(listing, config, staging)
        manifest, duplicates = written.manifest, find_duplicates(written.hashes, written.manifest.hash)
        faults = (*mask_faults(written.labels), *set_faults(manifest, duplicates))
        if existing is not None and existing.hash == manifest.hash and publish.is_complete(config.out, existing):
            save_near_duplicates(duplicates, config.out)  # which an earlier version did not note
            return Outcome(existing, written.oddities, True, duplicates, faults)
        if existing is not None and existing.hash != manifest.hash and not config.overwrite:
            raise ValueError(_different(config, "its samples differ"))
        save_near_duplicates(duplicates, staging)
        contract.save_manifest(manifest, staging)
        return Outcome(publish.publish(staging, config.out), written.oddities, False, duplicates, faults)


def check(config: PackConfig) -> None:
    """Raise what `pack` would raise before it packs anything, except for what only a download shows."""
    existing = _existing_set(config) if config.out.exists() else None
    if config.source is not None or config.images:
        _refuse_other_table(existing, list_files(config), config)


def _refuse_other_table(existing: Manifest | None, listing: Listing, config: PackConfig) -> None:
    if existing is None or config.overwrite or existing.classes == listing.classes:
        return
    if existing.classes is None or listing.classes is None:
        raise ValueError(_different(config, "one has a class table, and the other has none"))
    faults = table_faults(listing.classes, existing.classes)
    raise ValueError(_different(config, "; ".join(map(str, faults)) or "its classes have other colours"))


def _settings(config: PackConfig) -> dict[str, Any]:
    return {
        "image_size_px": config.image_size_px,
        "jpeg_quality": encoding.JPEG_QUALITY,
        "samples_per_shard": config.samples_per_shard,
        "seed": config.seed,
    }


def _existing_set(config: PackConfig) -> Manifest | None:
    """The set in `out`, if any; raises ValueError at once if packing is bound to end in a different one."""
    if not (config.out / contract.MANIFEST_NAME).exists():
        if publish.shard_files(config.out) and not config.overwrite:
            raise ValueError(_different(config, "it has shards without a manifest"))
        return None
    try:
        existing = contract.load_manifest(config.out)
    except ValueError as error:
        if config.overwrite:
            return None
        raise ValueError(f"{error}, with --overwrite") from None
    for name, value in _settings(config).items():
        if existing.packer.get(name) != value and not config.overwrite:
            raise ValueError(_different(config, f"its {name} is {existing.packer.get(name)}, not {value}"))
    if (DROPPED in existing.packer) != config.drop_duplicates and not config.overwrite:
        raise ValueError(_different(config, f"it was packed with{'out' * config.drop_duplicates} --drop-duplicates"))
    return existing


def _different(config: PackConfig, why: str) -> str:
    return f"{config.out} holds a different shard set ({why}): --overwrite replaces it, or choose another --out"


def _write_shards(listing: Listing, config: PackConfig, staging: Path) -> _Written:
    """Write all shards and indices into `staging`; the manifest is not written yet."""
    samples, dropped = _chosen(listing, config)
    plan = plan_shards(samples, seed=config.seed, samples_per_shard=config.samples_per_shard)
    settings = _settings(config) | listing.settings | ({DROPPED: dropped} if config.drop_duplicates else {})
    mine = resume.identity(settings, _identity_of(listing, config), listing.format_version)
    num_classes = len(listing.classes) if listing.classes else 0
    finished = resume.reuse(staging, mine, plan, num_classes) if config.resume else {}
    resume.save_identity(staging, mine)
    with progress("packed", len(samples)) as advance:
        options = BuildOptions(
            folder=staging,
            image_size_px=config.image_size_px,
            num_workers=config.num_workers(len(samples)),
            advance=advance,
            max_corrupt=config.max_corrupt,
            rules=listing.rules,
        )
        built = list(build_shards(plan, options, finished))
    oddities: dict[str, list[str]] = defaultdict(list, {k: list(names) for k, names in listing.oddities.items()})
    oddities["near_duplicate"] += dropped
    for kind, key in (oddity for one in built for oddity in one.oddities):
        oddities[kind].append(key)
    labels, hashes = Tally(), dict[str, dict[str, str]]()
    for one in built:
        labels.merge(one.labels)
        hashes.setdefault(one.shard.split, {}).update(one.hashes)
    settings["oddities"] = {kind: len(oddities[kind]) for kind in pictures.ODDITIES if oddities.get(kind)}
    if listing.classes:
        settings["labels"] = labels.content()
    return _Written(_manifest_of(listing, samples, settings, built), oddities, hashes, labels)


def _manifest_of(
    listing: Listing, samples: Sequence[Listed], settings: dict[str, Any], built: Sequence[Built]
) -> Manifest:
    keys = {split: [sample.key for sample in samples if sample.split == split] for split in SPLITS}
    manifest = Manifest(
        source=listing.source,
        packer=settings,
        splits={split: contract.split_of_keys(keys[split]) for split in SPLITS if keys[split]},
        shards=tuple(one.shard for one in built),
        format_version=listing.format_version,
        classes=listing.classes,
    )
    return contract.with_hash(manifest)


def _chosen(listing: Listing, config: PackConfig) -> tuple[Sequence[Listed], list[str]]:
    """The samples to pack, and the keys of those that are left out as duplicates."""
    samples = listing.samples
    if not config.drop_duplicates:
        return samples, []
    num_workers = config.num_workers(len(samples))
    with progress("compared", len(samples)) as advance:
        return without_twins(samples, image_size_px=config.image_size_px, num_workers=num_workers, advance=advance)


def _identity_of(listing: Listing, config: PackConfig) -> dict[str, Any]:
    """Facts that identify the pictures of this pack, without reading them."""
    if config.synthetic and config.synthetic_folder is None:  # drawn aside: each pack draws the same ones afresh
        return {"synthetic": config.synthetic, "longer_side_px": config.synthetic_longer_side_px}
    return {"listing_sha256": resume.listing_digest(listing.samples)}


def _print_summary(outcome: Outcome, out: Path) -> None:
    from rich.table import Table

    from shards.terminal import Terminal

    manifest = outcome.manifest
    table = Table(title=f"{manifest.source.name} in {out}")
    for column in ("split", "samples", "shards", "MB"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in manifest.splits.items():
        shards = manifest.of_split(name)
        num_bytes = sum(shard.num_bytes for shard in shards)
        table.add_row(name, f"{split.num_samples:,}", str(len(shards)), f"{num_bytes / 1e6:,.1f}")
    console = Terminal()
    console.print(table)
    console.print(f"{'it was there already, ' if outcome.was_there else ''}hash {manifest.hash[:10]}")
    if outcome.duplicates.total:
        console.print(
            f"{outcome.duplicates.summary}: `{typed('-m', 'shards.duplicates', out)}` names them", soft_wrap=True
        )
    for fault in outcome.faults:
        console.print(f"fault of the labels: {fault}", soft_wrap=True)
    if not manifest.packer["oddities"]:
        return
    table = Table(title="oddities")
    for column in ("what", "count", "which"):
        table.add_column(column, justify="right" if column == "count" else "left", overflow="fold")
    for kind, count in manifest.packer["oddities"].items():
        most = SHOWN_DAMAGED if kind in (pictures.CORRUPT, pictures.SUSPECT) else NAMED
        names = ", ".join(outcome.oddities[kind][:most]) + (", ..." if count > most else "")
        table.add_row(f"{kind}: {pictures.ODDITIES[kind]}", str(count), names)
    console.print(table)
    if suspects := outcome.oddities.get(pictures.SUSPECT):
        keys = suspects[:SHOWN_DAMAGED]
        console.print(f"look at them: {typed('-m', 'shards.show', out, '--keys', *keys)}", soft_wrap=True)


def main(argv: Sequence[str]) -> int:

    config = parse(PackConfig, argv, __doc__)
    if config.check:
        check(config)
        return OK
    if config.classes == AUTO:
        table, sheet = write_table(config)
        sys.stdout.write(
            printable(f"{table}: name the classes, check them by {sheet}, then pack with --classes {table}\n")
        )
        return OK
    _print_summary(pack(config), config.out)
    return OK


if __name__ == "__main__":
    sys.exit(run_command(main))
