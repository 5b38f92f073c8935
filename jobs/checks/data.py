"""Checks of what is trained on and with which settings: the shard set, its splits, and the configs of the sweep."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from jobs.checks.setup import Finding, NotChecked, Setup, Status
from petseg.config import RunConfig
from petseg.config.values import trial_id
from petseg.data.mixing import mixing_of
from petseg.data.store import LocalStore, Store, folder_of
from shards.command import Failure, typed
from shards.index import Sample
from shards.manifest import split_of_keys
from shards.near_duplicates.note import load_near_duplicates

STATUSES = ("ok", "warn", "FAIL")  # from harmless to worst
NAMED = 3  # examples that a line gives
VERIFY_TIMEOUT_S = 24 * 3600


def check_shards(setup: Setup) -> Finding:
    """Each manifest can be read, and each shard and index is there, as large as it says."""
    return merged([_check_shards(store, setup.command.deep) for store in setup.stores])


def _check_shards(store: Store, deep: bool) -> Finding:
    what, manifest, remote = "shards", store.manifest, not isinstance(store, LocalStore)
    size = sum(shard.num_bytes for shard in manifest.shards) / 1e9
    shown = f"{len(manifest.shards)} shards, {size:.2f} GB, set {manifest.hash[:10]}"
    advice = typed("-m", "shards.verify", store.location, *([] if remote else ["--repair", "ANOTHER-COPY"]))
    problems = [] if remote else _tar_problems(store, folder_of(store.location))
    problems += _index_problems(store)
    if problems:
        return Finding("FAIL", what, f"{listed(problems)} ({shown})", advice)
    if deep:
        return _deep(store, remote, shown)
    read = "indices fetched, tars not (--deep fetches them)" if remote else "all there (--deep reads each byte)"
    return Finding("ok", what, f"{shown}: {read}")


def check_splits(setup: Setup) -> Finding:
    """No key is in two splits or twice in one, and counts and XOR of the keys are the manifest's."""
    return merged([_check_splits(store, setup.config.train.test) for store in setup.stores])


def merged(findings: Sequence[Finding]) -> Finding:
    """Merge one check's findings about several shard sets: the worst status, and each set's detail."""
    worst = max(findings, key=lambda finding: STATUSES.index(finding.status))
    details = "; ".join(dict.fromkeys(finding.detail for finding in findings))
    return replace(worst, detail=details)


def _check_splits(store: Store, test: bool) -> Finding:
    what = "splits"
    splits_of: dict[str, list[str]] = defaultdict(list)
    pictures: dict[tuple[int, int], set[str]] = defaultdict(set)  # (bytes, CRC-32) -> splits
    problems = []
    for split, expected in store.manifest.splits.items():
        samples = [sample for shard in store.manifest.of_split(split) for sample in store.index(shard.name)]
        actual = split_of_keys(sample.key for sample in samples)
        if actual != expected:
            problems.append(f"{split} has {actual}, its manifest says {expected}")
        for sample in samples:
            splits_of[sample.key].append(split)
            pictures[_fingerprint(sample)].add(split)
    twice = {key: splits for key, splits in splits_of.items() if len(splits) > 1}
    problems += [f"{key} is in {' and '.join(splits)}" for key, splits in twice.items()]
    if problems:
        return Finding("FAIL", what, listed(problems), "pack the set anew, with each picture in one split")
    counts = ", ".join(f"{split.num_samples} {name}" for name, split in store.manifest.splits.items())
    if missing := [name for name in ("train", "val") if name not in store.manifest.splits]:
        return Finding("FAIL", what, f"no split {' and '.join(missing)} (there are {counts})", "pack the set anew")
    if "test" not in store.manifest.splits and test:
        return Finding("warn", what, f"{counts}: no split test", "trials will be measured on val only")
    if shared := sum(len(splits) > 1 for splits in pictures.values()):
        detail = f"{counts}, no key twice, but {shared} pictures are in two splits under different names"
        return Finding("warn", what, detail, "look at them: what is tested should not be trained on")
    return _check_duplicates(store, f"{counts}; no key and no picture in two of them")


def _check_duplicates(store: Store, shown: str) -> Finding:
    """Whether near-identical pictures lie in two splits, by the note that packing leaves beside the set."""
    what = "splits"
    if not isinstance(store, LocalStore):
        return Finding("ok", what, f"{shown}; near-identical ones are not looked for in a remote set")
    look = typed("-m", "shards.duplicates", store.location)
    try:
        duplicates = load_near_duplicates(folder_of(store.location), store.manifest.hash)
    except ValueError as error:
        return Finding("warn", what, f"{shown}; {error}", look)
    if duplicates is None:
        return Finding("warn", what, f"{shown}; nobody has looked for near-identical ones", look)
    if not duplicates.total:
        return Finding("ok", what, f"{shown}; {duplicates.summary}")
    advice = f"{look} names them; `python -m shards.pack ... --drop-duplicates` keeps them out of train"
    return Finding("warn", what, f"{shown}; {duplicates.summary}", advice)


def check_config(setup: Setup) -> Finding:
    """Each cell is a valid config, the batch can be shared out, and this machine's GPU has the precision."""
    what, configs = "config", [cell.config for cell in setup.cells]
    world_size = setup.command.resources.processes
    shown = f"{len(configs)} cells, {world_size} process{'es' * (world_size > 1)} each"
    doubts = [*_batch_doubts(configs, world_size), *_precision_doubts(configs), *_trial_doubts(configs, setup)]
    doubts += _size_doubts(configs, setup)
    if not doubts:
        return Finding("ok", what, shown)
    status: Status = "FAIL" if any(doubt.status == "FAIL" for doubt in doubts) else "warn"
    chosen = [doubt for doubt in doubts if doubt.status == status]
    detail, advice = ("; ".join(part) for part in zip(*((d.detail, d.advice) for d in chosen), strict=True))
    return Finding(status, what, f"{detail} ({shown})", advice)


