"""The folder that predictions are written to.

    predict.json                 the command: another one is refused, the same one does what is missing
    masks/NAME.png               classes, in the classes' colours
    probabilities/NAME.npz       probabilities (K, H, W) float32, classes (K,)
    overlays/NAME.png, cutouts/NAME.png
    rows-RANK.jsonl              a line for each picture that is done or could not be read
    summary.csv, coco.json       all pictures, written at the end
    .lock                        held by the command that works on the folder
    winner.safetensors           weights that were written for this folder alone

Files appear whole. A picture counts as done once its line is written, after its files.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from petseg.inference.header import Header
from petseg.inference.many.coco import annotate
from petseg.inference.many.inputs import Input
from petseg.inference.many.wanted import Segmentation
from petseg.inference.predictor import Prediction
from shards.files import (
    HALF_WRITTEN,
    append,
    build,
    decode_json,
    open_regular,
    read_json_object,
    require_own_folder,
    write_whole,
    writing_whole,
)

COMMAND_NAME, SUMMARY_NAME, COCO_NAME, ROWS = "predict.json", "summary.csv", "coco.json", "rows-{}.jsonl"
LOCK_NAME, WINNER_NAME = ".lock", "winner.safetensors"
BEFORE_CLAIM = (LOCK_NAME, WINNER_NAME)  # what a command that was killed early leaves
SUFFIXES = {"masks": ".png", "probabilities": ".npz", "overlays": ".png", "cutouts": ".png"}
FORMULA = ("=", "+", "-", "@")  # spreadsheets compute what begins like this


@dataclass(frozen=True)
class Row:
    """What is known of one picture."""

    name: str
    path: str
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    confidence: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    annotations: list[Any] = field(default_factory=list)
    error: str = ""  # why it could not be read


@dataclass(frozen=True)
class OutputFolder:
    """Writes what was asked for of each picture."""

    folder: Path
    kinds: tuple[str, ...]  # of SUFFIXES
    coco: Segmentation

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One command at a time; makes the folder. Raises ValueError if another one is at work, and as `claim`."""
        self.require_ours()
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK_NAME, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"--out {self.folder}: another command is writing there; wait until it has ended, or choose another "
                "folder"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def require_ours(self) -> None:
        """Raises ValueError for a folder with other files than outputs."""
        require_own_folder(self.folder)
        if (self.folder / COMMAND_NAME).exists() or not self.folder.exists():
            return
        if any(path.name not in BEFORE_CLAIM for path in self.folder.iterdir()):
            raise ValueError(f"--out {self.folder} has files of something else: choose another folder")

    def claim(self, command: Mapping[str, Any]) -> None:
        """Note the command, or check that the folder holds what the same one began.

        Raises ValueError for the outputs of another command, and for a folder with other files.
        """
        self.require_ours()
        path = self.folder / COMMAND_NAME
        try:
            stored = read_json_object(path, "choose another --out")
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(command, indent=2) + "\n")
            return
        wanted = json.loads(json.dumps(command))
        if changed := [name for name in sorted(stored | wanted) if stored.get(name) != wanted.get(name)]:
            raise ValueError(
                f"--out {self.folder} holds the outputs of another command ({', '.join(changed)} differ): choose "
                "another folder"
            )

    def remove_half_written(self) -> None:
        """Remove what processes that were killed left beside the outputs; nobody else may be writing there."""
        for top in (self.folder, *(self.folder / kind for kind in self.kinds)):
            for root, folders, files in () if top.is_symlink() else os.walk(top):
                if top == self.folder:
                    folders.clear()
                for name in files:
                    if HALF_WRITTEN.fullmatch(name):
                        (Path(root) / name).unlink(missing_ok=True)

    def path(self, kind: str, name: str) -> Path:
        """Raises NotRegular where a link would lead out of the folder."""
        path = self.folder / kind / f"{name}{SUFFIXES[kind]}"
        for above in path.relative_to(self.folder).parents:
            require_own_folder(self.folder / above)
        return path

    def write(self, item: Input, prediction: Prediction, seconds: float) -> Row:
        """Write the files of one picture; returns its row, for `note`."""
        height, width = prediction.mask.shape
        try:
            for kind in self.kinds:
                path = self.path(kind, item.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, _content(kind, prediction))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return Row(item.name, item.shown, error="its name is too long")
        found = [] if self.coco == "none" else annotate(prediction, self.coco)
        return Row(item.name, item.shown, width, height, seconds, prediction.confidence, prediction.shares, found)

    def note(self, rows: Sequence[Row], rank: int | str) -> None:
        """Add the rows of pictures whose files are written; they are on disk when this returns."""
        append(self.folder / ROWS.format(rank), "".join(json.dumps(asdict(row)) + "\n" for row in rows))

    def is_done(self, row: Row | None) -> bool:
        return row is not None and not row.error and all(self.path(kind, row.name).exists() for kind in self.kinds)


