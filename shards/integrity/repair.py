"""Rebuilds the broken files of a shard set, byte for byte, from its pictures or from another copy.

The manifest says what each file must be. A file that cannot be made so is left as it is, and named.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.command import Failure
from shards.encoding import JPEG_QUALITY
from shards.files import fsync, open_regular
from shards.index import index_name, save_index
from shards.integrity.damage import samples_in_tar
from shards.manifest import DROPPED, MANIFEST_NAME, SPLITS, Manifest, Shard, load_manifest, split_of_keys
from shards.packing import publish
from shards.packing.origin import list_again
from shards.packing.plan import BuildOptions, ShardPlan, build_shards, first_lines, plan_shards, workers_for
from shards.terminal import progress

ASIDE = "repair"  # within the hidden folder that a pack uses, too
READ_BYTES = 1 << 20

logger = logging.getLogger(__name__)


def repair(folder: Path, source: Path, *, num_workers: int = 0) -> list[str]:
    """Replace the files of `folder` that do not match its manifest, and return their names; whole ones stay untouched.

    `source` is the folder of the pictures and masks, or another copy of the set. 0 workers means as many as the samples
    are worth.
    Raises ValueError if `source` is neither, or another set; Failure that names the shards that stay broken.
    """
    manifest = _load_own_manifest(folder, source)
    if not (source / MANIFEST_NAME).exists() and manifest.packer.get("foreign"):
        raise ValueError(f"{folder} was packed elsewhere: --repair it from another copy of it, not from pictures")
    with publish.locked(folder) as staging, _aside(staging) as aside:
        broken = {shard: names for shard in manifest.shards if (names := _broken_files(shard, folder))}
        if not broken:
            return []
        if (source / MANIFEST_NAME).exists():
            fetch = _copier(manifest, source, aside)
        else:
            fetch = _packer(manifest, folder, source, aside, num_workers)
        return _replace(broken, fetch, folder, aside)


def _load_own_manifest(folder: Path, source: Path) -> Manifest:
    try:
        return load_manifest(folder)
    except ValueError:
        what = "is damaged" if (folder / MANIFEST_NAME).exists() else "is missing"
        try:
            load_manifest(source)
            advice = f"if {source} is a copy of this set, copy its {MANIFEST_NAME} to {folder} and repair again"
        except ValueError:
            advice = f"copy it to {folder} from another copy of the set"
        raise ValueError(f"{folder / MANIFEST_NAME} {what}, and --repair goes by it: {advice}") from None


@contextmanager
def _aside(staging: Path) -> Iterator[Path]:
    """An empty folder for files that are not proven yet; what a killed pack left beside it stays for --resume."""
    aside = staging / ASIDE
    if aside.is_symlink():
        aside.unlink()
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside)
        if {path.name for path in staging.iterdir()} == {publish.LOCK}:
            shutil.rmtree(staging)


def _wanted(shard: Shard) -> dict[str, str]:
    """sha256 by name of a shard's two files, as the manifest has them."""
    return {shard.name: shard.sha256, index_name(shard.name): shard.index_sha256}


def _broken_files(shard: Shard, folder: Path) -> list[str]:
    return [name for name, sha256 in _wanted(shard).items() if _sha256_of(folder / name) != sha256]


def _sha256_of(path: Path) -> str:
    """Empty for a file that is not there or cannot be read."""
    try:
        with open_regular(path, follow=False) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            logger.warning("%s cannot be read (%s)", path, error)
        return ""


def _replace(
    broken: dict[Shard, list[str]], fetch: Callable[[Shard, list[str]], str], folder: Path, aside: Path
) -> list[str]:
    """Fetch each shard's files into `aside`, compare, and move them into place; continue if one fails."""
    replaced, problems = [], []
    for shard, names in broken.items():
        try:
            advice = fetch(shard, names)
        except Failure as failure:
            problems.append(f"{shard.name}: {failure}")
            continue
        got = {name: _sha256_of(aside / name) for name in names}
        if wrong := [name for name in names if got[name] != _wanted(shard)[name]]:
            problems += [_mismatch(name, _wanted(shard)[name], got[name], advice) for name in wrong]
            continue
        for name in names:
            _put(aside / name, folder / name)
            replaced.append(name)
        fsync(folder)
        logger.info("repaired %s", ", ".join(names))
    if problems:
        done = f"repaired {', '.join(replaced)}, but not these" if replaced else "nothing was repaired"
        raise Failure(f"{done}:\n  " + "\n  ".join(first_lines(problems)))
    return replaced


