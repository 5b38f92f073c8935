"""Check of the order in which samples come: whether the batches of class-sorted shards have enough classes."""

from __future__ import annotations

from jobs.checks.setup import Finding, Setup
from petseg.config import RunConfig
from petseg.data.mixing import mixing_of


def check_mixing(setup: Setup) -> Finding:
    """By the plan of the first epoch, for each shard set, shuffle window and batch size of the sweep."""
    what, poor = "mixing", []
    for config in setup.distinct(_what_decides):
        data, train = config.data, config.train
        mixing = mixing_of(setup.store_of(config), data.shuffle_window_shards, train.batch_size, train.seed)
        if mixing and mixing.is_poor:
            poor.append(str(mixing))
    if poor:
        return Finding("warn", what, poor[0], "raise data.shuffle_window_shards, or pack the pictures with petseg")
    return Finding("ok", what, "batches have as many classes as a shuffle of all samples gives, or none are known")


def _what_decides(config: RunConfig) -> tuple[str, int, int]:
    return config.data.shards, config.data.shuffle_window_shards, config.train.batch_size
