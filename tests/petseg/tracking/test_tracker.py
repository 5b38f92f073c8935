"""metrics.jsonl and wandb's view of it, with wandb's own client against a recording server on loopback."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path

import pytest

from petseg.config import RunConfig, TrackingConfig
from petseg.run_folder.layout import load_config, read_metrics
from petseg.tracking.client import best_and_last
from petseg.tracking.naming import RunName
from petseg.tracking.note import TrackingNote, read_note
from petseg.tracking.process import RunSettings
from petseg.tracking.tracker import Tracker
from petseg.training import interrupt
from petseg.training.loop import Terms, train
from shards.command import Interrupted
from tests.petseg.tracking.online_runs import NAME, OFF, online, row, the_run
from tests.wandb_server import WandbServer


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


def test_an_online_run_has_every_epoch_its_config_and_its_summary(
    tiny: Callable[..., RunConfig], tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "lab" / "trials" / "0123456789"
    result = train(tiny(tracking__wandb="online", tracking__wandb_wait_s=60.0), folder, Terms(NAME))
    run, rows = the_run(server), read_metrics(folder)
    assert OFF not in caplog.text
    assert list(server.runs) == ["lab-0123456789"]
    assert run.epochs == [1, 2]
    assert [sent["val/dice"] for sent in run.rows[:2]] == pytest.approx([row["val/dice"] for row in rows])
    assert [sent["_step"] for sent in run.rows] == [1, 2, 3]
    assert len(run.rows[0]["val/overlays"]["filenames"]) == 1  # a sheet of both pictures
    assert (run.config["world_size"], run.config["trial_id"]) == (1, load_config(folder)["trial_id"])
    assert run.config["train.accumulation_steps"] >= 1  # as it was settled, not as it was asked for
    assert run.summary["ended"] == "finished"
    pictures = run.rows[2]
    assert (pictures["epoch"], len(pictures["val/overlays"]["filenames"])) == (2, 1)
    sets = len([row for row in run.rows if "val/overlays" in row])
    assert 1 <= sets <= 2 + math.log2(2)
    assert len(run.files) <= 4 + 3 * sets, sorted(run.files)
    assert not server.artifacts
    assert read_note(folder) == TrackingNote(
        "sent", url=f"{server.url}/lab-team/petseg/runs/lab-0123456789", project_url=f"{server.url}/lab-team/petseg"
    )
    first = run.upserts[0]
    assert (first["displayName"], first["program"]) == ("unet none seed 0", "jobs/sweep.py")
    assert (first["groupName"], first["jobType"], first["project"]) == ("lab", "train", "petseg")
    assert first["tags"] == ["unet", "none"]
    assert (run.config["model.width"], run.config["sweep"], run.config["restarts"]) == (4, "lab", 0)
    assert run.config["data_hash"] == load_config(folder)["identity"]["manifest_hash"]
    assert run.config["host"]
    assert run.summary["best_dice"] == max(row["val/dice"] for row in rows)
    assert run.summary["last_dice"] == rows[-1]["val/dice"]
    assert run.summary["best_epoch"] == result.best_epoch
    assert run.exit_codes == [0]
    assert not run.preempting
    watched = {str(metric.get("1", metric.get("2"))) for metric in run.config["_wandb"]["m"]}
    assert {"epoch", "step", "train/*", "val/*", "perf/*"} <= watched


@pytest.mark.slow
def test_an_interrupted_run_is_preempting_and_resumes_as_one_curve(
    tiny: Callable[..., RunConfig], tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"tracking__wandb": "online", "tracking__wandb_wait_s": 60.0, "tracking__overlays": 0}
    config, asked = tiny(**values), count(1)
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: next(asked) >= 3)  # at every other of 4 steps: in epoch 2
        with pytest.raises(Interrupted):
            train(config, tmp_path, Terms(RunName("x")))
    run = the_run(server)
    assert run.epochs == [1]
    assert (run.exit_codes, run.preempting > 0, run.summary["ended"]) == ([75], True, "interrupted")
    train(config, tmp_path, Terms(RunName("x")))
    assert run.epochs == [1, 2]
    assert run.exit_codes == [75, 0]
    assert run.config["restarts"] == 1
    assert {upsert["name"] for upsert in run.upserts} == {"x"}


@pytest.mark.slow
def test_a_killed_run_resumes_as_one_curve(
    tmp_path: Path, server: WandbServer, wait_for: Callable[[Callable[[], object]], None]
) -> None:
    """The rows that its last checkpoint did not have are run again, and are there once."""
    code = (
        "import os, signal, sys; from pathlib import Path; from petseg.config import TrackingConfig\n"
        "from petseg.tracking.naming import RunName; from petseg.tracking.tracker import Tracker\n"
        "config = TrackingConfig(wandb='online')\n"
        "tracker = Tracker(Path(sys.argv[1]), config, RunName('lab/x y', group=''), {}, 0)\n"
        "for e in (1, 2, 3): tracker.log({'epoch': e, 'step': 10 * e, 'val/dice': 0.1 * e})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_for(lambda: server.runs and the_run(server).exit_codes == [1])  # the client is left, and ends what it has
    assert the_run(server).epochs == [1, 2, 3]
    tracker = Tracker(tmp_path, online(), RunName("lab/x y"), {}, resumed_epoch=2)
    for epoch in (3, 4):
        tracker.log(row(epoch))
    tracker.finish({})
    assert list(server.runs) == ["lab-x-y"]
    assert the_run(server).epochs == [1, 2, 3, 4] == [r["epoch"] for r in read_metrics(tmp_path)]
    assert the_run(server).exit_codes == [1, 0]


@pytest.mark.slow
def test_rows_of_an_attempt_without_wandb_come_with_the_next_one(tmp_path: Path, server: WandbServer) -> None:
    tracker = Tracker(tmp_path, TrackingConfig(), NAME, {}, resumed_epoch=0)
    for epoch in (1, 2):
        tracker.log(row(epoch))
    tracker.finish({}, "failed")
    tracker = Tracker(tmp_path, online(), RunName("x"), {}, resumed_epoch=2)
    tracker.log(row(3))
    tracker.finish({})
    assert the_run(server).epochs == [1, 2, 3]


def test_an_offline_run_holds_every_epoch_and_the_config(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read back with wandb's own reader."""
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    train(tiny(tracking__wandb="offline", tracking__wandb_wait_s=60.0), tmp_path / "a" / "b" / "c", Terms(NAME))
    (log,) = tmp_path.glob("a/b/c/wandb/offline-run-*/run-*.wandb")
    env = {**os.environ, "WANDB_MODE": "offline"}
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    out = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True).stdout
    records = [json.loads(line) for line in out.splitlines()]
    history = [r["history"]["item"] for r in records if r["type"] == "history"]
    logged = [row for row in history if "val/dice" in row]
    assert [row["epoch"] for row in logged] == [1, 2]
    expected = [r["val/dice"] for r in read_metrics(tmp_path / "a" / "b" / "c")]
    assert [row["val/dice"] for row in logged] == pytest.approx(expected)
    assert any("val/overlays" in key for row in history for key in row)
    assert read_note(tmp_path / "a" / "b" / "c") == TrackingNote("offline")
    (run,) = (r["run"] for r in records if r["type"] == "run")
    assert run["run_id"] == "lab-0123456789"
    assert run["run_group"] == "lab"
    assert run["config"]["update"]["model.width"] == 4
    assert any(r["type"] == "exit" for r in records)


