"""How wandb describes trainings and evaluations: what is said of where, by what and with what they ran."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from petseg.config import RunConfig
from petseg.config.values import config_to_dict, flatten, with_values
from petseg.run_folder.attempts import Attempt
from petseg.run_folder.layout import claim_folder, evaluation_name, load_config, save_overrides
from petseg.targets.target import save_target
from petseg.tracking import evaluation as module
from petseg.tracking import tracker
from petseg.tracking.client import class_labels
from petseg.tracking.evaluation import describe_evaluation, digest, load_evaluations, summary_of, track_evaluation
from petseg.tracking.naming import RunName, save_name
from petseg.tracking.tracker import describe, facts_of_attempts
from tests.targets import PET

NAME = RunName("lab/0123", "lab", tags=("a",), label="unet seed 0", program="jobs/sweep.py", resend="send it")
ATTEMPT = Attempt(1, "node1", "17", "c0de", 0, 12.5, world_size=4, commit="5ha", changed=True, remote="https://host/x")
CONTENT: dict[str, Any] = {
    "split": "test", "weights": "best", "tta": "none", "boundary_ratio": 0.02, "no_native": "", "checkpoint": "step-7",
    "protocol": "by hand", "manifest_hash": "f" * 64, "metrics": {"test/dice": 0.5},
    "checkout": {"commit": "e7a1", "changed": True, "remote": "git@host:x"},
}  # fmt: skip


def test_without_an_attempt_a_run_was_nowhere() -> None:
    assert facts_of_attempts([]) == {
        "host": "", "job_id": "", "restarts": 0, "world_size": 0, "code_hash": "", "git_commit": "",
        "git_changed": False,
    }  # fmt: skip


def test_facts_are_of_the_newest_attempt_and_of_all_where_they_changed() -> None:
    facts = {
        "host": "node1", "job_id": "17", "restarts": 0, "code_hash": "c0de", "git_commit": "5ha", "git_changed": True,
        "world_size": 4,
    }  # fmt: skip
    assert facts_of_attempts([ATTEMPT]) == facts
    newest = replace(ATTEMPT, number=5, host="node2", code="0ther", commit="e7a1")
    assert facts_of_attempts([ATTEMPT, newest]) == facts | {
        "host": "node2", "restarts": 4, "code_hash": "0ther", "git_commit": "e7a1", "code_hashes": ["c0de", "0ther"],
        "git_commits": ["5ha", "e7a1"],
    }  # fmt: skip


def test_a_run_is_described_by_its_config_with_what_was_forced_on_it_and_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_values(RunConfig(), {"data.shards": "https://me:secret@host/set"})
    monkeypatch.setattr(tracker, "read_attempts", lambda _: [replace(ATTEMPT, remote="first"), ATTEMPT])
    said = describe(tmp_path, NAME, config_to_dict(config))["config"]
    assert "data_hash" not in said  # the folder holds no run yet
    claim_folder(config, "f" * 64, tmp_path)
    save_overrides({"train.accumulation_steps": 8}, tmp_path)
    about = describe(tmp_path, NAME, config_to_dict(config))
    stored = load_config(tmp_path)
    assert about.pop("config") == flatten(config_to_dict(config)) | facts_of_attempts([ATTEMPT]) | {
        "data.shards": "https://host/set", "train.accumulation_steps": 8, "sweep": "lab", "data_hash": "f" * 64,
        "trial_id": stored["trial_id"],
    }  # fmt: skip
    assert about == {
        "folder": str(tmp_path), "id": "lab-0123", "name": "unet seed 0", "program": "jobs/sweep.py", "commit": "5ha",
        "remote": "https://host/x", "group": "lab", "job_type": "train", "tags": ["a"],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two attempts with different code."""
    claim_folder(RunConfig(), "0" * 64, tmp_path)
    attempts = [ATTEMPT, replace(ATTEMPT, number=2, code="0ther", commit="before")]
    monkeypatch.setattr(tracker, "read_attempts", lambda _: attempts)
    return tmp_path


def test_an_evaluation_is_described_by_its_own_code_set_and_options(folder: Path) -> None:
    about = describe_evaluation(folder, NAME, CONTENT)
    config = about.pop("config")
    options = {"native": True, "split": "test", "weights": "best", "tta": "none", "boundary_ratio": 0.02}
    assert about == {
        "folder": str(folder), "id": f"lab-0123-eval-{digest(options, 'f' * 64)}", "name": "unet seed 0 eval test",
        "program": "petseg/evaluate.py", "commit": "e7a1", "remote": "git@host:x", "group": "lab", "job_type": "eval",
        "tags": ["a"],
    }  # fmt: skip
    said = {name: value for name, value in config.items() if "." not in name or name.startswith("eval.")}
    assert said == {
        "sweep": "lab", "host": "node1", "job_id": "17", "restarts": 1, "world_size": 4, "git_commit": "e7a1",
        "git_changed": True, "data_hash": "f" * 64, "trial_id": load_config(folder)["trial_id"],
        "train_run": "lab-0123", "eval.checkpoint": "step-7", "eval.protocol": "by hand",
        **{f"eval.{name}": value for name, value in options.items()},
    }  # fmt: skip
    assert config["model.width"] == 64


