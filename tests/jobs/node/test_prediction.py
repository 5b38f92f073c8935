"""What a job of a prediction does with its parts: the pictures that are left, and how each end is noted."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.node import prediction
from jobs.node.prediction import PredictTask, finish, output_folder
from jobs.runs.parts import plan_parts, write_pictures
from jobs.runs.trial import Trial
from petseg.footprint.gpus import NodeFault
from petseg.inference import predictor
from petseg.inference.many import work
from petseg.inference.many.inputs import Input
from petseg.inference.many.outputs import Row
from petseg.inference.many.wanted import Wanted
from petseg.training import interrupt
from shards.command import Interrupted

WANTED = Wanted(tta="flips", keep_largest=True, min_area_px=7, precision="no", device="cpu", batch_size=3, threads=5)
NAMES = ("a", "b", "c")


@dataclass
class Done:
    """What the stand-ins of the network and of Slurm were asked for."""

    loaded: list[Any] = field(default_factory=list)
    works: list[Any] = field(default_factory=list)
    items: list[list[str]] = field(default_factory=list)
    exits: list[tuple[Any, ...]] = field(default_factory=list)
    during: Callable[[Callable[[int], None]], None] = lambda advance: advance(1)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Iterator[Done]:
    found, folder, threads = Done(), Path.cwd(), torch.get_num_threads()

    class Work:
        def __init__(self, *arguments: Any) -> None:
            found.works.append(arguments)

        def run(self, items: Sequence[Input], advance: Callable[[int], None]) -> None:
            found.items.append([item.name for item in items])
            found.during(advance)

    def load(*arguments: Any) -> str:
        found.loaded.append(arguments)
        return "the predictor"

    monkeypatch.setattr(work, "Work", Work)
    monkeypatch.setattr(predictor, "load_predictor", load)
    monkeypatch.setattr(prediction, "require_gpus", lambda: None)
    monkeypatch.setattr(prediction, "set_up_logging", lambda rank: None)
    monkeypatch.setattr(prediction, "finish", lambda output, weights: None)
    monkeypatch.setattr(interrupt, "install", lambda: None)
    monkeypatch.setattr(prediction.submitit, "JobEnvironment", lambda: SimpleNamespace(global_rank=0, job_id="12_0"))
    monkeypatch.setattr(prediction, "exit_job", lambda *given: found.exits.append(("job", *given)))
    monkeypatch.setattr(prediction, "exit_for_another_node", lambda *given: found.exits.append(("node", *given)))
    yield found
    os.chdir(folder)
    torch.set_num_threads(threads)


def part_in(out: Path) -> Trial:
    ((part, items),) = plan_parts(out, [Input(name, f"{name}.png") for name in NAMES], 1)
    write_pictures(items, part.folder / "pictures.jsonl")
    return part


def run(part: Trial, out: Path, here: Path) -> None:
    PredictTask(("w.safetensors", "v.safetensors"), WANTED, str(out), str(here), threads=1)([str(part.folder)])


def test_a_part_is_predicted_as_asked_but_for_what_is_done(done: Done, tmp_path: Path) -> None:
    out = tmp_path / "out"
    part, output = part_in(out), output_folder(WANTED, out)
    (out / "masks").mkdir(parents=True)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(output.path("masks", "b"))
    output.note([Row("b", "b.png")], 0)
    run(part, out, tmp_path)
    assert done.items == [["a", "c"]]
    assert done.loaded == [([Path("w.safetensors"), Path("v.safetensors")], "cpu", "no")]
    ((network, options, filled, batch_size, threads, journal),) = done.works
    assert (network, filled, batch_size, threads, journal) == ("the predictor", output, 3, 5, part.id)
    assert options == predictor.Options("flips", True, 7, 3)
    assert Path.cwd() == tmp_path  # relative paths of pictures begin here
    assert torch.get_num_threads() == 1
    state = part.state()
    assert (state.status, state.job_id, state.pid) == ("done", "12_0", os.getpid())
    assert done.exits == []


def test_a_part_whose_pictures_went_to_other_jobs_is_left_alone(done: Done, tmp_path: Path) -> None:
    part = part_in(tmp_path / "out")
    (part.folder / "pictures.jsonl").unlink()
    run(part, tmp_path / "out", tmp_path)
    assert done.works == []
    assert not part.state().status


def test_a_failure_is_noted_and_raised(done: Done, tmp_path: Path) -> None:
    def fail(advance: Callable[[int], None]) -> None:
        raise KeyError("dice")

    done.during, part = fail, part_in(tmp_path / "out")
    with pytest.raises(KeyError):
        run(part, tmp_path / "out", tmp_path)
    assert part.state().status == "failed"
    assert "dice" in part.state().error


@pytest.mark.parametrize("requeue", [True, False])
def test_a_signal_ends_the_job_after_the_batch(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requeue: bool
) -> None:
    asked = False

    def two_batches(advance: Callable[[int], None]) -> None:
        nonlocal asked
        advance(3)
        asked = True
        advance(2)
        pytest.fail("the job went on")

    monkeypatch.setattr(interrupt, "requested", lambda: asked)
    monkeypatch.setattr(interrupt, "requeue_requested", lambda: requeue)
    done.during, part = two_batches, part_in(tmp_path / "out")
    run(part, tmp_path / "out", tmp_path)
    ((kind, environment, again, folders),) = done.exits
    assert (kind, environment.job_id, again, folders) == ("job", "12_0", requeue, [str(part.folder)])
    assert (part.state().status, part.state().error) == ("interrupted", "interrupted after 5 pictures")


def test_a_node_without_its_gpu_gives_the_job_to_another(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind() -> None:
        raise NodeFault("sees no GPU")

    monkeypatch.setattr(prediction, "require_gpus", blind)
    part = part_in(tmp_path / "out")
    with pytest.raises(NodeFault):
        run(part, tmp_path / "out", tmp_path)
    ((kind, environment, fault, folders),) = done.exits
    assert (kind, environment.job_id, str(fault), folders) == ("node", "12_0", "sees no GPU", [str(part.folder)])
    assert part.state().status == "running"


def test_pictures_that_could_not_be_read_are_counted_once_all_parts_are_done(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Any] = []
    part = part_in(tmp_path / "out")
    monkeypatch.setattr(prediction, "finish", lambda *given: asked.append(given) or [Row("a", "a.png", error="no")])
    with caplog.at_level(logging.INFO):
        run(part, tmp_path / "out", tmp_path)
    assert asked == [(output_folder(WANTED, tmp_path / "out"), Path("w.safetensors"))]
    assert caplog.messages == [
        f"{part.id}: 3 pictures", "all parts are done, and summary.csv is written; 1 pictures could not be read",
    ]  # fmt: skip


def test_the_summary_is_written_once_no_picture_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, written = output_folder(WANTED, tmp_path), list[Any]()
    write_pictures([Input(name, f"{name}.png") for name in NAMES], tmp_path / "jobs" / "pictures.jsonl")
    monkeypatch.setattr(predictor, "read_file_header", lambda path: f"header of {path}")
    monkeypatch.setattr(prediction, "write_summary", lambda *given: written.append(given) or [Row("b", "b.png")])
    output.note([Row("a", "a.png"), Row("b", "b.png", error="no picture")], 0)
    assert finish(output, Path("w")) is None
    output.note([Row("c", "c.png")], 1)
    assert finish(output, Path("w")) == [Row("b", "b.png")]
    ((folder, items, header),) = written
    assert (folder, [item.name for item in items], header) == (output, list(NAMES), "header of w")


def test_a_signal_that_has_not_come_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = prediction._stop_where_asked()
    advance(3)
    monkeypatch.setattr(interrupt, "requested", lambda: True)
    with pytest.raises(Interrupted, match=r"^interrupted after 5 pictures"):
        advance(2)
