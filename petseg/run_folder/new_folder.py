"""Removes the folder of work that fails before it starts."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


def missing_folders(folder: Path) -> list[Path]:
    """`folder` and its parents, as far as they do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


@contextlib.contextmanager
def removed_unless_started(missing: Sequence[Path], has_started: Callable[[BaseException], bool]) -> Iterator[None]:
    """If the block raises before the work has started, remove the folders that it made.

    missing: from `missing_folders`, before the block. The innermost is removed with its content, parents only if empty.
    """
    try:
        yield
    except BaseException as error:
        if missing and not has_started(error):
            shutil.rmtree(missing[0], ignore_errors=True)
            for parent in missing[1:]:
                with contextlib.suppress(OSError):
                    parent.rmdir()
        raise
