"""The rows of metrics.jsonl as TensorBoard events: a file per attempt at a run, in `tensorboard/`.

Events and framing are TensorBoard's, but each epoch is written at once: its EventFileWriter buffers events in a thread
for up to two minutes, and a kill loses them.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

FOLDER_NAME = "tensorboard"
INSTALL = "pip install 'petseg[tensorboard]'"

logger = logging.getLogger(__name__)


class TensorBoard:
    """A view that can neither stop nor slow training: the first error is logged, and ends it for this attempt."""

    def __init__(self, run_folder: Path, rows: Iterable[Mapping[str, Any]], resumed_epoch: int) -> None:
        """rows: those up to `resumed_epoch`, written here if no earlier attempt has written them.

        Raises ValueError if TensorBoard is not installed.
        """
        if find_spec("tensorboard") is None:
            raise ValueError(f"tracking.tensorboard needs TensorBoard: {INSTALL}, or leave it off")
        self._folder = run_folder / FOLDER_NAME
        self._path: Path | None = None
        try:
            self._start(list(rows), resumed_epoch)
        except Exception as error:  # whatever it is, only the view fails
            self._give_up(error)

    def log(self, row: Mapping[str, Any]) -> None:
        """Write one epoch's numbers, with the epoch as TensorBoard's step."""
        if self._path:
            try:
                self._write(self._path, [_event(row)])
            except Exception as error:  # as above
                self._give_up(error)

    def _start(self, rows: list[Mapping[str, Any]], resumed_epoch: int) -> None:
        """Start a new file. TensorBoard reads files in the order of their names, and a START discards later steps."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._folder.mkdir(exist_ok=True)
        earlier = sorted(self._folder.glob("events.out.tfevents.*"))
        first = resumed_epoch + 1 if earlier else 0
        start = SessionLog(status=SessionLog.START)
        events = [
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(wall_time=time.time(), step=first, session_log=start),
            *(_event(row) for row in ([] if earlier else rows)),
        ]
        path = self._folder / f"events.out.tfevents.{len(earlier) + 1:010d}"  # no time: clocks of nodes differ
        self._write(path, events)
        self._path = path

    def _write(self, path: Path, events: Iterable[Any]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        content = io.BytesIO()
        for event in events:
            RecordWriter(content).write(event.SerializeToString())
        with path.open("ab") as file:  # anew for each epoch: a handle kept for hours goes stale on NFS
            file.write(content.getvalue())

    def _give_up(self, error: Exception) -> None:
        self._path = None
        logger.warning(
            "tensorboard is off for this run (%s: %s); metrics.jsonl has everything: delete %s, and its next start "
            "writes it anew", type(error).__name__, error, self._folder,
        )  # fmt: skip


def _event(row: Mapping[str, Any]) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [
        Summary.Value(tag=name, simple_value=float(value))
        for name, value in row.items()
        if name != "epoch" and isinstance(value, Real)
    ]
    return Event(wall_time=time.time(), step=int(row["epoch"]), summary=Summary(value=values))
