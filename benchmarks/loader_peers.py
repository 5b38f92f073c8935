"""Ways of loading that petseg is measured against, each as a user of it writes it who wants speed.

A way is set up once and is then called with an epoch number; it goes through one epoch in batches and returns how
many samples it saw. torchvision and webdataset run in the benchmark's own process. LitData and MosaicML Streaming want
older packages than petseg does, so this file is also a script that runs under another Python, in which petseg need not
be installed: `PYTHON benchmarks/loader_peers.py NAME SHARDS SCRATCH` reads an epoch number a line and answers with the
number of samples.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

Way = Callable[[int], int]
Pair = tuple[torch.Tensor, torch.Tensor]  # picture, mask: uint8
BATCH_SIZE = 16
SIZE_PX = 256
SHUFFLE_BUFFER = 1000  # samples that webdataset draws from


def decode_picture(jpg: bytes) -> torch.Tensor:
    """JPEG -> (256, 256, 3) uint8, squashed with antialias where it has another size."""
    pixels = simplejpeg.decode_jpeg(jpg, "RGB")
    if pixels.shape[:2] == (SIZE_PX, SIZE_PX):
        return torch.from_numpy(pixels)
    return _resize(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0)


def decode_mask(png: bytes) -> torch.Tensor:
    """8-bit grey PNG -> (256, 256) uint8, squashed to the nearest pixel where it has another size."""
    mask: Image.Image = Image.open(io.BytesIO(png), formats=["PNG"])
    if mask.size != (SIZE_PX, SIZE_PX):
        mask = mask.resize((SIZE_PX, SIZE_PX), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(mask))


def _resize(picture: torch.Tensor) -> torch.Tensor:
    """(3, H, W) uint8 -> (3, 256, 256) uint8, antialiased; on uint8, which is torchvision's quickest way."""
    from torchvision.transforms.v2 import functional  # type: ignore[import-untyped, unused-ignore]  # no types

    return functional.resize(picture, [SIZE_PX, SIZE_PX], antialias=True)


def count_samples(batches: Iterable[Any]) -> int:
    """Go through batches whose first field, or field "image", is the pictures."""
    return sum(len(batch["image"] if isinstance(batch, dict) else batch[0]) for batch in batches)


def torchvision_folder(root: Path, on_tensors: bool) -> Way:
    """torchvision's data set class (root holds oxford-iiit-pet/) and torch's DataLoader, in one process.

    on_tensors: resize uint8 tensors, which is quicker, instead of the Pillow images that the class gives.
    """
    from torchvision.datasets import OxfordIIITPet  # type: ignore[import-untyped, unused-ignore]  # no types
    from torchvision.transforms import InterpolationMode  # type: ignore[import-untyped, unused-ignore]  # no types
    from torchvision.transforms.v2 import functional

    def on_images(picture: Image.Image, mask: Image.Image) -> Pair:
        picture = functional.resize(picture, [SIZE_PX, SIZE_PX])
        mask = functional.resize(mask, [SIZE_PX, SIZE_PX], InterpolationMode.NEAREST)
        return functional.pil_to_tensor(picture), functional.pil_to_tensor(mask)[0]

    def on_uint8(picture: Image.Image, mask: Image.Image) -> Pair:
        small = functional.resize(functional.pil_to_tensor(mask), [SIZE_PX, SIZE_PX], InterpolationMode.NEAREST)
        return _resize(functional.pil_to_tensor(picture)), small[0]

    transform = on_uint8 if on_tensors else on_images
    parts = [
        OxfordIIITPet(root, split, target_types="segmentation", transforms=transform) for split in ("trainval", "test")
    ]
    loader: DataLoader[Pair] = DataLoader(ConcatDataset(parts), BATCH_SIZE, shuffle=True, num_workers=0)
    return lambda epoch: count_samples(loader)