class Journal:
    """The rows of a folder, read from disk when they are needed; of one name's, one of a picture that was read."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, tuple[Path, int, int]] = {}
        good = set[str]()
        for path in sorted(folder.glob(ROWS.format("*"))):
            with open_regular(path, follow=False) as file:
                offset = 0
                for line in file:
                    row = _row_of(line)
                    if row is not None and not (row.error and row.name in good):
                        self._places[row.name] = (path, offset, len(line))
                        good.update([] if row.error else [row.name])
                    offset += len(line)

    def __contains__(self, name: str) -> bool:
        """Whether the picture was predicted, or could not be read."""
        return name in self._places

    def row(self, name: str) -> Row | None:
        if name not in self._places:
            return None
        path, offset, num_bytes = self._places[name]
        with open_regular(path, follow=False) as file:
            file.seek(offset)
            return _row_of(file.read(num_bytes))


def write_summary(output: OutputFolder, items: Sequence[Input], header: Header) -> list[Row]:
    """Write summary.csv and, if asked for, coco.json, in the order of the pictures; returns those not read."""
    journal, bad = Journal(output.folder), list[Row]()
    shares = [f"share_{name}" for name in header.names]
    with writing_whole(output.folder / SUMMARY_NAME) as file:
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["name", "path", "width", "height", "seconds", "confidence", *map(_plain, shares), "error"])
        for row in _rows(journal, items):
            numbers = [str(row.width), str(row.height), f"{row.seconds:.4f}", f"{row.confidence:.6f}"]
            numbers += [f"{row.shares.get(name, 0):.6f}" for name in header.names]
            cells = [""] * len(numbers) if row.error else numbers
            writer.writerow([_plain(row.name), _plain(row.path), *cells, _plain(row.error)])
            if row.error:
                bad.append(row)
        text.flush()
        text.detach()
    if output.coco != "none":
        _write_coco(output.folder / COCO_NAME, journal, items, header)
    return bad


def _write_coco(path: Path, journal: Journal, items: Sequence[Input], header: Header) -> None:
    """The document of COCO, written picture by picture: it can be larger than memory."""
    categories = [
        {"id": one.value, "name": one.name, "color": list(one.colour), "isthing": 1}
        for one in header.classes
        if one.value in header.counted
    ]
    with writing_whole(path) as file:
        file.write(f'{{"info": {json.dumps({"description": "petseg.predict"})},\n'.encode())
        file.write(f'"categories": {json.dumps(categories)},\n"images": ['.encode())
        for number, row in enumerate(_good(journal, items), start=1):
            image = {"id": number, "file_name": row.path, "width": row.width, "height": row.height}
            file.write(f"{',' * (number > 1)}\n{json.dumps(image)}".encode())
        file.write(b'],\n"annotations": [')
        count = 0
        for number, row in enumerate(_good(journal, items), start=1):
            for one in row.annotations:
                count += 1
                file.write(f"{',' * (count > 1)}\n{json.dumps({'id': count, 'image_id': number, **one})}".encode())
        file.write(b"]}\n")


def _rows(journal: Journal, items: Sequence[Input]) -> Iterator[Row]:
    return filter(None, (journal.row(item.name) for item in items))


def _good(journal: Journal, items: Sequence[Input]) -> Iterator[Row]:
    return (row for row in _rows(journal, items) if not row.error)


def _row_of(line: bytes) -> Row | None:
    """A line of the journal; None for the half of one that a kill leaves."""
    try:
        content = decode_json(line)
        rows = {"shares": content.pop("shares", {}), "annotations": content.pop("annotations", [])}
        return Row(**{**vars(build(Row, content)), **rows})
    except (ValueError, TypeError, AttributeError):
        return None


def _content(kind: str, prediction: Prediction) -> bytes:
    """The bytes of one output."""
    if kind == "probabilities":
        file = io.BytesIO()
        names = np.array(prediction.header.names)
        np.savez_compressed(file, allow_pickle=False, probabilities=prediction.probabilities, classes=names)
        return file.getvalue()
    drawn = {"masks": prediction.as_image, "overlays": prediction.overlay, "cutouts": prediction.cutout}[kind]()
    return _png(drawn)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _plain(text: str) -> str:
    """The text for a spreadsheet: what begins like a formula gets an apostrophe in front."""
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text