def test_each_choice_of_an_evaluation_makes_it_another_run(folder: Path) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"split": "val"}, {"weights": "last"}, {"tta": "flips"}, {"boundary_ratio": 0.1}, {"no_native": "why"},
        {"keep_largest": True}, {"manifest_hash": "e" * 64},
    ]  # fmt: skip
    ids = [describe_evaluation(folder, NAME, CONTENT | change)["id"] for change in changes]
    assert len(set(ids)) == len(changes)
    same: list[dict[str, Any]] = [
        {"keep_largest": False}, {"metrics": {}}, {"checkpoint": "step-9"}, {"protocol": "otherwise"}, {"checkout": {}},
    ]  # fmt: skip
    assert {describe_evaluation(folder, NAME, CONTENT | change)["id"] for change in same} == {ids[0]}
    largest = describe_evaluation(folder, NAME, CONTENT | {"keep_largest": True})["config"]
    assert largest["eval.keep_largest"] is True
    of_code = describe_evaluation(folder, NAME, {name: one for name, one in CONTENT.items() if name != "checkout"})
    assert (of_code["commit"], of_code["remote"], of_code["config"]["git_changed"]) == ("", "", False)


def test_a_digest_is_of_options_in_any_order_and_stays() -> None:
    """Runs in wandb are found by it."""
    assert digest({"a": 1, "b": "x"}, "h") == digest({"b": "x", "a": 1}, "h") == "e1899f46"
    assert digest({"a": 2, "b": "x"}, "h") != digest({"a": 1, "b": "x"}, "h") != digest({"a": 1, "b": "x"}, "i")


def test_an_evaluation_has_its_metrics_and_the_means_of_the_coarsest_groups() -> None:
    groups = {"species": {"cat": {"dice": 0.25, "pictures": 3}}, "breeds": {"Birman": {"dice": 0.5}}}
    assert summary_of(CONTENT | groups) == {"test/dice": 0.5, "test/cat/dice": 0.25, "test/cat/pictures": 3}
    assert summary_of(CONTENT) == {"test/dice": 0.5}


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_an_evaluation_is_sent_in_a_limited_time(folder: Path, monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    """By the name that the training had, as the config's project and user."""
    begun: list[Any] = []

    class View:
        def __init__(self, settings: Any, wait_s: float, remedy: str) -> None:
            begun.append((settings, wait_s, remedy))

        def finish(self, *what: Any) -> None:
            begun.append(what)

    monkeypatch.setattr(module, "Wandb", View)
    save_name(NAME, folder)
    values = {"tracking.project": "pets", "tracking.entity": "team", "tracking.wandb_wait_s": 100.0}
    track_evaluation(folder, with_values(RunConfig(), values), CONTENT, mode)
    (settings, wait_s, remedy), finished = begun
    assert finished == ({"test/dice": 0.5}, "finished")
    assert (settings.project, settings.entity, settings.mode, settings.job_type) == ("pets", "team", mode, "eval")
    assert (settings.id, settings.wandb_dir) == (describe_evaluation(folder, NAME, CONTENT)["id"], str(folder))
    assert (settings.init_timeout_s, settings.finish_timeout_s, settings.confirm_s) == (20.0, 60.0, 30.0)
    assert (wait_s, remedy) == (120.0, "evaluate-test.json has everything")


def test_evaluations_of_a_run_are_found_but_for_those_of_early_versions(tmp_path: Path) -> None:
    for split, content in (("val", CONTENT), ("test", {}), ("train", CONTENT | {"split": "train"})):
        (tmp_path / evaluation_name(split)).write_text(json.dumps(content))
    assert load_evaluations(tmp_path) == [CONTENT | {"split": "train"}, CONTENT]
    (tmp_path / evaluation_name("test")).write_text("{")
    with pytest.raises(ValueError, match=r"evaluate-test\.json .*: delete it and evaluate again"):
        load_evaluations(tmp_path)


def test_masks_are_named_as_the_runs_own_target_says(tmp_path: Path) -> None:
    classes = tuple(replace(one, name=f"my {one.name}") for one in PET.classes)
    save_target(replace(PET, classes=classes), tmp_path)
    assert class_labels(tmp_path) == {0: "my background", 1: "my pet", 255: "ignored"}
