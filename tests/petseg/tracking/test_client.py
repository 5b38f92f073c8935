"""What the client sends, step by step, to a run that notes it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import wandb

from petseg.evaluation.measure import PredictedPicture
from petseg.run_folder.layout import write_metrics
from petseg.tracking import arrival, client
from petseg.tracking.artifacts import Artifact, build
from petseg.tracking.client import Sender, addresses_of, best_and_last, class_labels
from petseg.tracking.overlays import IGNORED, best_name, save_overlays
from petseg.tracking.process import RunSettings
from shards.command import INTERRUPTED
from tests.targets import PET


class Noted:
    """A run that notes what it gets."""

    entity, project, id = "lab", "pets", "run1"

    def __init__(self, starting_step: int = 0) -> None:
        self.starting_step = starting_step
        self.rows: dict[int, dict[str, Any]] = {}
        self.summary: dict[str, Any] = {}
        self.ended: list[int | str] = []

    def log(self, row: dict[str, Any], step: int, commit: bool) -> None:
        assert commit
        assert step not in self.rows
        self.rows[step] = row

    def mark_preempting(self) -> None:
        self.ended.append("preempting")

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


def settings_of(folder: Path, **changes: Any) -> RunSettings:
    values: dict[str, Any] = {
        "folder": str(folder), "id": "run1", "group": "", "job_type": "train", "tags": (), "config": {},
        "project": "pets", "entity": "lab", "mode": "offline", "wandb_dir": str(folder), "init_timeout_s": 1.0,
        "finish_timeout_s": 1.0,
    }  # fmt: skip
    return RunSettings(**values | changes)


def sender_of(folder: Path, starting_step: int = 0, **changes: Any) -> tuple[Sender, Noted]:
    run = Noted(starting_step)
    return Sender(settings_of(folder, **changes), run), run


def write_epochs(folder: Path, last: int) -> None:
    write_metrics([{"epoch": epoch, "val/dice": epoch / 10} for epoch in range(1, last + 1)], folder)


def picture() -> PredictedPicture:
    blank = np.zeros((4, 4), np.uint8)
    return PredictedPicture("cat_1", np.zeros((4, 4, 3), np.uint8), blank, blank, PET)


def test_each_row_is_sent_once_at_the_step_of_its_epoch(tmp_path: Path) -> None:
    sender, run = sender_of(tmp_path)
    write_epochs(tmp_path, 2)
    sender.send_rows()
    write_epochs(tmp_path, 3)
    sender.send_rows()
    assert {step: row["epoch"] for step, row in run.rows.items()} == {1: 1, 2: 2, 3: 3}
    assert sender.sent == 3
    assert sender.next_step == 4


@pytest.mark.parametrize(
    ("starting_step", "first_epoch", "sent"), [(0, 0, [1, 2, 3]), (2, 0, [2, 3]), (0, 3, [3]), (3, 2, [3]), (4, 0, [])]
)
def test_rows_that_wandb_has_or_does_not_want_are_left_out(
    tmp_path: Path, starting_step: int, first_epoch: int, sent: list[int]
) -> None:
    sender, run = sender_of(tmp_path, starting_step, first_epoch=first_epoch)
    write_epochs(tmp_path, 3)
    sender.send_rows()
    assert list(run.rows) == sent
    assert sender.sent == len(sent)


def test_an_evaluation_sends_no_rows_of_its_training(tmp_path: Path) -> None:
    sender, run = sender_of(tmp_path, job_type="eval")
    write_epochs(tmp_path, 3)
    sender.end({"ended": "finished"}, 0)
    assert run.rows == {}
    assert run.summary == {"ended": "finished"}


def test_pictures_go_with_the_row_of_their_epoch_and_the_last_ones_behind_all(tmp_path: Path) -> None:
    sender, run = sender_of(tmp_path)
    write_epochs(tmp_path, 3)
    save_overlays(1, [picture()], tmp_path, best_name(1))
    save_overlays(7, [picture()], tmp_path, best_name(2))  # of an attempt whose last epochs are run again
    save_overlays(3, [picture()], tmp_path)
    sender.send_rows()
    assert {step for step, row in run.rows.items() if client.PICTURES in row} == {1, 4}
    assert run.rows[4]["epoch"] == 3
    assert set(run.rows[2]) == {"epoch", "val/dice"}


@pytest.mark.parametrize(("exit_code", "ended"), [(0, [0]), (1, [1]), (INTERRUPTED, ["preempting", INTERRUPTED])])
def test_an_end_sends_what_is_left_and_sets_the_summary(tmp_path: Path, exit_code: int, ended: list[Any]) -> None:
    sender, run = sender_of(tmp_path)
    write_epochs(tmp_path, 2)
    sender.end({"ended": "so", "best_dice": 0.9}, exit_code)
    assert list(run.rows) == [1, 2]
    assert run.summary == {"ended": "so", "best_dice": 0.9, "best_epoch": 2, "last_dice": 0.2, "last_epoch": 2}
    assert run.ended == ended


def test_wandb_is_asked_for_the_last_step_that_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(client, "confirm", lambda *words: asked.append(words))
    write_epochs(tmp_path, 2)
    sender_of(tmp_path, mode="online", confirm_s=3.0)[0].end({"ended": "so"}, 0)
    sender_of(tmp_path, starting_step=5, mode="online", confirm_s=3.0)[0].end({"ended": "so"}, 0)  # nothing was sent
    sender_of(tmp_path, mode="online")[0].end({"ended": "so"}, 0)
    sender_of(tmp_path, confirm_s=3.0)[0].end({"ended": "so"}, 0)  # offline
    assert asked == [("lab/pets/run1", {"ended": "so", "_step": 2}, 3.0), ("lab/pets/run1", {"ended": "so"}, 3.0)]


class Logged:
    """An artifact that wandb has, or refuses."""

    def __init__(self, artifact: Any, refused: bool) -> None:
        self.name, self.refused = artifact.name, refused

    def wait(self, timeout: float) -> None:
        assert timeout == client.ARTIFACT_ANSWER_S
        if self.refused:
            raise ValueError("no room")


@pytest.mark.parametrize(("mode", "refused"), [("online", False), ("online", True), ("offline", True)])
def test_artifacts_go_with_the_end_and_are_waited_for_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, refused: bool
) -> None:
    logged: list[Any] = []
    monkeypatch.setattr(client, "build", lambda artifact: logged.append(artifact) or artifact)
    sender, run = sender_of(tmp_path, mode=mode)
    run.log_artifact = lambda artifact: Logged(artifact, refused)  # type: ignore[attr-defined]
    given = {"name": "predictions-run1", "type": "predictions", "files": {"a.npz": "path"}, "metadata": {"x": 1}}
    if mode == "online" and refused:
        with pytest.raises(RuntimeError, match=r"^artifact predictions-run1 is not there: no room$"):
            sender.end({"ended": "so"}, 0, [given])
    else:
        sender.end({"ended": "so"}, 0, [given])
    assert logged == [Artifact("predictions-run1", "predictions", {"a.npz": "path"}, {"x": 1})]
    assert run.ended == [0]


def test_the_best_of_rows_is_the_first_of_equals_and_the_last_one_has_a_dice() -> None:
    rows = [{"epoch": 1, "val/dice": 0.5}, {"epoch": 2, "val/dice": 0.5}, {"epoch": 3, "val/dice": 0.25}, {"epoch": 4}]
    best = {"best_dice": 0.5, "best_epoch": 1, "last_dice": 0.25, "last_epoch": 3}
    assert best_and_last(rows) == best
    assert best_and_last([{"epoch": 4}]) == best_and_last([]) == {}


def test_an_artifact_is_built_of_its_files_in_place(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"content")
    built = build(Artifact("predictions-x", "predictions", {"b.npz": str(tmp_path / "a.npz")}, {"x": 1}))
    assert (built.name, built.type, built.metadata) == ("predictions-x", "predictions", {"x": 1})
    ((name, entry),) = built.manifest.entries.items()
    assert (name, entry.local_path, entry.skip_cache) == ("b.npz", str(tmp_path / "a.npz"), True)


def test_masks_have_the_names_of_the_runs_classes(tmp_path: Path) -> None:
    names = {0: "background", 1: "pet", IGNORED: "ignored"}
    assert class_labels(tmp_path) == names
    (tmp_path / "target.json").write_text("{")
    assert class_labels(tmp_path) == names


def test_addresses_show_no_secrets_and_are_asked_for_online_only() -> None:
    run = SimpleNamespace(url="https://me:secret@host/run", project_url=None, resumed=True)
    assert addresses_of(run, "online") == {"url": "https://host/run", "project_url": "", "resumed": True}
    assert addresses_of(run, "offline") == {"url": "", "project_url": "", "resumed": False}


@pytest.mark.parametrize(
    ("summary", "shown"),
    [
        ({"ended": "so", "_step": 2}, True),
        ({"ended": "so", "_step": 3}, True),
        ({"ended": "so", "_step": 1}, False),
        ({"ended": "else", "_step": 2}, False),
        ({"ended": "so"}, False),
        ({}, False),
    ],
)
def test_a_summary_shows_the_last_step_or_a_later_one(summary: dict[str, Any], shown: bool) -> None:
    assert arrival.shows(summary, {"ended": "so", "_step": 2}) is shown


def test_a_summary_is_asked_for_until_it_shows_all_or_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows the step at the third question."""
    asked: list[str] = []

    class Api:
        def __init__(self, timeout: int) -> None: ...

        def run(self, path: str) -> Any:
            asked.append(path)
            return SimpleNamespace(summary={"_step": len(asked)})

        def flush(self) -> None: ...

    monkeypatch.setattr(wandb, "Api", Api)
    monkeypatch.setattr(arrival, "CONFIRM_EVERY_S", 0.0)
    arrival.confirm("lab/pets/run1", {"_step": 3}, timeout_s=60.0)
    assert asked == ["lab/pets/run1"] * 3
    with pytest.raises(TimeoutError, match="wandb took lab/pets/run1 and does not show all its rows"):
        arrival.confirm("lab/pets/run1", {"_step": 1_000_000}, timeout_s=0.0)
