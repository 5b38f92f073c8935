"""Checks of what is learnt: the target fits the shard set, and each class has pictures to learn from."""

from __future__ import annotations

from jobs.checks.data import listed, merged
from jobs.checks.setup import Finding, Setup
from petseg.config import RunConfig
from petseg.data.store import LocalStore, Store, folder_of
from petseg.targets.class_weights import class_weights
from petseg.targets.target import resolve_target
from shards.command import typed
from shards.labels.faults import set_faults
from shards.near_duplicates.note import NearDuplicates, load_near_duplicates

MAX_NAMED = 12  # classes


def check_labels(setup: Setup) -> Finding:
    """data.target and train.class_weights fit each shard set, and its classes are in train, with enough pictures."""
    findings, seen = [], set[str]()
    for config in setup.distinct(_learnt):
        store = setup.store_of(config)
        try:
            target = resolve_target(config.data, store)
            class_weights(config.train.class_weights, target, store.manifest)
        except ValueError as error:
            findings.append(Finding("FAIL", "labels", " ".join(str(error).split()), "choose another data.target"))
            continue
        names = ", ".join(target.names[:MAX_NAMED]) + (", ..." if len(target) > MAX_NAMED else "")
        shown = f"{target.name}: {len(target)} classes ({names})"
        first = config.data.shards not in seen
        seen.add(config.data.shards)
        findings.append(_of_set(store, shown) if first else Finding("ok", "labels", shown))
    return merged(findings)


def _learnt(config: RunConfig) -> tuple[str, ...]:
    data = config.data
    return data.shards, data.target, data.border, config.train.class_weights


def _of_set(store: Store, shown: str) -> Finding:
    """The faults that a set's manifest and its note of near-duplicates tell."""
    faults = set_faults(store.manifest, _duplicates(store))
    if not faults:
        return Finding("ok", "labels", shown)
    details = [f"{fault.kind} ({fault.count:,}): {fault.what}, as {listed(fault.examples)}" for fault in faults]
    advice = "; ".join(dict.fromkeys(fault.advice for fault in faults))
    look = typed("-m", "shards.show", store.location)
    return Finding("warn", "labels", f"{'; '.join(details)} ({shown})", f"{advice}; `{look}` shows them")


def _duplicates(store: Store) -> NearDuplicates | None:
    """The set's note of near-duplicates; None where there is none, and for a damaged one, of which `splits` tells."""
    if not isinstance(store, LocalStore):
        return None
    try:
        return load_near_duplicates(folder_of(store.location), store.manifest.hash)
    except ValueError:
        return None