def test_a_run_without_wandb_notes_nothing(tmp_path: Path) -> None:
    Tracker(tmp_path, TrackingConfig(), NAME, {}, 0).finish({})
    assert read_note(tmp_path) is None
    (tmp_path / "tracking.json").write_text('{"state": "sent", "url": 3}')
    assert read_note(tmp_path) is None
    (tmp_path / "tracking.json").write_text('{"state": "\\u001b[31m"}')
    assert read_note(tmp_path) is None


def test_the_clients_output_is_not_an_answer(tmp_path: Path) -> None:
    printing = (
        "import os\nprint('hello', flush=True)\nos.write(1, b'from a library\\n')\nraise ImportError('no wandb')\n"
    )
    (tmp_path / "wandb.py").write_text(printing)
    begin = RunSettings(
        str(tmp_path), "x", "", "train", (), {}, "petseg", "", "offline", str(tmp_path), init_timeout_s=1.0,
        finish_timeout_s=1.0,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "petseg.tracking.client"],
        input=json.dumps({"begin": asdict(begin)}) + "\n",
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == [{"error": "ImportError", "text": "no wandb"}]
    assert "hello\nfrom a library\n" in done.stderr


def test_best_and_last() -> None:
    rows = [{"epoch": e, "val/dice": d} for e, d in ((1, 0.5), (2, 0.9), (3, 0.9), (4, 0.7))]
    assert best_and_last(rows) == {"best_dice": 0.9, "best_epoch": 2, "last_dice": 0.7, "last_epoch": 4}
    assert best_and_last([]) == {}