def check_mixing(setup: Setup) -> Finding:
    """Whether the batches of class-sorted shards have enough classes.

    Judged by the order of the first epoch, for each shard set, shuffle window and batch size of the sweep.
    """
    what, poor = "mixing", []
    for config in setup.distinct(_mixing_key):
        data, train = config.data, config.train
        mixing = mixing_of(setup.store_of(config), data.shuffle_window_shards, train.batch_size, train.seed)
        if mixing and mixing.is_poor:
            poor.append(str(mixing))
    if poor:
        return Finding("warn", what, poor[0], "raise data.shuffle_window_shards, or pack the pictures with petseg")
    return Finding("ok", what, "batches have as many classes as a shuffle of all samples gives, or none are known")


def _mixing_key(config: RunConfig) -> tuple[str, int, int]:
    return config.data.shards, config.data.shuffle_window_shards, config.train.batch_size


def _batch_doubts(configs: Sequence[RunConfig], world_size: int) -> Iterator[Finding]:
    for train in (config.train for config in configs):
        if train.batch_size < world_size:
            problem = f"train.batch_size = {train.batch_size} is less than {world_size} processes"
            yield Finding("FAIL", "config", problem, "raise it, or ask for fewer --nodes or --gpus")
            return
        micro_batches = train.accumulation_steps or 1  # 0 = settled by the device's memory, to a divisor of the batch
        if train.batch_size % (world_size * micro_batches):
            parts = f"{world_size} processes x {micro_batches} micro-batches"
            problem = f"train.batch_size = {train.batch_size} is shared unevenly by {parts}"
            yield Finding("warn", "config", problem, "make it a multiple of them")
            return


def _precision_doubts(configs: Sequence[RunConfig]) -> Iterator[Finding]:
    import torch

    wanted = {config.train.mixed_precision for config in configs}
    advice = "set train.mixed_precision"
    if not torch.cuda.is_available():
        if "fp16" in wanted:
            problem = "train.mixed_precision = fp16 needs a GPU, and there is none here to try it"
            yield Finding("warn", "config", problem, advice + ", or run the doctor on a GPU node")
    elif "bf16" in wanted and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding("FAIL", "config", f"{torch.cuda.get_device_name()} cannot compute in bf16", advice)


def _trial_doubts(configs: Sequence[RunConfig], setup: Setup) -> Iterator[Finding]:
    hashes = dict.fromkeys((config.data.shards for config in configs), "")
    if len(hashes) > 1:  # they decide then which cells are the same trial
        try:
            hashes = {config.data.shards: setup.store_of(config).manifest.hash for config in configs}
        except NotChecked:
            hashes = {location: location for location in hashes}
    if (identities := len({trial_id(config, hashes[config.data.shards]) for config in configs})) < len(configs):
        problem = f"{len(configs)} cells are only {identities} trials"
        yield Finding("warn", "config", problem, "leave out the axis that changes no number")


def _size_doubts(configs: Sequence[RunConfig], setup: Setup) -> Iterator[Finding]:
    sizes: dict[int, int] = {}  # packed -> the largest wanted
    fits: dict[str, int] = {}  # that want pictures of their own shape -> packed squashed to
    try:
        for config in configs:
            packed = int(setup.store_of(config).manifest.packer.get("image_size_px", 0))
            if config.data.fit == "squash":
                sizes[packed] = max(sizes.get(packed, 0), *config.data.size_px)
            elif packed:
                fits[config.data.fit] = packed
    except NotChecked:
        return
    for packed, largest in sizes.items():
        if 0 < packed < largest:
            problem = f"pictures packed at {packed} px would be enlarged to data.image_size_px = {largest}"
            yield Finding("warn", "config", problem, "pack them larger")
    for fit, packed in fits.items():
        problem = f"pictures were squashed to {packed} px when they were packed, which data.fit = {fit} cannot undo"
        yield Finding("warn", "config", problem, "pack them with --image-size-px 0")


def listed(problems: Sequence[str]) -> str:
    """The first few problems, and how many more there are."""
    more = len(problems) - NAMED
    return "; ".join(problems[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def _tar_problems(store: Store, folder: Path) -> list[str]:
    problems = []
    for shard in store.manifest.shards:
        path = folder / shard.name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif (size := path.stat().st_size) != shard.num_bytes:
            problems.append(f"{path} has {size} bytes, the manifest says {shard.num_bytes}")
    return problems


def _index_problems(store: Store) -> list[str]:
    problems = []
    for shard in store.manifest.shards:
        try:
            store.index(shard.name)  # compares its sha256
        except (ValueError, OSError, Failure) as error:
            problems.append(str(error))
    return problems


def _deep(store: Store, remote: bool, shown: str) -> Finding:
    """Each byte against its sha256; a remote set's tars are fetched for that."""
    if remote:
        for shard in store.manifest.shards:
            os.close(store.open(shard.name))
        return Finding("ok", "shards", f"{shown}: each fetched, sha256 as in the manifest")
    command = [sys.executable, "-m", "shards.verify", str(folder_of(store.location))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=VERIFY_TIMEOUT_S, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        return Finding("FAIL", "shards", f"{lines[0].strip() if lines else 'damaged'} ({shown})", " ".join(command[1:]))
    return Finding("ok", "shards", f"{shown}: each byte read, each sample decoded")


def _fingerprint(sample: Sample) -> tuple[int, int]:
    return sample.jpg.num_bytes, sample.jpg.crc32
