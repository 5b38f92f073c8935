"""An evaluation as a run of wandb's: job type eval, in the group of the training, whose id its config names.

Its id is the training's and a hash of what was asked for: the same evaluation again updates the same run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from petseg.config import RunConfig
from petseg.run_folder import load_config
from petseg.tracking import CONFIRM_SHARE, FINISH_SHARE, Wandb, describe, name_in_place
from petseg.tracking_client import Begin

START_S = 20.0  # more than at the end of a training, which the client's start goes beside
ASKED = ("tta", "boundary_ratio")  # of evaluate-SPLIT.json


@dataclass(frozen=True)
class Evaluation:
    """What was measured."""

    split: str
    weights: str  # best | last


def track_evaluation(
    folder: Path, config: RunConfig, what: Evaluation, content: Mapping[str, Any], mode: Literal["online", "offline"]
) -> None:
    """Send what evaluate-SPLIT.json holds, without breeds and single pictures, in a limited time.

    folder: of the run; content: of the file. What goes wrong is logged, and the evaluation stands.
    """
    training = name_in_place(folder, config)
    asked = {**asdict(what), "native": not content["no_native"], **{name: content[name] for name in ASKED}}
    name = replace(training, id=f"{training.wandb_id}-eval-{digest(asked, content['manifest_hash'])}", job_type="eval")
    about = describe(folder, name, load_config(folder)["config"])
    facts = {"checkpoint": content["checkpoint"], "protocol": content["protocol"]}
    about["config"] |= {"train_run": training.wandb_id, "data_hash": content["manifest_hash"]}
    about["config"] |= {f"eval.{key}": value for key, value in (asked | facts).items()}
    wait_s = config.tracking.wandb_wait_s
    begin = Begin(
        **about,
        project=config.tracking.project,
        entity=config.tracking.entity,
        mode=mode,
        wandb_dir=str(folder),
        init_timeout_s=START_S,
        finish_timeout_s=FINISH_SHARE * wait_s,
        confirm_s=CONFIRM_SHARE * wait_s,
    )
    remedy = f"{folder / f'evaluate-{what.split}.json'} has everything, the same command again sends it"
    Wandb(begin, START_S + wait_s, remedy).finish(summary_of(what.split, content), "finished")


def digest(asked: Mapping[str, Any], manifest_hash: str) -> str:
    """First 8 hex digits of sha256 over what was asked for, and of which shard set."""
    return hashlib.sha256(json.dumps([dict(asked), manifest_hash], sort_keys=True).encode()).hexdigest()[:8]


def summary_of(split: str, content: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the protocol, as they stand in the file, and the means of each species."""
    species = content["species"].items()
    each = {f"{split}/{name}/{metric}": value for name, means in species for metric, value in means.items()}
    return {**content["metrics"], **each}
