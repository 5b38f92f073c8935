"""Tars as stock webdataset or tar make them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import webdataset

Files = Iterable[tuple[str, bytes]]


def write_webdataset(folder: Path, pair, split: str, count: int, **extra: object) -> None:
    pattern = str(folder / f"{split}-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
        for seed in range(count):
            jpg, png = pair(seed)
            writer.write({"__key__": f"{split}_{seed}", "jpg": jpg, "png": png, **extra})


def write_tar(path: Path, files: Files, format: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
