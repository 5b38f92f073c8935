"""Folders in the data set's layout, drawn and odd ones, and shard sets packed from them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from shards.pack import PackConfig, pack
from shards.sources.pets.synthetic import draw_folder
from tests.scenes import Scenes, encode

NUM_PETS = 60
settings.register_profile("petseg", deadline=None)  # a busy machine is no failed law
settings.load_profile("petseg")

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn pets; leave it as it is."""
    folder = tmp_path_factory.mktemp("drawn") / "pets"
    draw_folder(folder, number=NUM_PETS, seed=1, longer_side_px=48)
    return folder


@pytest.fixture(scope="session")
def packed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of several shards; leave it as it is."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack(PackConfig(out=out, source=drawn, samples_per_shard=10, workers=1))
    return out


@pytest.fixture
def shard_set(packed: Path, tmp_path: Path) -> Path:
    """A copy of the shard set, to be damaged."""
    return Path(shutil.copytree(packed, tmp_path / "shards"))


class OddFolder:
    """A folder in the layout, built file by file; every sample is a good one unless bytes say otherwise."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "images").mkdir(parents=True)
        (root / "annotations" / "trimaps").mkdir(parents=True)
        self.write_list("trainval", [])
        self.write_list("test", [])

    def write_list(self, name: str, lines: list[str]) -> None:
        (self.root / "annotations" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))

    def picture(self, key: str) -> Path:
        return self.root / "images" / f"{key}.jpg"

    def trimap(self, key: str) -> Path:
        return self.root / "annotations" / "trimaps" / f"{key}.png"

    def add(self, key: str, *, jpg: bytes | None = None, png: bytes | None = None, name: str = "trainval") -> None:
        self.picture(key).write_bytes(encode(rgb()) if jpg is None else jpg)
        self.trimap(key).write_bytes(encode(trimap(), "PNG") if png is None else png)
        with (self.root / "annotations" / f"{name}.txt").open("a") as file:
            file.write(f"{key} 1 1 1\n")


@pytest.fixture
def odd(tmp_path: Path) -> OddFolder:
    return OddFolder(tmp_path / "odd")


def rgb(width: int = 24, height: int = 16) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def trimap(width: int = 24, height: int = 16) -> Image.Image:
    values = np.full((height, width), 2, np.uint8)
    values[4:12, 4:12], values[6:10, 6:10] = 3, 1
    return Image.fromarray(values)


@pytest.fixture
def make() -> dict:
    """The picture makers above, for test files: with importlib mode they cannot import this one."""
    return {"rgb": rgb, "trimap": trimap, "encode": encode}


@pytest.fixture
def pair(make):
    """(picture, mask) of a seed, as bytes."""

    def of(seed: int, **values: int) -> tuple[bytes, bytes]:
        meaning = {"pet": 1, "background": 2, "border": 3} | values
        mask = np.asarray(make["trimap"](24 + seed))
        table = np.zeros(4, np.uint8)
        table[1:] = meaning["pet"], meaning["background"], meaning["border"]
        return make["encode"](make["rgb"](24 + seed)), make["encode"](Image.fromarray(table[mask]), "PNG")

    return of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a set of foreign shards is made."""
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


@pytest.fixture
def scenes(tmp_path: Path) -> Scenes:
    """An empty folder of scenes."""
    return Scenes(tmp_path / "scenes")


@pytest.fixture
def many_scenes(scenes: Scenes) -> Scenes:
    """30 scenes: 20 train, 6 val, 4 test."""
    scenes.add_many()
    return scenes


@pytest.fixture(scope="session")
def camvid_root() -> Path:
    """Real street scenes with 12 classes; see CONTRIBUTING for where they come from."""
    pets = Path(os.environ.get("PETSEG_PETS_ROOT", REPOSITORY.parent / "shared" / "data" / "pets"))
    root = Path(os.environ.get("PETSEG_CAMVID_ROOT", pets.parent / "camvid"))
    if not (root / "masks" / "train").is_dir():
        reason = f"no street scenes in {root}: set PETSEG_CAMVID_ROOT"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return root
