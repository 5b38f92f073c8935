"""Flags that give back a run."""

from dataclasses import replace
from typing import Any

import pytest
import tyro

from jobs.reporting.sections.reproduce import train_flags
from petseg.config import RunConfig
from petseg.config.values import config_to_dict, identity, with_values


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model.arch": "resnet34_unet", "train.mixed_precision": "bf16", "optim.lr": 3e-5, "data.shards": "my shards"},
        {"train.test": False, "train.channels_last": False, "augment.p": 0.5, "train.seed": 7, "data.border": "ignore"},
    ],
)
def test_flags_give_back_the_same_run(values: dict[str, Any]) -> None:
    config = with_values(RunConfig(), values)
    flags = train_flags(config_to_dict(config))
    again = tyro.cli(RunConfig, args=flags)
    assert identity(again, "h") == identity(config, "h")
    assert again.data.shards == config.data.shards
    assert len(values) == sum(flag.startswith("--") for flag in flags)


def test_flags_leave_out_fields_that_change_no_number() -> None:
    config = RunConfig()
    config = replace(config, tracking=replace(config.tracking, wandb="offline"), data=replace(config.data, threads=9))
    assert train_flags(config_to_dict(config)) == []