def webdataset_shards(folder: Path) -> Way:
    """Stock webdataset: shards and a buffer of samples are shuffled before anything is decoded."""
    import webdataset

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards))
        .shuffle(SHUFFLE_BUFFER)
        .to_tuple("jpg", "png")
        .map_tuple(decode_picture, decode_mask)
        .batched(BATCH_SIZE)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=0)
    return lambda epoch: count_samples(loader)


def read_tars(folder: Path) -> Iterator[dict[str, bytes]]:
    """{"jpg": ..., "png": ...} of every sample of a shard set, with the standard library alone."""
    for path in sorted(folder.glob("*.tar")):
        sample: dict[str, bytes] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                file, suffix = tar.extractfile(member), member.name.rpartition(".")[2]
                assert file is not None, f"{member.name} in {path} is not a file"
                sample[suffix] = file.read()
                if suffix == "json":  # a sample's last member
                    yield {"jpg": sample["jpg"], "png": sample["png"]}


def decode_sample(sample: dict[str, bytes]) -> dict[str, torch.Tensor]:
    return {"image": decode_picture(sample["jpg"]), "mask": decode_mask(sample["png"])}


def litdata_chunks(shards: Path, scratch: Path) -> Way:
    """LitData's optimize() to a local folder, then its streaming data set and loader."""
    import litdata  # type: ignore[import-not-found, unused-ignore]  # an extra

    litdata.optimize(
        fn=read_tars, inputs=[shards], output_dir=str(scratch), num_workers=1, chunk_bytes="64MB", start_method="fork"
    )
    dataset = litdata.StreamingDataset(str(scratch), shuffle=True, transform=decode_sample)
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=0)
    return lambda epoch: count_samples(loader)


def mds_shards(shards: Path, scratch: Path) -> Way:
    """MosaicML Streaming's own format in a local folder, its data set, and torch's DataLoader."""
    import streaming  # type: ignore[import-not-found, unused-ignore]  # an extra
    from streaming.base import util  # type: ignore[import-not-found, unused-ignore]  # an extra

    util.clean_stale_shared_memory()
    with streaming.MDSWriter(out=str(scratch), columns={"jpg": "bytes", "png": "bytes"}) as writer:
        for sample in read_tars(shards):
            writer.write(sample)

    # without the package its base is Any to mypy
    class Decoded(streaming.StreamingDataset):  # type: ignore[misc, unused-ignore]  # of an extra
        def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
            return decode_sample(super().__getitem__(at))

    dataset = Decoded(local=str(scratch), shuffle=True, batch_size=BATCH_SIZE)
    loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(dataset, BATCH_SIZE, num_workers=0)
    return lambda epoch: count_samples(loader)


WORKERS: dict[str, Callable[[Path, Path], Way]] = {"litdata": litdata_chunks, "mds": mds_shards}


@contextmanager
def worker(python: Path, name: str, shards: Path, scratch: Path) -> Iterator[Way]:
    """A way that runs in a process of its own under another Python; idle while other ways take their turn.

    Raises OSError, with the last of what the process had to say, if it ends early.
    """
    command = [str(python), __file__, name, str(shards), str(scratch)]
    log = scratch.with_suffix(".log")
    with log.open("wb") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:
        _answer(process, log)  # ready
        yield partial(_ask, process, log)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ask(process: subprocess.Popen[str], log: Path, epoch: int) -> int:
    assert process.stdin is not None
    process.stdin.write(f"{epoch}\n")
    process.stdin.flush()
    return _answer(process, log)


def _answer(process: subprocess.Popen[str], log: Path) -> int:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise OSError(f"the process of {log.stem} ended with exit code {process.wait(timeout=30)}:\n{last}")
    return int(line)


def main(argv: list[str]) -> None:
    """Set one way up, say so with a zero, then go through an epoch for each line that comes in."""
    name, shards, scratch = argv
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not stand among the answers
    torch.set_num_threads(1)
    way = WORKERS[name](Path(shards), Path(scratch))
    print(0, file=answers, flush=True)
    for line in sys.stdin:
        print(way(int(line)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
