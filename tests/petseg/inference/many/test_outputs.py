"""The journal of a folder of predictions, its summary, and whose folder it is."""

from __future__ import annotations

import csv
import errno
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from petseg.inference.many import outputs
from petseg.inference.many.inputs import Input
from petseg.inference.many.outputs import (
    COCO_NAME,
    COMMAND_NAME,
    LOCK_NAME,
    ROWS,
    SUMMARY_NAME,
    WINNER_NAME,
    Journal,
    OutputFolder,
    Row,
    write_summary,
)
from petseg.inference.many.wanted import Wanted, identity
from petseg.inference.predictor import Prediction
from shards.files import NotRegular
from tests.petseg.inference.test_export import header_of

GOOD = Row("a", "a.png", 6, 4, 0.5, 0.75, {"background": 0.25, "cat": 0.75}, [{"category_id": 1}])
BAD = Row("a", "a.png", error="not a readable picture")


def folder_of(path: Path, *rows: Row, rank: int = 0) -> OutputFolder:
    output = OutputFolder(path, ("masks",), coco="run_lengths")
    output.note(rows, rank)
    return output


@pytest.mark.parametrize("rows", [(GOOD, BAD), (BAD, GOOD), (BAD, GOOD, BAD), (replace(GOOD, seconds=9.0), GOOD)])
def test_of_one_name_the_latest_row_of_a_picture_that_was_read_counts(tmp_path: Path, rows: tuple[Row, ...]) -> None:
    folder_of(tmp_path, *rows)
    assert Journal(tmp_path).row("a") == GOOD


def test_rows_of_all_processes_are_read_and_half_a_line_is_not(tmp_path: Path) -> None:
    folder_of(tmp_path, GOOD)
    folder_of(tmp_path, replace(GOOD, name="b"), replace(BAD, name="c"), rank=1)
    with (tmp_path / ROWS.format(0)).open("a") as file:
        file.write(json.dumps(asdict(replace(GOOD, name="d")))[:-5])
    journal = Journal(tmp_path)
    assert [name in journal for name in "abcd"] == [True, True, True, False]
    assert journal.row("b") == replace(GOOD, name="b")
    assert journal.row("c") == replace(BAD, name="c")
    assert journal.row("d") is None


def test_the_summary_has_the_pictures_in_their_order_and_no_formulas(tmp_path: Path) -> None:
    names = ["=b", "gone", "a", "c"]
    rows = [replace(GOOD, name="=b", path=" @x.png"), GOOD, replace(BAD, name="c", error="-1 bytes")]
    output = folder_of(tmp_path, *rows)
    items = [Input(name, f"{name}.png") for name in names]
    assert write_summary(output, items, header_of()) == rows[2:]
    found = list(csv.DictReader((tmp_path / SUMMARY_NAME).read_text().splitlines()))
    assert [row["name"] for row in found] == ["'=b", "a", "c"]
    assert [row["path"] for row in found] == ["' @x.png", "a.png", "a.png"]
    assert found[1] == {
        "name": "a", "path": "a.png", "width": "6", "height": "4", "seconds": "0.5000", "confidence": "0.750000",
        "share_background": "0.250000", "share_cat": "0.750000", "share_dog": "0.000000", "error": "",
    }  # fmt: skip
    assert found[2]["error"] == "'-1 bytes"
    assert found[2]["width"] == found[2]["share_cat"] == ""
    document = json.loads((tmp_path / COCO_NAME).read_text())
    assert [one["name"] for one in document["categories"]] == ["cat", "dog"]
    assert document["images"] == [
        {"id": 1, "file_name": " @x.png", "width": 6, "height": 4},
        {"id": 2, "file_name": "a.png", "width": 6, "height": 4},
    ]
    assert document["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 1},
        {"id": 2, "image_id": 2, "category_id": 1},
    ]


