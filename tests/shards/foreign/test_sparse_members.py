"""Tars whose members have holes: what lies in the tar is not the file."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from shards.command import Failure
from shards.foreign.index import ForeignConfig, index_folder


def tar_sparse(pictures: Path, names: list[str], format: str, to: Path) -> None:
    command = ["tar", "--sparse", f"--format={format}", "-C", str(pictures), "-cf", str(to), *names]
    subprocess.run(command, check=True, timeout=60)


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
    tar_sparse(pictures, names, format, folder / "train.tar")
    with pytest.raises(Failure, match=r"cat_0\.jpg is a sparse file: pack the shard again") as error:
        index_folder(folder, ForeignConfig())
    assert "cat_1" not in str(error.value)


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_a_sparse_picture_at_the_end_is_not_called_cut_short(folder: Path, pair, tmp_path: Path, format: str) -> None:
    """Although the file it unpacks to is longer than what is left of the tar."""
    shard = folder / "train.tar"
    write_sparse_last(tmp_path, pair, format, shard)
    with pytest.raises(Failure, match=r"cat_0\.jpg is a sparse file: pack the shard again") as error:
        index_folder(folder, ForeignConfig())
    assert "cut short" not in str(error.value)


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_a_sparse_picture_that_is_cut_off_is_called_cut_short(folder: Path, pair, tmp_path: Path, format: str) -> None:
    shard = folder / "train.tar"
    write_sparse_last(tmp_path, pair, format, shard)
    with tarfile.open(shard) as tar:
        data_at = tar.getmembers()[-1].offset_data
    os.truncate(shard, data_at + 100)
    with pytest.raises(Failure, match=r"cut short: cat_0\.jpg is cut off after 100 bytes"):
        index_folder(folder, ForeignConfig())


def write_sparse_last(root: Path, pair, format: str, shard: Path) -> None:
    """A tar whose last member is a picture of 1 MiB, nearly all of it a hole."""
    pictures = root / "pictures"
    pictures.mkdir()
    jpg, png = pair(0)
    (pictures / "cat_0.jpg").write_bytes(jpg)
    (pictures / "cat_0.png").write_bytes(png)
    os.truncate(pictures / "cat_0.jpg", 1 << 20)
    tar_sparse(pictures, ["cat_0.png", "cat_0.jpg"], format, shard)
