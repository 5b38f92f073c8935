"""An evaluation as a wandb run of job type eval, in the group of the training, whose id its config names.

Its id is the training's id and a hash of the options: evaluating again with the same options updates the same run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from petseg.config import RunConfig
from petseg.run_folder.checkout import Checkout
from petseg.run_folder.layout import evaluation_name, load_config
from petseg.targets.groups import GROUPINGS
from petseg.tracking.naming import RunName, name_of_run
from petseg.tracking.process import RunSettings
from petseg.tracking.tracker import CONFIRM_SHARE, FINISH_SHARE, Wandb, describe
from shards.files import read_json_object

START_S = 20.0  # for the client's start, which a training does not wait for
OPTIONS = ("split", "weights", "tta", "boundary_ratio")  # of evaluate-SPLIT.json


def track_evaluation(
    folder: Path, config: RunConfig, content: Mapping[str, Any], mode: Literal["online", "offline"]
) -> None:
    """Send the content of evaluate-SPLIT.json, without the finer groups and single pictures, in a limited time.

    folder: of the run; content: of the file. Errors are logged, and the evaluation remains valid.
    """
    name = name_of_run(folder, config)
    wait_s = config.tracking.wandb_wait_s
    settings = RunSettings(
        **describe_evaluation(folder, name, content),
        project=config.tracking.project,
        entity=config.tracking.entity,
        mode=mode,
        wandb_dir=str(folder),
        init_timeout_s=START_S,
        finish_timeout_s=FINISH_SHARE * wait_s,
        confirm_s=CONFIRM_SHARE * wait_s,
    )
    remedy = name.remedy(evaluation_name(content["split"]))
    Wandb(settings, START_S + wait_s, remedy).finish(summary_of(content), "finished")


def describe_evaluation(folder: Path, training: RunName, content: Mapping[str, Any]) -> dict[str, Any]:
    """How wandb describes an evaluation, besides its numbers: fields of RunSettings.

    folder: of the run; training: its name; content: of evaluate-SPLIT.json
    """
    options = {"native": not content["no_native"], **{name: content[name] for name in OPTIONS}}
    if content.get("keep_largest"):  # files of earlier versions have no such key, and their runs keep their ids
        options["keep_largest"] = True
    name = replace(
        training,
        id=f"{training.wandb_id}-eval-{digest(options, content['manifest_hash'])}",
        job_type="eval",
        label=f"{training.label} eval {content['split']}",
        program="petseg/evaluate.py",
    )
    about = describe(folder, name, load_config(folder)["config"])
    facts = {"checkpoint": content["checkpoint"], "protocol": content["protocol"]}
    about["config"] |= {"train_run": training.wandb_id, "data_hash": content["manifest_hash"]}
    code = Checkout(**content.get("checkout", {}))  # the evaluation's code, which can differ from the training's
    about["config"] |= {"git_commit": code.commit, "git_changed": code.changed}
    for of_training in ("code_hash", "code_hashes", "git_commits"):
        about["config"].pop(of_training, None)
    about |= {"commit": code.commit, "remote": code.remote}
    about["config"] |= {f"eval.{key}": value for key, value in (options | facts).items()}
    return about


def load_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The content of each evaluate-SPLIT.json of a run, except early versions', which do not name the weights."""
    evaluations = []
    for path in sorted(folder.glob(evaluation_name("*"))):
        content = read_json_object(path, "delete it and evaluate again")
        if "weights" in content:
            evaluations.append(content)
    return evaluations


def digest(options: Mapping[str, Any], manifest_hash: str) -> str:
    """First 8 hex digits of the sha256 of the options and the shard set's hash."""
    return hashlib.sha256(json.dumps([dict(options), manifest_hash], sort_keys=True).encode()).hexdigest()[:8]


def summary_of(content: Mapping[str, Any]) -> dict[str, float]:
    """The file's metrics, and the means of each group of the coarsest grouping."""
    split, groups = content["split"], content.get(GROUPINGS[0], {}).items()
    each = {f"{split}/{name}/{metric}": value for name, means in groups for metric, value in means.items()}
    return {**content["metrics"], **each}
