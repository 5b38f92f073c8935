"""Pack pictures and trimaps into tar shards that webdataset and petseg read.

python -m shards.pack --synthetic 400 --out data/shards
python -m shards.pack --download --out data/shards
python -m shards.pack --source data/oxford/oxford-iiit-pet --image-size-px 256 --out data/shards256 --resume
"""

from __future__ import annotations

import runpy
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

from shards import encoding
from shards import manifest as contract
from shards.command import OK, parse, run_command, typed
from shards.duplicates_note import NearDuplicates, save_near_duplicates
from shards.manifest import DROPPED, SPLITS, Manifest
from shards.packing import pictures, publish, resume
from shards.packing.plan import build_shards, plan_shards, without_twins, workers_for
from shards.picture_hash import Hashes, find_duplicates
from shards.pool import progress
from shards.sources import oxford, synthetic

LOWEST = {"samples_per_shard": 1, "image_size_px": 0, "workers": 0, "seed": 0, "max_corrupt": 0}
SHOWN_DAMAGED = 50  # names in the summary, where each picture is to be looked at


@dataclass(frozen=True)
class PackConfig:
    """Pack pictures and trimaps into a shard set. Name exactly one of --source, --download, --synthetic."""

    out: Path = Path("data/shards")
    """Folder of the shard set."""
    source: Path | None = None
    """Folder in the Oxford-IIIT Pet layout, or its parent."""
    download: bool = False
    """Fetch Oxford-IIIT Pet (0.8 GB) with torchvision, unless it is there."""
    download_root: Path = Path("data/oxford")
    """Where --download keeps the data set."""
    synthetic: int = 0
    """Number of drawn pets: needs no download."""
    synthetic_folder: Path | None = None
    """Keep the drawn pets here, in the data set's layout; by default they are drawn aside and removed."""
    synthetic_longer_side_px: int = 200
    """Longer side of the largest drawn picture."""
    seed: int = 0
    """Of the order of the samples within the shards, and of the drawn pets."""
    samples_per_shard: int = 256
    """At most so many samples in a shard; the shards of a split differ by one sample at most."""
    image_size_px: int = 0
    """Squash pictures (antialiased, JPEG quality 95) and trimaps (nearest) to N x N; 0 keeps the original bytes."""
    workers: int = 0
    """Processes; 0 means one per core, and one alone for a handful of samples."""
    max_corrupt: int = 10
    """How many pictures may be damaged, so that they decode with a warning; more stop the pack, which names them."""
    drop_duplicates: bool = False
    """Leave out of train each picture that is nearly the same as one of val or test, and name it in the summary; all
    pictures are read twice. Without it such pairs are only counted."""
    overwrite: bool = False
    """Replace a different shard set in --out."""
    resume: bool = False
    """Go on with a pack that was killed: shards that it had finished, and that are whole, are used again."""
    check: bool = False
    """Only see whether the pack could begin, by what lies in --source and --out, and write nothing."""

    def __post_init__(self) -> None:
        given = [self.source is not None, self.download, self.synthetic != 0]
        if sum(given) != 1:
            raise ValueError(f"name exactly one of --source DIR, --download, --synthetic N ({sum(given)} given)")
        if self.synthetic_folder is not None and not self.synthetic:
            raise ValueError("--synthetic-folder is where drawn pets are kept: it needs --synthetic N")
        for name, lowest in LOWEST.items():
            if getattr(self, name) < lowest:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {getattr(self, name)}, but must be at least {lowest}")

    def num_workers(self, num_samples: int) -> int:
        return self.workers or workers_for(num_samples)


@dataclass(frozen=True)
class Outcome:
    """The set that is in place now, the names behind each kind of oddity, and whether it was there before."""

    manifest: Manifest
    oddities: dict[str, list[str]]
    was_there: bool
    duplicates: NearDuplicates


def pack(config: PackConfig) -> Outcome:
    """Pack a shard set into `config.out`; a set that is there already stays as it is.

    The set depends on the samples, image_size_px, samples_per_shard and seed alone, byte for byte.
    Raises ValueError for wrong use, Failure (naming the files) for pictures and trimaps that cannot be packed. Killed
    or interrupted, it leaves the finished shards in a hidden folder, for a pack with `resume` to go on with.
    """
    with publish.staging_folder(config.out, resume=config.resume) as staging:
        existing = _existing_set(config)
        with _pet_folder(config, staging) as folder:
            manifest, oddities, hashes = _write_shards(folder, config, staging)
        duplicates = find_duplicates(hashes, manifest.hash)
        if existing is not None and existing.hash == manifest.hash and publish.is_complete(config.out, existing):
            save_near_duplicates(duplicates, config.out)  # which an earlier version did not note
            return Outcome(existing, oddities, True, duplicates)
        if existing is not None and existing.hash != manifest.hash and not config.overwrite:
            raise ValueError(_different(config, "its samples differ"))
        save_near_duplicates(duplicates, staging)
        contract.save_manifest(manifest, staging)
        return Outcome(publish.publish(staging, config.out), oddities, False, duplicates)


