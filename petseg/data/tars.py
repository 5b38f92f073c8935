"""Read samples of a shard set by shard and byte offset, and decode them to uint8 arrays."""

from __future__ import annotations

import io
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from shards.command import Failure
from shards.manifest import Manifest, Member, Sample, load_index

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Decoded:
    """One sample at the size of the network."""

    key: str
    image: Pixels  # (H, W, 3) uint8, RGB
    trimap: Pixels  # (H, W) uint8, values of the manifest's source.trimap


class TarReader:
    """Random access to the samples of one split; safe to use from many threads.

    Holds one open file per shard that was read, until `close`.
    """

    def __init__(self, folder: Path | str, manifest: Manifest, split: str, image_size_px: int) -> None:
        self.folder = Path(folder)
        self.image_size_px = image_size_px
        self.samples: list[tuple[str, Sample]] = [
            (shard.name, sample) for shard in manifest.of_split(split) for sample in load_index(folder, shard.name)
        ]
        expected = manifest.splits[split].num_samples
        if len(self.samples) != expected:
            raise ValueError(
                f"the indices of split {split} in {folder} list {len(self.samples)} samples, the manifest says "
                f"{expected}: check the set with `python -m shards.verify {folder}`"
            )
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, position: int) -> str:
        return self.samples[position][1].key

    def read(self, position: int) -> Decoded:
        """Read and decode the sample at a position of the split; raises Failure that names shard, key and offset."""
        shard, sample = self.samples[position]
        try:
            image = decode_image(self._bytes(shard, sample.jpg), self.image_size_px)
            trimap = decode_trimap(self._bytes(shard, sample.png), self.image_size_px)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise Failure(
                f"cannot read sample {sample.key} at byte {sample.jpg.offset} of {self.folder / shard}: {error}; "
                f"find all damage with `python -m shards.verify {self.folder}`"
            ) from error
        return Decoded(sample.key, image, trimap)

    def close(self) -> None:
        with self._lock:
            for file in self._files.values():
                os.close(file)
            self._files.clear()

    def _bytes(self, shard: str, member: Member) -> bytes:
        with self._lock:
            file = self._files.get(shard)
            if file is None:
                file = self._files[shard] = os.open(self.folder / shard, os.O_RDONLY | os.O_CLOEXEC)
        content = os.pread(file, member.num_bytes, member.offset)
        if len(content) != member.num_bytes:
            raise OSError(f"the shard ends after {len(content)} of {member.num_bytes} bytes")
        return content


def decode_image(content: bytes, image_size_px: int) -> Pixels:
    """JPEG -> (size, size, 3) uint8 RGB, squashed with antialiased bilinear interpolation."""
    image = simplejpeg.decode_jpeg(content, colorspace="RGB")
    if image.shape[:2] == (image_size_px, image_size_px):
        return image
    squashed = Image.fromarray(image).resize((image_size_px, image_size_px), Image.Resampling.BILINEAR)
    return np.array(squashed)


def decode_trimap(content: bytes, image_size_px: int) -> Pixels:
    """PNG -> (size, size) uint8, squashed to the nearest pixel so that its values stay what they are."""
    with Image.open(io.BytesIO(content), formats=["PNG"]) as trimap:
        if trimap.mode != "L":
            raise ValueError(f"the trimap has mode {trimap.mode}, not 8-bit grey")
        if trimap.size != (image_size_px, image_size_px):
            return np.array(trimap.resize((image_size_px, image_size_px), Image.Resampling.NEAREST))
        return np.array(trimap)
