"""What a run's result and its pictures are made of, and the line that an epoch ends with."""

from __future__ import annotations

import json
import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from petseg.config import RunConfig
from petseg.config.values import trial_id, with_values
from petseg.run.progress import Best, Progress
from petseg.run.run import Run
from petseg.run_folder.layout import Result, claim_folder
from petseg.training import finish
from petseg.training import step as step_module
from petseg.training.finish import build_result, draw_overlays, save_calibration
from petseg.training.progress_bar import TrainProgress
from petseg.training.step import run_step

CPU = torch.device("cpu")
ROWS = [
    {"perf/seconds": 2.0 * number, "perf/images_per_s": 10.0 * number, "perf/data_wait": 0.1 * number,
     "perf/headroom": 100.0 * number, "perf/mfu": 0.25 * number}
    for number in (3, 1, 2)
]  # fmt: skip


def run_of(folder: Path, **parts: Any) -> Run:
    fields = {"folder": folder, "world_size": 4, "device": CPU, "bare_model": torch.nn.Linear(3, 2), "is_main": True}
    progress = Progress(5, 13, epoch=3, best=Best(10, 2, 0.5))
    return cast(Run, SimpleNamespace(parts=SimpleNamespace(**fields | parts), progress=progress))


def test_a_result_has_the_medians_of_the_epochs_and_the_sum_of_their_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_folder(RunConfig(), "0" * 64, tmp_path)
    monkeypatch.setattr(finish, "device_name", lambda device: f"name of {device}")
    monkeypatch.setattr(finish, "peak_memory_mb", lambda device: 123.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    expected = Result(
        trial_id=trial_id(RunConfig(), "0" * 64), metrics={"val/dice": 0.5}, best_epoch=2, epochs=3, parameters=8,
        world_size=4, host=socket.gethostname(), device="name of cpu", train_s=12.0, images_per_s=20.0, data_wait=0.2,
        headroom=200.0, mfu=0.5, peak_memory_mb=123.5, threads=7,
    )  # fmt: skip
    assert build_result(run_of(tmp_path), {"val/dice": 0.5}, ROWS) == expected
    without = [{name: value for name, value in row.items() if number or name != "perf/mfu"}
               for number, row in enumerate(ROWS)]  # fmt: skip
    assert build_result(run_of(tmp_path), {}, without).mfu is None
    assert build_result(run_of(tmp_path, device=torch.device("cuda")), {}, ROWS).threads == 0


def test_overlays_are_saved_under_the_keys_of_the_fixed_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    drawn = np.full((4, 6, 3), 7, np.uint8)

    def predict(parts: Any, *what: Any) -> Any:
        asked.append(what)
        return [SimpleNamespace(key=f"key_{number}", overlay=lambda: drawn) for number in what[1]]

    monkeypatch.setattr(finish, "predict", predict)
    config = with_values(RunConfig(), {"tracking.overlays": 2})
    pictures = draw_overlays(cast(Any, SimpleNamespace(config=config, folder=tmp_path, splits={"val": range(8)})))
    assert asked == [("val", [0, 4])]
    assert [picture.key for picture in pictures] == ["key_0", "key_4"]
    assert sorted(path.name for path in (tmp_path / "overlays").iterdir()) == ["key_0.png", "key_4.png"]
    with Image.open(tmp_path / "overlays" / "key_4.png") as image:
        assert np.array_equal(np.asarray(image), drawn)


def test_calibration_is_kept_as_it_is_and_at_the_temperature_of_val(tmp_path: Path) -> None:
    def measured(split: str) -> Any:
        curve = SimpleNamespace(rows=lambda: [f"{split} as is"])
        return SimpleNamespace(
            calibration=SimpleNamespace(
                reliability=lambda: curve, scaled=lambda t: SimpleNamespace(rows=lambda: [f"{split} at {t}"])
            )
        )

    parts: Any = SimpleNamespace(folder=tmp_path)
    save_calibration(parts, {split: measured(split) for split in ("val", "test")}, 1.5)
    assert json.loads((tmp_path / "calibration.json").read_text()) == {
        "format_version": 1, "temperature": 1.5,
        "splits": {split: {"as_is": [f"{split} as is"], "scaled": [f"{split} at 1.5"]} for split in ("val", "test")},
    }  # fmt: skip


@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize("test", [True, False])
def test_a_run_is_measured_on_val_and_where_asked_for_on_test_and_its_result_is_written_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: bool, test: bool
) -> None:
    events: list[Any] = []

    def note(name: str, result: Any = None) -> Callable[..., Any]:
        return lambda *_: events.append(name) or result

    def measure(parts: Any, split: str, protocol: Any) -> Any:
        events.append((split, protocol.masks))
        calibration = SimpleNamespace(fit_temperature=lambda: {"val": 1.5, "test": 9.0}[split])
        return SimpleNamespace(calibration=calibration, metrics=lambda name, t: {f"{name}/dice": t})

    result = SimpleNamespace(best_epoch=2, parameters=8)
    for name in (
        "save_per_image",
        "save_val_masks",
        "save_calibration",
        "save_manifest",
        "draw_overlays",
        "save_result",
    ):
        monkeypatch.setattr(finish, name, note(name))
    monkeypatch.setattr(finish, "load_best", note("load_best", ROWS))
    monkeypatch.setattr(finish, "measure_protocol", measure)
    monkeypatch.setattr(finish, "build_result", lambda run, metrics, rows: events.append((metrics, rows)) or result)
    tracker: Any = SimpleNamespace(
        log_overlays=lambda epoch, _: events.append(("overlays", epoch)), finish=lambda *what: events.append(what)
    )
    config = with_values(RunConfig(), {"train.test": test})
    accelerator = SimpleNamespace(wait_for_everyone=note("wait"))
    splits = dict.fromkeys(("train", "val", "test"))
    run: Any = run_of(tmp_path, config=config, splits=splits, manifest="manifest", accelerator=accelerator)
    run.attempt = SimpleNamespace(require_newest=note("newest"))
    assert finish.finish(run, tracker if main else None) is cast(Any, result)
    measured = [("val", True), *([("test", False)] if test else [])]
    metrics = {"val/dice": 1.5} | ({"test/dice": 1.5} if test else {})
    summary = metrics | {"best_epoch": 2, "parameters": 8}
    written = [
        "newest", "save_per_image", "save_val_masks", "save_calibration", "save_manifest", "draw_overlays",
        ("overlays", 3), "save_result", (summary,),
    ]  # fmt: skip
    assert events == ["load_best", *measured, (metrics, ROWS), *(written if main else []), "wait"]