def test_a_picture_is_done_when_it_was_read_and_all_its_files_are_there(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path, ("masks", "overlays"), coco="none")
    for kind in output.kinds:
        assert not output.is_done(GOOD)
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.png").touch()
    assert output.is_done(GOOD)
    assert not output.is_done(BAD)
    assert not output.is_done(None)


def test_a_name_that_no_file_can_have_is_a_row_that_says_so(tmp_path: Path) -> None:
    image, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    one = Prediction(image, mask, header_of(), torch.zeros(3, 4, 4))
    row = OutputFolder(tmp_path, ("masks",), coco="none").write(Input("x" * 300, "x.png"), one, 0.1)
    assert row == Row("x" * 300, "x.png", error="its name is too long")


@pytest.mark.parametrize("left", [[], [LOCK_NAME], [LOCK_NAME, WINNER_NAME]])
def test_a_folder_is_taken_by_one_command(tmp_path: Path, left: list[str]) -> None:
    """What a command that was killed early leaves is no reason against it."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name in left:
        (folder / name).touch()
    output = OutputFolder(folder, ("masks",), coco="none")
    output.claim({"tta": "none", "paths": ("a",)})
    output.claim({"tta": "none", "paths": ["a"]})
    with pytest.raises(ValueError, match=r"holds the outputs of another command \(more, tta differ\)"):
        output.claim({"tta": "flips", "paths": ["a"], "more": 1})
    assert json.loads((folder / COMMAND_NAME).read_text()) == {"tta": "none", "paths": ["a"]}


def test_a_folder_with_files_of_something_else_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"has files of something else: choose another folder"):
        OutputFolder(tmp_path, ("masks",), coco="none").claim({})
    with (
        pytest.raises(ValueError, match=r"has files of something else: choose another folder"),
        OutputFolder(tmp_path, ("masks",), coco="none").locked(),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_is_known_by_all_that_its_outputs_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    plain = identity(Wanted(), [weights], ["photos", "-"])
    assert plain["paths"] == [str(tmp_path / "photos"), "-"]
    assert plain["kinds"] == ["masks"]
    changes: list[dict[str, Any]] = [
        {"probabilities": True}, {"overlays": True}, {"cutouts": True}, {"coco": True}, {"tta": "flips"},
        {"coco": True, "polygons": True}, {"keep_largest": True}, {"min_area_px": 3}, {"precision": "no"},
    ]  # fmt: skip
    others = [identity(Wanted(**one), [weights], ["photos", "-"]) for one in changes]
    assert len({json.dumps(one) for one in (plain, *others)}) == len(changes) + 1
    same = Wanted(device="cpu", batch_size=3, threads=7)
    assert identity(same, [weights], ["photos", "-"]) == plain
    weights.write_bytes(b"other weights")
    assert identity(Wanted(), [weights], ["photos", "-"]) != plain
    with pytest.raises(ValueError, match=r"^--weights gone: No such file or directory$"):
        identity(Wanted(), [Path("gone")], [])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"polygons": True}, "--polygons says how coco.json is written: add --coco"),
        ({"min_area_px": -1}, "--min-area-px -1: must be at least 0"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"threads": 0}, "--threads 0: must be at least 1"),
    ],
)
def test_flags_that_make_no_sense_are_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^{said}$"):
        Wanted(**fields)


def test_coco_holds_what_was_asked_for() -> None:
    assert Wanted().segmentation == "none"
    assert Wanted(coco=True).segmentation == "run_lengths"
    assert Wanted(coco=True, polygons=True).segmentation == "polygons"


def prediction_of(name: str = "a") -> tuple[Input, Prediction]:
    mask = np.zeros((4, 6), np.uint8)
    mask[:, :3] = 1
    return Input(name, f"{name}.png"), Prediction(
        np.zeros((4, 6, 3), np.uint8), mask, header_of(), torch.zeros(3, 4, 6)
    )


def test_the_files_of_a_picture_lie_below_the_folder_of_their_kind(tmp_path: Path) -> None:
    kinds = ("masks", "probabilities", "overlays", "cutouts")
    output = OutputFolder(tmp_path, kinds, coco="none")
    for name in ("a/b/one", "a/b/two"):
        item, prediction = prediction_of(name)
        row = output.write(item, prediction, 0.25)
        shares = {"background": 0.5, "cat": 0.5, "dog": 0.0}
        assert row == Row(name, f"{name}.png", 6, 4, 0.25, pytest.approx(1 / 3), shares, [])
        assert output.is_done(row)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    suffixes = {"masks": "png", "probabilities": "npz", "overlays": "png", "cutouts": "png"}
    assert files == sorted(f"{kind}/a/b/{name}.{suffixes[kind]}" for kind in kinds for name in ("one", "two"))
    for kind, mode in (("masks", "P"), ("overlays", "RGB"), ("cutouts", "RGBA")):
        with Image.open(tmp_path / kind / "a" / "b" / "one.png") as image:
            assert (image.mode, image.size) == (mode, (6, 4))
    with np.load(tmp_path / "probabilities" / "a" / "b" / "one.npz", allow_pickle=False) as arrays:
        assert arrays["probabilities"].shape == (3, 4, 6)
        assert arrays["classes"].tolist() == ["background", "cat", "dog"]


@pytest.mark.parametrize(("coco", "kind"), [("none", None), ("run_lengths", dict), ("polygons", list)])
def test_a_row_has_the_annotations_that_are_asked_for(tmp_path: Path, coco: Any, kind: type | None) -> None:
    row = OutputFolder(tmp_path, ("masks",), coco).write(*prediction_of(), 0.25)
    assert [type(one["segmentation"]) for one in row.annotations] == ([kind] if kind else [])
    assert [one["category_id"] for one in row.annotations] == ([1] if kind else [])


def test_an_error_of_the_disk_is_no_property_of_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        OutputFolder(tmp_path, ("masks",), coco="none").write(*prediction_of(), 0.25)


def test_a_journal_behind_a_link_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    folder_of(tmp_path, GOOD)
    (tmp_path / "out" / ROWS.format(0)).symlink_to(tmp_path / ROWS.format(0))
    with pytest.raises(NotRegular):
        Journal(tmp_path / "out")


@pytest.mark.parametrize("line", [b"", b"[]", b"1", b"{}", b'{"name": 1, "path": "a"}', b'{"name": "b"', b"\xff"])
def test_lines_that_are_no_rows_are_passed_over(tmp_path: Path, line: bytes) -> None:
    (tmp_path / ROWS.format(0)).write_bytes(line + b"\n")
    folder_of(tmp_path, GOOD)
    assert Journal(tmp_path).row("a") == GOOD
    assert "b" not in Journal(tmp_path)


def test_only_what_was_half_written_among_the_outputs_is_removed(tmp_path: Path) -> None:
    """Folders of other kinds and those behind links may be somebody else's."""
    half, elsewhere = ".1.png.0123456789ab.tmp", tmp_path / "elsewhere"
    out = tmp_path / "out"
    for folder in (elsewhere, out / "masks" / "deep", out / "other"):
        folder.mkdir(parents=True)
        (folder / half).touch()
    (out / half).touch()
    (out / "overlays").symlink_to(elsewhere)
    OutputFolder(out, ("masks", "overlays"), coco="none").remove_half_written()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob(half))
    assert left == [f"elsewhere/{half}", f"out/other/{half}"]


def test_a_folder_is_free_again_after_a_command_that_failed(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "new" / "out", ("masks",), coco="none")

    def fail() -> None:
        with output.locked():
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fail()
    with output.locked(), pytest.raises(ValueError, match="another command is writing there; wait until it has ended"):
        fail()


def test_without_coco_there_is_no_document_of_it(tmp_path: Path) -> None:
    output = replace(folder_of(tmp_path, GOOD), coco="none")
    assert write_summary(output, [Input("a", "a.png")], header_of()) == []
    assert not (tmp_path / COCO_NAME).exists()
