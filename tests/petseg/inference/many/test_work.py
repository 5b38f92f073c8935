"""Reading, computing and writing side by side: what is on disk whenever and however the work ends."""

from __future__ import annotations

import errno
import io
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from petseg.best import main as best
from petseg.inference.many import work as work_module
from petseg.inference.many.inputs import Input, list_inputs
from petseg.inference.many.outputs import Journal, OutputFolder
from petseg.inference.many.work import Work
from petseg.inference.pictures import decode_picture, without_warnings
from petseg.inference.predictor import Options, Predictor, load_predictor
from shards.command import run_command

OLD_TRIAL = Path(__file__).parents[3] / "jobs" / "old_sweep" / "trials" / "0882af0e7e"
COUNT, BATCH = 14, 4
A_MOMENT_S, LONG_S = 1.0, 60.0


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    weights = tmp_path_factory.mktemp("weights") / "w.safetensors"
    assert run_command(best, [str(OLD_TRIAL), "--out", str(weights)]) == 0
    return load_predictor([weights], "cpu")


@pytest.fixture
def items(tmp_path: Path) -> list[Input]:
    """Pictures, the sixth of which cannot be read."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(tmp_path / "photos" / f"{number:02}.png")
    (tmp_path / "photos" / "05.png").write_bytes(b"no picture")
    return list_inputs([str(tmp_path / "photos")], (), tmp_path / "out")


@pytest.fixture
def work(predictor: Predictor, tmp_path: Path) -> Iterator[Work]:
    output = OutputFolder(tmp_path / "out", ("masks",), coco="none")
    with output.locked():
        yield Work(predictor, Options(), output, BATCH, threads=2)
    assert not [one for one in threading.enumerate() if one.name.startswith("pictures")]


@pytest.fixture
def before_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """Have something happen before a batch, counted from 0, is computed."""
    acts: dict[int, Callable[[], Any]] = {}
    original, numbers = Predictor.predictions, iter(range(COUNT))

    def predictions(self: Predictor, pictures: Sequence[Any], options: Options) -> Any:
        acts.get(next(numbers), lambda: None)()
        return original(self, pictures, options)

    monkeypatch.setattr(Predictor, "predictions", predictions)
    return acts.__setitem__


def replace_write(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None]) -> None:
    """Have something happen before the files of each picture are written; it gets the picture's name."""
    original = OutputFolder.write

    def write(self: OutputFolder, item: Input, *rest: Any) -> Any:
        before(item.name)
        return original(self, item, *rest)

    monkeypatch.setattr(OutputFolder, "write", write)


def names(first: int, end: int) -> set[str]:
    return {f"{number:02}" for number in range(first, end)}


def noted(work: Work) -> set[str]:
    """The pictures in the journal, after a check that their masks are on disk, and nothing half-written."""
    journal = Journal(work.output.folder)
    found = {name for name in names(0, COUNT) if name in journal}
    rows = {name: journal.row(name) for name in found}
    assert all(work.output.is_done(row) for name, row in rows.items() if name != "05")
    assert not list(work.output.folder.rglob("*.tmp"))
    return found