def test_an_epoch_ends_with_a_line_of_its_numbers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    row = {
        "epoch": 2, "train/loss": 0.5, "train/dice": 0.25, "val/loss": 0.75, "val/dice": 0.125, "val/iou": 0.0625,
        "perf/images_per_s": 8.04, "perf/data_wait": 0.015, "perf/headroom": 9.06,
    }  # fmt: skip
    for enabled in (True, False):
        with TrainProgress(100, 10, 0, enabled) as bar:
            bar.epoch_done(row)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said == (
        "epoch 2/10 train loss 0.5000 dice 0.2500 | val loss 0.7500 dice 0.1250 iou 0.0625 | 8.0 images/s, "
        "data wait 1.5 %, 9.1 images/s without it"
    )


@pytest.mark.parametrize(("tty", "enabled", "live"), [(True, True, True), (False, True, False), (True, False, False)])
def test_the_bar_moves_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, tty: bool, enabled: bool, live: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: tty, write=lambda _: 0, flush=lambda: None))
    bar = TrainProgress(100, 10, 5, enabled)
    assert (bar.live, bar.bar.disable) == (live, not live)
    bar.update(12, 90, 0.5, 8.0)
    (task,) = bar.bar.tasks
    fields = {"epoch": 2, "epochs": 9, "loss": 0.5, "rate": 8.0}
    assert (task.completed, task.total, task.fields) == (12, 90, fields)


@pytest.mark.parametrize(
    ("step", "samples", "is_full"), [(4, 8, True), (4, 3, False), (0, 8, False)], ids=["full", "last batch", "small"]
)
def test_only_full_steps_of_full_pictures_are_the_compilers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, samples: int, is_full: bool
) -> None:
    """Pictures have full size from step 6 of 12 on; of the second epoch's step 4 three are left, itself included."""
    done: list[Any] = []
    monkeypatch.setattr(step_module, "train_step", lambda *what: done.append(what))
    values = {"train.batch_size": 8, "train.start_size_px": 32, "data.image_size_px": 64}
    batches: Any = [SimpleNamespace(plan=SimpleNamespace(step_samples=samples))]
    sums = torch.zeros(4)
    choice = SimpleNamespace(run_step=lambda work, *what: (work(), done.append(what)))
    parts = SimpleNamespace(config=with_values(RunConfig(), values))
    epoch = 2 if step else 1
    run: Any = SimpleNamespace(parts=parts, progress=Progress(5, 12), choice=choice)
    run_step(run, epoch, step, batches, sums)
    assert done == [(run, epoch, step, batches, sums), (is_full, 12 - 5 * (epoch - 1) - step)]
    done.clear()
    run.choice = None
    run_step(run, epoch, step, batches, sums)
    assert done == [(run, epoch, step, batches, sums)]
