import json
from collections.abc import Callable
from pathlib import Path

import pytest

from petseg.config import RunConfig, TrackingConfig
from petseg.run_folder import read_metrics
from petseg.tracking import RunName, Tracker
from petseg.train import train


def test_rows_after_the_checkpoint_are_cut_off_on_resume(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrackingConfig(), RunName("x"), {}, resumed_epoch=0)
    for epoch in (1, 2, 3):
        tracker.log({"epoch": epoch, "val/dice": 0.1 * epoch})
    tracker.finish({})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "val/di')  # a kill in the middle of a line
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    Tracker(tmp_path, TrackingConfig(), RunName("x"), {}, resumed_epoch=2).finish({})
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2]


def test_an_offline_run_holds_every_epoch_and_the_config(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read back with wandb's own reader."""
    import os
    import subprocess
    import sys

    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    name = RunName("lab-0123456789", group="lab", tags=("unet", "none"))
    train(tiny(tracking__wandb="offline"), tmp_path, name)
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    env = {**os.environ, "WANDB_MODE": "offline"}
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    out = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True).stdout
    records = [json.loads(line) for line in out.splitlines()]
    history = [r["history"]["item"] for r in records if r["type"] == "history"]
    logged = [row for row in history if "val/dice" in row]
    assert [row["epoch"] for row in logged] == [1, 2]
    assert [row["val/dice"] for row in logged] == pytest.approx([r["val/dice"] for r in read_metrics(tmp_path)])
    assert any("val/overlays" in key for row in history for key in row)
    (run,) = (r["run"] for r in records if r["type"] == "run")
    assert run["run_id"] == "lab-0123456789"
    assert run["run_group"] == "lab"
    assert run["config"]["update"]["model.width"] == 4
    assert any(r["type"] == "exit" for r in records)


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_wandb_can_fail_anywhere_and_training_goes_on(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    import wandb

    class Client:
        def __init__(self) -> None:
            self.summary: dict = {}

        def define_metric(self, *_: object, **__: object) -> None: ...

        def log(self, *_: object) -> None:
            if broken == "log":
                raise wandb.errors.CommError("429")

        def finish(self, **_: object) -> None:
            if broken == "finish":
                raise wandb.errors.CommError("gone")

    def init(**_: object) -> Client:
        if broken == "init":
            raise wandb.errors.UsageError("no API key")
        return Client()

    monkeypatch.setattr(wandb, "init", init)
    result = train(tiny(tracking__wandb="online"), tmp_path)
    assert result.epochs == 2
    assert len(read_metrics(tmp_path)) == 2
    assert "wandb is off for this run" in caplog.text


def test_a_client_that_hangs_is_left_behind(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import threading

    import wandb

    from petseg import tracking

    release = threading.Event()

    def init(**_: object) -> None:
        release.wait()
        raise wandb.errors.CommError("too late")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 0.2)
    try:
        assert train(tiny(tracking__wandb="online"), tmp_path).epochs == 2
        assert "left behind" in caplog.text
    finally:
        release.set()