def test_masks_are_written_while_the_next_batch_is_computed(
    work: Work, items: list[Input], before_batch: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    computing, in_time = threading.Event(), []
    before_batch(1, computing.set)
    replace_write(monkeypatch, lambda name: in_time.append(computing.wait(LONG_S)))
    work.run(items, lambda _: None)
    assert all(in_time)
    assert noted(work) == names(0, COUNT)


def test_computing_waits_for_the_disk(
    work: Work, items: list[Input], before_batch: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory holds one batch that is written and one that is computed, however slow the disk is."""
    third, too_early = threading.Event(), []
    before_batch(2, third.set)
    replace_write(monkeypatch, lambda name: too_early.append(third.wait(A_MOMENT_S)) if name == "00" else None)
    work.run(items, lambda _: None)
    assert too_early == [False]
    assert third.is_set()


def test_rows_are_in_the_order_of_the_batches(work: Work, items: list[Input]) -> None:
    counts: list[int] = []
    work.run(items, counts.append)
    assert counts == [4, 4, 4, 2]
    lines = (work.output.folder / "rows-0.jsonl").read_text().splitlines()
    order = [line.split('"')[3] for line in lines]
    expected = ["00", "01", "02", "03", "05", "04", "06", "07"]  # of a batch, those that could not be read first
    assert order == [*expected, *sorted(names(8, COUNT))]


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_while_a_batch_is_computed_keeps_those_before(
    work: Work, items: list[Input], before_batch: Callable[..., None]
) -> None:
    before_batch(2, stop)
    with pytest.raises(KeyboardInterrupt):
        work.run(items, lambda _: None)
    assert noted(work) == names(0, 2 * BATCH)


def test_who_stops_after_a_batch_finds_the_next_one_on_disk_too(work: Work, items: list[Input]) -> None:
    with pytest.raises(KeyboardInterrupt):
        work.run(items, stop)
    assert noted(work) == names(0, 2 * BATCH)


def test_ctrl_c_while_the_last_masks_are_awaited_loses_none(
    work: Work, items: list[Input], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = OutputFolder.note, iter([stop])
    monkeypatch.setattr(OutputFolder, "note", lambda *words: next(calls, original)(*words))
    with pytest.raises(KeyboardInterrupt):
        work.run(items, lambda _: None)
    assert noted(work) == names(0, 2 * BATCH)


def test_a_full_disk_ends_the_work_and_notes_nothing_that_is_not_there(
    work: Work, items: list[Input], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(name: str) -> None:
        if name == "06":
            raise OSError(errno.ENOSPC, "No space left on device")

    replace_write(monkeypatch, full)
    with pytest.raises(OSError, match="No space left"):
        work.run(items, lambda _: None)
    assert noted(work) == names(0, BATCH)


def damaged_exif() -> bytes:
    """A JPEG whose EXIF data ends too early, of which Pillow warns."""
    file = io.BytesIO()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0"
    Image.new("RGB", (16, 16)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_readers_of_several_threads_leave_the_filters_of_warnings_as_they_were() -> None:
    content, before = damaged_exif(), list(warnings.filters)
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):
        Image.open(io.BytesIO(content)).close()
    first, second = ExitStack(), ExitStack()
    first.enter_context(without_warnings())
    second.enter_context(without_warnings())
    first.close()  # before the second, which began later
    assert decode_picture(content).shape == (16, 16, 3)
    second.close()
    assert list(warnings.filters) == before


def test_a_pictures_seconds_are_its_share_of_its_batch(
    work: Work, items: list[Input], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a batch takes 6 s; of the second batch one of four pictures cannot be read."""
    now = iter(float(6 * number) for number in range(2 * COUNT))
    monkeypatch.setattr(work_module, "time", SimpleNamespace(monotonic=lambda: next(now)))
    work.run(items, lambda _: None)
    journal = Journal(work.output.folder)
    rows = [journal.row(f"{number:02}") for number in (0, 4, 5, 12)]
    assert [row and row.seconds for row in rows] == [1.5, 2.0, 0.0, 3.0]


def test_a_batch_of_which_nothing_can_be_read_is_noted(work: Work, items: list[Input]) -> None:
    counts: list[int] = []
    work.run([items[5]], counts.append)
    assert counts == [1]
    row = Journal(work.output.folder).row("05")
    assert row is not None
    assert (row.path, row.error) == (items[5].path, "not a readable picture")


def test_the_journal_of_a_process_has_its_rank(work: Work, items: list[Input]) -> None:
    replace(work, rank=3).run(items[:1], lambda _: None)
    assert [path.name for path in work.output.folder.glob("rows-*")] == ["rows-3.jsonl"]
