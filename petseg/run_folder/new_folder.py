"""A folder that was made for work which then could not begin does not stay behind."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


def missing_folders(folder: Path) -> list[Path]:
    """`folder` and those of its parents that do not exist, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


@contextlib.contextmanager
def removed_unless_begun(missing: Sequence[Path], has_begun: Callable[[BaseException], bool]) -> Iterator[None]:
    """Where the block raises before the work has begun, remove the folders that it made.

    missing: from `missing_folders`, before the block. The innermost is removed with all that it holds, and a parent
    only if it is empty.
    """
    try:
        yield
    except BaseException as error:
        if missing and not has_begun(error):
            shutil.rmtree(missing[0], ignore_errors=True)
            for parent in missing[1:]:
                with contextlib.suppress(OSError):
                    parent.rmdir()
        raise
