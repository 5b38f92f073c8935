"""Prove that a shard set is whole, or name the shards and samples that are not.

python -m shards.verify data/shards
python -m shards.verify data/shards --repair data/pictures
python -m shards.verify elsewhere/shards --index --mask-suffix seg.png

Exit code 0 if it is whole, 1 if anything is wrong.
"""

from __future__ import annotations

import runpy
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

from shards.command import OK, printable, run_command
from shards.command.flags import parse
from shards.foreign.index import ForeignConfig, index_folder
from shards.index import KEY_PATTERN, index_name
from shards.integrity.damage import Damage, Report, check_shard
from shards.integrity.repair import repair
from shards.layout import layout_of
from shards.manifest import MANIFEST_NAME, THREE_VALUES, Manifest, Shard, load_manifest, split_of_keys
from shards.pool import default_workers, ordered_map
from shards.terminal import progress

DAMAGED = 1
MIN_BYTES_FOR_WORKERS = 32_000_000  # below, starting processes takes longer than the work


@dataclass(frozen=True)
class VerifyConfig:
    """Check each byte of a shard set against its manifest and indices, and decode each sample.

    --repair puts broken shards back first; --index makes a shard set of tars that were packed elsewhere.
    """

    folder: Path
    """Folder of the shard set."""
    decode: bool = True
    """Decode pictures and masks too; without it, bytes are compared only (several times faster)."""
    workers: int = 0
    """Processes; 0 means one per core."""
    show: int = 20
    """Findings listed per shard; the rest is counted."""
    repair: Path | None = None
    """Rebuild broken shards byte for byte: from the folder of the pictures, or from another copy of the set."""
    index: bool = False
    """Index webdataset shards that were packed elsewhere, and write their manifest.json; the tars are not changed."""
    image_suffix: str = "jpg"
    """With --index: what follows the key's dot in the name of a picture; jpg means jpeg, too."""
    mask_suffix: str = "png"
    """With --index: what follows the key's dot in the name of a mask, such as seg.png."""
    trimap: dict[str, int] = field(default_factory=lambda: dict(THREE_VALUES))
    """With --index: what the values of a mask mean."""
    split: Literal["train", "val", "test"] | None = None
    """With --index: the split of all shards; by default their names begin with it."""

    def __post_init__(self) -> None:
        if self.index and self.repair is not None:
            raise ValueError("--index and --repair: do one after the other")
        foreign = self.foreign()  # which checks them
        if foreign != ForeignConfig() and not self.index:
            raise ValueError("--image-suffix, --mask-suffix, --trimap and --split need --index")

    def foreign(self) -> ForeignConfig:
        return ForeignConfig(self.image_suffix, self.mask_suffix, self.trimap, self.split)


def verify(folder: Path, *, decode: bool = True, num_workers: int = 1) -> list[Damage]:
    """All that is wrong with a shard set; an empty list is the proof that it is whole.

    Raises ValueError if there is no shard set.
    """
    try:
        manifest = load_manifest(folder)
    except ValueError as error:
        if not (folder / MANIFEST_NAME).exists():
            raise
        return [Damage(MANIFEST_NAME, "", None, str(error))]
    check = partial(check_shard, folder=folder, decode=decode, layout=layout_of(manifest))
    reports = []
    with progress("verified", len(manifest.shards)) as advance:
        for report in ordered_map(check, manifest.shards, num_workers=num_workers):
            reports.append(report)
            advance(1)
    findings = [finding for report in reports for finding in report.findings]
    return findings + _check_set(manifest, reports) + _check_strays(folder, manifest)


def _check_set(manifest: Manifest, reports: Sequence[Report]) -> list[Damage]:
    """Find what only all shards together show: duplicate keys, and splits whose keys are not those that were packed."""
    findings = []
    places: dict[str, list[Shard]] = defaultdict(list)
    for report in reports:
        for key in report.keys:
            places[key].append(report.shard)
            if not KEY_PATTERN.fullmatch(key):
                findings.append(Damage(report.shard.name, key, None, f"the key must match {KEY_PATTERN.pattern}"))
    for key, shards in places.items():
        if len(shards) > 1:
            names = ", ".join(shard.name for shard in shards)
            findings.append(Damage(shards[0].name, key, None, f"the key is there {len(shards)} times: {names}"))
    for name, split in manifest.splits.items():
        keys = [key for report in reports if report.shard.split == name for key in report.keys]
        actual = split_of_keys(keys)
        if actual != split:
            problem = (
                f"split {name} has {actual.num_samples} samples with key XOR {actual.key_xor}, "
                f"the manifest says {split.num_samples} with {split.key_xor}"
            )
            findings.append(Damage(MANIFEST_NAME, "", None, problem))
    return findings


def _check_strays(folder: Path, manifest: Manifest) -> list[Damage]:
    ours = {name for shard in manifest.shards for name in (shard.name, index_name(shard.name))}
    names = sorted(path.name for pattern in ("*.tar", "*.index.json") for path in folder.glob(pattern))
    return [Damage(name, "", None, "is not in the manifest") for name in names if name not in ours]


def _print_findings(findings: list[Damage], show: int) -> None:
    from rich.table import Table

    from shards.terminal import Terminal

    table = Table(title=f"{len(findings)} findings")
    for column in ("file", "sample", "byte", "what is wrong"):
        table.add_column(column, overflow="fold", justify="right" if column == "byte" else "left")
    for shard, group in groupby(findings, key=lambda finding: finding.shard):
        of_shard = list(group)
        for finding in of_shard[:show]:
            place = "" if finding.offset is None else str(finding.offset)
            table.add_row(shard, finding.key, place, finding.problem)
        if len(of_shard) > show:
            table.add_row(shard, "", "", f"and {len(of_shard) - show} more")
    Terminal().print(table)


def main(argv: Sequence[str]) -> int:

    config = parse(VerifyConfig, argv, __doc__, positional=True)
    num_bytes = sum(path.lstat().st_size for path in config.folder.glob("*.tar"))
    automatic = default_workers() if num_bytes >= MIN_BYTES_FOR_WORKERS else 1
    if config.index:
        return _index(config, automatic)
    repaired = repair(config.folder, config.repair, num_workers=config.workers) if config.repair else []
    findings = verify(config.folder, decode=config.decode, num_workers=config.workers or automatic)
    if findings:
        _print_findings(findings, max(0, config.show))
    else:
        sys.stdout.write(f"whole: {_summary(load_manifest(config.folder))}\n")
    if config.repair:
        sys.stdout.write(f"rebuilt: {', '.join(map(printable, repaired)) or 'nothing, all shards were whole'}\n")
    return DAMAGED if findings else OK


def _index(config: VerifyConfig, automatic: int) -> int:
    indexed = index_folder(config.folder, config.foreign(), num_workers=config.workers or automatic)
    sys.stdout.write(f"indexed: {_summary(indexed.manifest)}\n")
    left_out = indexed.left_out
    if left_out.members:
        counts = ", ".join(f"{count:,} {what}" for what, count in sorted(left_out.members.items()))
        sys.stdout.write(f"left out: {counts}\n")
    if left_out.samples.count:
        lines = "\n  ".join(left_out.samples.lines(max(0, config.show)))
        sys.stdout.write(f"left out, {left_out.samples.count:,} without picture and mask:\n  {lines}\n")
    return OK


def _summary(manifest: Manifest) -> str:
    counts = ", ".join(f"{split.num_samples} {name}" for name, split in manifest.splits.items())
    return f"{counts} samples in {len(manifest.shards)} shards, hash {manifest.hash[:10]}"


if __name__ == "__main__":
    sys.exit(run_command(main))
