"""Tars whose members have holes: what lies in the tar is not the file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from shards.command import Failure
from shards.foreign import ForeignConfig, index_folder


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_a_sparse_picture_is_refused_by_name(folder: Path, pair, tmp_path: Path, format: str) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("cat_0", "cat_1"):
        jpg, png = pair(0)
        (pictures / f"{name}.jpg").write_bytes(jpg)
        (pictures / f"{name}.png").write_bytes(png)
    os.truncate(pictures / "cat_0.jpg", 64 << 10)
    (pictures / "note.txt").write_bytes(bytes(range(256)) * 1024)
    names = sorted(path.name for path in pictures.iterdir())
    command = ["tar", "--sparse", f"--format={format}", "-C", str(pictures), "-cf", str(folder / "train.tar"), *names]
    subprocess.run(command, check=True, timeout=60)
    with pytest.raises(Failure, match=r"cat_0\.jpg is a sparse file: pack the shard again") as error:
        index_folder(folder, ForeignConfig())
    assert "cat_1" not in str(error.value)