def check(config: PackConfig) -> None:
    """Raises what `pack` would raise before it packs anything, but for what only a download shows."""
    if config.out.exists():
        _existing_set(config)
    if config.source is not None:
        oxford.read_folder(config.source)


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


@contextmanager
def _pet_folder(config: PackConfig, staging: Path) -> Iterator[oxford.PetFolder]:
    if config.synthetic:
        folder = config.synthetic_folder or staging / "drawn"
        synthetic.draw_folder(
            folder,
            num_pets=config.synthetic,
            seed=config.seed,
            longer_side_px=config.synthetic_longer_side_px,
            num_workers=config.num_workers(config.synthetic),
        )
        yield oxford.read_folder(folder)
    elif config.download:
        yield oxford.read_folder(oxford.download(config.download_root))
    else:
        assert config.source is not None
        yield oxford.read_folder(config.source)


def _write_shards(
    folder: oxford.PetFolder, config: PackConfig, staging: Path
) -> tuple[Manifest, dict[str, list[str]], Hashes]:
    """Write all shards and indices into `staging`.

    Returns the manifest, which is not written yet, the oddities' names, and the hashes of the pictures.
    """
    pets, dropped = _chosen(folder, config)
    plan = plan_shards(pets, seed=config.seed, samples_per_shard=config.samples_per_shard)
    settings = _settings(config) | ({DROPPED: dropped} if config.drop_duplicates else {})
    mine = resume.identity(settings, _listing(folder, config))
    finished = resume.reuse(staging, mine, plan) if config.resume else {}
    resume.save_identity(staging, mine)
    num_samples = len(pets)
    with progress("packed", num_samples) as advance:
        built = list(
            build_shards(
                plan,
                staging,
                image_size_px=config.image_size_px,
                num_workers=config.num_workers(num_samples),
                advance=advance,
                finished=finished,
                max_corrupt=config.max_corrupt,
            )
        )
    oddities: dict[str, list[str]] = defaultdict(list, {k: list(names) for k, names in folder.oddities.items()})
    oddities["near_duplicate"] += dropped
    for kind, key in (oddity for one in built for oddity in one.oddities):
        oddities[kind].append(key)
    counts = {kind: len(oddities[kind]) for kind in pictures.ODDITIES if oddities.get(kind)}
    keys = {split: [pet.key for pet in pets if pet.split == split] for split in SPLITS}
    manifest = Manifest(
        source=folder.source,
        packer={**settings, "oddities": counts},
        splits={split: contract.split_of_keys(keys[split]) for split in SPLITS if keys[split]},
        shards=tuple(one.shard for one in built),
    )
    hashes: dict[str, dict[str, str]] = {split: {} for split in manifest.splits}
    for one in built:
        hashes[one.shard.split].update(one.hashes)
    return contract.with_hash(manifest), oddities, hashes


def _chosen(folder: oxford.PetFolder, config: PackConfig) -> tuple[Sequence[oxford.Pet], list[str]]:
    """The samples to pack, and the keys of those that are left out as duplicates."""
    if not config.drop_duplicates:
        return folder.pets, []
    num_workers = config.num_workers(len(folder.pets))
    with progress("compared", len(folder.pets)) as advance:
        return without_twins(folder.pets, image_size_px=config.image_size_px, num_workers=num_workers, advance=advance)


def _listing(folder: oxford.PetFolder, config: PackConfig) -> dict[str, Any]:
    """What tells this pack's pictures from others, without reading them."""
    if config.synthetic and config.synthetic_folder is None:  # drawn aside: each pack draws the same ones afresh
        return {"synthetic": config.synthetic, "longer_side_px": config.synthetic_longer_side_px}
    return {"listing_sha256": resume.listing_digest(folder.pets)}


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
    if not manifest.packer["oddities"]:
        return
    table = Table(title="oddities")
    for column in ("what", "count", "which"):
        table.add_column(column, justify="right" if column == "count" else "left", overflow="fold")
    for kind, count in manifest.packer["oddities"].items():
        most = SHOWN_DAMAGED if kind in (pictures.CORRUPT, pictures.SUSPECT) else oxford.NAMED
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
    _print_summary(pack(config), config.out)
    return OK


if __name__ == "__main__":
    sys.exit(run_command(main))