def _put(aside: Path, final: Path) -> None:
    """Move a proven file into place; a link or a FIFO there is replaced itself, and never what it points to."""
    try:
        aside.replace(final)
    except IsADirectoryError:
        raise Failure(f"{final} is a folder, where a file of the set belongs: move it away, and repair again") from None


def _mismatch(name: str, wanted: str, got: str, advice: str) -> str:
    return f"{name}: sha256 {wanted} is wanted, {got or 'nothing'} is what came of it; {advice}"


def _copier(manifest: Manifest, source: Path, aside: Path) -> Callable[[Shard, list[str]], str]:
    """Copy files of another copy of the set. Raises ValueError if it is a copy of another set."""
    theirs = load_manifest(source)
    if theirs.hash != manifest.hash:
        raise ValueError(f"{source} is another shard set: hash {theirs.hash[:10]}, not {manifest.hash[:10]}")

    def copy(shard: Shard, names: list[str]) -> str:
        for name in names:
            try:
                _copy_whole(source / name, aside / name)
            except OSError as error:
                if isinstance(error, FileNotFoundError):
                    raise Failure(f"{source / name} is missing too: repair from another copy") from None
                raise Failure(f"{source / name} cannot be copied ({error})") from None
        return f"the file in {source} is broken too: repair that copy first, or name a third one"

    return copy


def _copy_whole(path: Path, aside: Path) -> None:
    with open_regular(path, follow=False) as source, aside.open("wb") as target:
        shutil.copyfileobj(source, target, READ_BYTES)
        target.flush()
        os.fsync(target.fileno())


def _packer(
    manifest: Manifest, folder: Path, source: Path, aside: Path, num_workers: int
) -> Callable[[Shard, list[str]], str]:
    """Packs the samples of a shard again. Raises ValueError if `source` has not the samples of the set."""
    plan = {planned.name: planned for planned in _plan_again(manifest, source)}

    def build(shard: Shard, names: list[str]) -> str:
        if names == [index_name(shard.name)]:  # a whole tar tells its index, whatever the pictures are now
            save_index(samples_in_tar(folder / shard.name), aside, shard.name)
            return "the tar is whole, but its index is not what this petseg writes: repair from another copy of the set"
        planned = plan[shard.name]
        workers = num_workers or workers_for(len(planned.samples))
        with progress(f"packed for {shard.name}", len(planned.samples)) as advance:
            options = BuildOptions(aside, manifest.packer["image_size_px"], workers, advance)
            list(build_shards([planned], options))
        return (
            "the pictures or lists are not those of the set, or Pillow, numpy or simplejpeg is another version: "
            "repair from another copy of the set"
        )

    return build


def _plan_again(manifest: Manifest, source: Path) -> list[ShardPlan]:
    packer = manifest.packer
    if packer.get("jpeg_quality") != JPEG_QUALITY:
        raise ValueError(f"the set has JPEG quality {packer.get('jpeg_quality')}, this petseg packs {JPEG_QUALITY}")
    dropped = frozenset(packer.get(DROPPED, ()))
    try:
        samples = [sample for sample in list_again(packer, source).samples if sample.key not in dropped]
    except ValueError as error:
        raise ValueError(
            f"--repair {source} is neither the folder that the set was packed from nor a copy of the set ({error})"
        ) from None
    for split in SPLITS:
        actual = split_of_keys(sample.key for sample in samples if sample.split == split)
        expected = manifest.splits.get(split, split_of_keys([]))
        if actual != expected:
            raise ValueError(
                f"{source} has other samples than the set: split {split} has {actual.num_samples} with key XOR "
                f"{actual.key_xor}, the manifest says {expected.num_samples} with {expected.key_xor}"
            )
    with suppress(KeyError, TypeError):
        return plan_shards(samples, seed=packer["seed"], samples_per_shard=packer["samples_per_shard"])
    raise ValueError("the manifest does not say how the set was packed: repair from another copy of the set")
