"""What wandb has of a run that has ended: how, with which artifacts, and its evaluations as runs beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.sync import main as sync
from petseg.config import RunConfig, TrackingConfig
from petseg.config.values import config_to_dict
from petseg.evaluate import main as evaluate
from petseg.run_folder.attempts import begin_attempt
from petseg.run_folder.layout import claim_folder, save_overrides
from petseg.tracking import tracker as tracking
from petseg.tracking.artifacts import MAX_NAME, find_artifacts
from petseg.tracking.naming import RunName, name_of_run
from petseg.tracking.process import RunSettings
from petseg.tracking.tracker import EXIT_CODES, End, Tracker, describe, how_ended
from petseg.training.loop import Terms, train
from shards.command import OK, Failure, Interrupted, run_command
from shards.manifest import load_manifest, save_manifest
from tests.wandb_server import Fault, WandbServer

HASH = "0" * 64
NAME = RunName("lab-0123456789", group="lab")
TRIAL = RunName("lab-0123456789", "lab", label="unet none width 4 seed 0", program="jobs/sweep.py")


def test_the_error_decides_how_a_run_ended() -> None:
    assert how_ended(Interrupted("saved")) == "interrupted"
    assert how_ended(Failure("NaN")) == how_ended(KeyboardInterrupt()) == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("ended", ["pruned", "failed"])  # the others: in test_tracker.py
def test_each_end_sets_the_state_and_the_summary(tmp_path: Path, server: WandbServer, ended: End) -> None:
    tracker = Tracker(tmp_path, TrackingConfig("online", wandb_wait_s=60.0), NAME, {}, resumed_epoch=0)
    tracker.log({"epoch": 1, "step": 10, "val/dice": 0.5})
    tracker.finish({"best_epoch": 1}, ended)
    (run,) = server.runs.values()
    assert run.exit_codes == [EXIT_CODES[ended]]
    assert not run.preempting
    assert (run.summary["ended"], run.summary["best_epoch"]) == (ended, 1)


def test_the_config_says_where_and_with_how_many_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(RunConfig(), tracking=TrackingConfig(entity="team"))
    claim_folder(config, HASH, tmp_path)
    save_overrides({"train.accumulation_steps": 4}, tmp_path)
    for name, value in {"CODE": "c0de", "COMMIT": "5ha", "CHANGED": "1", "REMOTE": "https://host/petseg"}.items():
        monkeypatch.setenv(f"PETSEG_{name}", value)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    begin_attempt(tmp_path, 0, world_size=4)
    said = describe(tmp_path, NAME, config_to_dict(config))["config"]
    assert (said["world_size"], said["code_hash"], said["job_id"], said["data_hash"]) == (4, "c0de", "17", HASH)
    assert (said["sweep"], said["restarts"], said["train.accumulation_steps"]) == ("lab", 0, 4)
    assert "world_sizes" not in said
    assert (said["git_commit"], said["git_changed"]) == ("5ha", True)
    about = describe(tmp_path, NAME, config_to_dict(config))
    assert (about["commit"], about["remote"]) == ("5ha", "https://host/petseg")
    begin_attempt(tmp_path, 10, world_size=2)
    said = describe(tmp_path, NAME, config_to_dict(config))["config"]
    assert (said["world_size"], said["world_sizes"], said["restarts"]) == (2, [4, 2], 1)
    assert "code_hashes" not in said


def test_artifacts_are_those_of_a_finished_run(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = tiny()
    shards = load_manifest(config.data.shards)
    claim_folder(config, shards.hash, tmp_path)
    assert find_artifacts(tmp_path, "x", "all") == []
    for name in ("result.json", "per_image.npz"):
        (tmp_path / name).write_text("{}")
    save_manifest(shards, tmp_path)  # as a finished run does
    assert find_artifacts(tmp_path, "x", "none") == []
    manifest, predictions = find_artifacts(tmp_path, "x" * MAX_NAME, "small")
    assert (manifest.name, manifest.type) == (f"shards-{shards.hash[:16]}", "dataset")
    assert list(predictions.files) == ["per_image.npz"]
    assert len(predictions.name) == MAX_NAME
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace(shards.hash, HASH))
    assert [artifact.type for artifact in find_artifacts(tmp_path, "x", "small")] == ["predictions"]  # another set


@pytest.mark.parametrize(
    ("ended", "types"),
    [("finished", ["dataset", "predictions"]), ("interrupted", []), ("pruned", []), ("failed", [])],
)
def test_only_a_finished_run_hands_over_artifacts(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: End, types: list[str]
) -> None:
    """Although the files of an earlier end lie there."""
    handed_over = []

    class Recorder:
        def __init__(self, *_: Any) -> None:
            pass

        def finish(self, _summary: Any, ended: End, artifacts: list[dict[str, Any]]) -> None:
            handed_over.append((ended, sorted(artifact["type"] for artifact in artifacts)))

    monkeypatch.setattr(tracking, "Wandb", Recorder)
    config = tiny()
    shards = load_manifest(config.data.shards)
    claim_folder(config, shards.hash, tmp_path)
    for name in ("result.json", "per_image.npz"):
        (tmp_path / name).write_text("{}")
    save_manifest(shards, tmp_path)
    Tracker(tmp_path, TrackingConfig("offline", artifacts="small"), NAME, {}, resumed_epoch=0).finish({}, ended)
    assert handed_over == [(ended, types)]


@pytest.mark.slow
def test_artifacts_are_uploaded_once(tiny: Callable[..., RunConfig], tmp_path: Path, server: WandbServer) -> None:
    """By the run itself, by a replay, and by another trial on the same shard set."""
    kept = {"tracking__artifacts": "all", "tracking__wandb_wait_s": 60.0, "tracking__overlays": 0}
    for number in (0, 1):
        train(tiny(tracking__wandb="online", train__seed=number, **kept), tmp_path / str(number))
    versions = [(artifact.type, artifact.version, sorted(artifact.files)) for artifact in server.artifacts]
    predictions = ("predictions", 0, ["per_image.npz", "val_masks.npz", "wandb_manifest.json"])
    model = ("model", 0, ["config.json", "model.safetensors", "wandb_manifest.json"])
    assert versions.count(predictions) == versions.count(model) == 2
    assert versions.count(("dataset", 0, ["manifest.json", "wandb_manifest.json"])) == 1
    assert [len(run.artifacts) for run in server.runs.values()] == [3, 3]
    assert [artifact.committed for artifact in server.artifacts] == [True] * len(versions)
    assert run_command(sync, [str(tmp_path / "0"), "--again"]) == OK
    assert len(server.artifacts) == len(versions)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "where"), [("403", "CreateArtifact"), ("500", "/upload/a")])
def test_artifacts_that_wandb_refuses_are_reported_and_sent_later(
    tiny: Callable[..., RunConfig], tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture,
    fault: Fault, where: str,
) -> None:  # fmt: skip
    server.fault, server.fault_at = fault, where
    config = tiny(tracking__wandb="online", tracking__artifacts="small", tracking__overlays=0)
    train(config, tmp_path)
    assert caplog.text.count("wandb is off for this run") == 1
    server.fault = ""
    assert run_command(sync, [str(tmp_path)]) == OK
    assert [(artifact.type, artifact.committed) for artifact in server.artifacts] == [
        ("dataset", True),
        ("predictions", True),
    ]
    (run,) = server.runs.values()
    assert (run.epochs, run.exit_codes[-1]) == ([1, 2], 0)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["403", "wrong json"])
def test_rows_lost_on_the_way_are_reported_and_sent_later(
    tiny: Callable[..., RunConfig], tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    server.fault, server.fault_at = fault, "file_stream"
    train(tiny(tracking__wandb="online"), tmp_path)
    assert caplog.text.count("wandb is off for this run") == 1
    assert "; metrics.jsonl has everything\n" in caplog.text
    (run,) = server.runs.values()
    assert not run.rows
    server.fault = ""
    assert run_command(sync, [str(tmp_path)]) == OK
    assert (run.epochs, run.exit_codes) == ([1, 2], [0])


@pytest.mark.slow
def test_an_evaluation_is_a_run_beside_the_trainings(
    tiny: Callable[..., RunConfig], tmp_path: Path, server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "lab" / "trials" / "x"
    train(tiny(tracking__wandb_wait_s=60.0), folder, Terms(TRIAL))
    assert run_command(evaluate, [str(folder), "--split", "test"]) == OK
    assert not server.runs  # as the training, which did not ask for wandb
    asked = [str(folder), "--split", "test", "--wandb", "online"]
    for _ in range(2):
        assert run_command(evaluate, asked) == OK
    ((name, run),) = server.runs.items()
    training = TRIAL.wandb_id
    assert name.startswith(f"{training}-eval-")
    assert run.upserts[0]["displayName"] == "unet none width 4 seed 0 eval test"
    assert run.upserts[0]["program"] == "petseg/evaluate.py"
    assert (run.upserts[0]["groupName"], run.upserts[0]["jobType"]) == ("lab", "eval")
    assert (run.config["train_run"], run.config["eval.split"], run.config["model.width"]) == (training, "test", 4)
    written = json.loads((folder / "evaluate-test.json").read_text())
    for metric in ("test/dice", "test/border_bg/dice", "test/ece"):
        assert run.summary[metric] == pytest.approx(written["metrics"][metric])
    assert run.summary["test/cat/dice"] == pytest.approx(written["species"]["cat"]["dice"])
    assert (run.rows, run.exit_codes) == ([], [0, 0])
    assert run_command(evaluate, [*asked, "--tta", "flips"]) == OK
    assert len(server.runs) == 2


@pytest.mark.slow
def test_an_evaluation_that_was_offline_is_sent_later(
    tiny: Callable[..., RunConfig], tmp_path: Path, server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the run that it would have been online."""
    train(tiny(), tmp_path)
    assert run_command(evaluate, [str(tmp_path), "--split", "test", "--wandb", "offline"]) == OK
    assert not server.runs
    assert run_command(sync, [str(tmp_path)]) == OK
    training = name_of_run(tmp_path, RunConfig()).wandb_id
    assert server.runs[training].epochs == [1, 2]
    (name,) = set(server.runs) - {training}
    run = server.runs[name]
    assert (run.upserts[0]["jobType"], run.config["train_run"], run.rows) == ("eval", training, [])
    (kept,) = (tmp_path / "wandb").glob(f"offline-run-*/run-{name}.wandb")
    assert kept.with_name(f"{kept.name}.synced").exists()
    said = {key: value for key, value in run.summary.items() if key.startswith("test/")}
    assert said["test/dice"] == json.loads((tmp_path / "evaluate-test.json").read_text())["metrics"]["test/dice"]
    capsys.readouterr()
    assert run_command(sync, [str(tmp_path)]) == OK
    assert "1 trial: 0 sent, 1 already there; 1 evaluation: 0 sent, 1 already there" in capsys.readouterr().out
    assert run_command(evaluate, [str(tmp_path), "--split", "test", "--wandb", "online"]) == OK
    assert {key: value for key, value in run.summary.items() if key.startswith("test/")} == said
    assert len(server.runs) == 2


@pytest.mark.parametrize(
    ("mode", "resumed_epoch", "first_epoch"), [("online", 3, 0), ("offline", 0, 1), ("offline", 3, 4)]
)
def test_the_client_is_begun_with_its_shares_of_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, resumed_epoch: int, first_epoch: int
) -> None:
    """It says what wandb lacks before it is ended, both within the time that a run waits for it."""
    begun: list[tuple[RunSettings, float]] = []
    monkeypatch.setattr("petseg.tracking.tracker.Wandb", lambda begin, wait_s, *_: begun.append((begin, wait_s)))
    config = TrackingConfig(mode, project="pets", entity="team", wandb_wait_s=100.0)
    Tracker(tmp_path, config, NAME, {}, resumed_epoch)
    ((begin, wait_s),) = begun
    assert (begin.finish_timeout_s, begin.confirm_s, wait_s) == (60.0, 30.0, 100.0)
    assert (begin.mode, begin.project, begin.entity, begin.first_epoch) == (mode, "pets", "team", first_epoch)
    assert (begin.wandb_dir, begin.watched_pid) == (str(tmp_path), os.getpid())
