"""A folder in the Oxford-IIIT Pet layout, or torchvision's download of it, as a list of samples.

The layout is `images/KEY.jpg`, `annotations/trimaps/KEY.png` and `annotations/{trainval,test}.txt` with lines of
`KEY CLASS-ID SPECIES BREED-ID`. An optional `source.json` (name, attribution) says what else lies in that layout.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.files import decode_json, read_text_file
from shards.index import KEY_PATTERN
from shards.manifest import Source
from shards.sources.listing import MAX_KEY_LENGTH, NAMED, Listing, Mask
from shards.sources.pets.trimaps import read_trimap

OXFORD = Source(
    name="oxford-iiit-pet",
    attribution=(
        'O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar, "Cats and Dogs", CVPR 2012; CC BY-SA 4.0; '
        "https://www.robots.ox.ac.uk/~vgg/data/pets/"
    ),
)
SPECIES = {1: "cat", 2: "dog"}
VAL_EVERY = 10  # every tenth line of trainval.txt, from the first on, is validation


@dataclass(frozen=True)
class Pet:
    """One listed pair of picture and trimap."""

    key: str
    split: str
    picture: Path
    trimap: Path
    class_id: int  # 1 to 37, as in the lists
    breed: str
    species: str

    def files(self) -> tuple[Path, ...]:
        return self.picture, self.trimap

    def row(self) -> list[Any]:
        return [self.key, self.split, self.class_id, self.breed, self.species]

    def facts(self) -> dict[str, Any]:
        return {"class_id": self.class_id, "breed": self.breed, "species": self.species}

    def read_mask(self, picture: np.ndarray) -> Mask:
        return read_trimap(self.trimap, (picture.shape[1], picture.shape[0]), self.picture)


@dataclass(frozen=True)
class PetFolder(Listing):
    """A listing whose samples are pets."""

    samples: tuple[Pet, ...]


def read_folder(path: Path) -> PetFolder:
    """List the samples of a folder in the layout, or of the one folder in it that has the layout.

    Raises ValueError that names the file: no such folder, a missing list, picture or trimap, a key that is not
    `[A-Za-z0-9_-]+`, or one listed twice.
    """
    root = find_root(path)
    pets = tuple(_read_lists(root))
    if not pets:
        raise ValueError(f"{root / 'annotations'}: the lists trainval.txt and test.txt are empty")
    pictures, trimaps = _file_names(root / "images"), _file_names(root / "annotations" / "trimaps")
    _refuse_missing("picture", [pet.picture for pet in pets if pet.picture.name not in pictures])
    _refuse_missing("trimap", [pet.trimap for pet in pets if pet.trimap.name not in trimaps])
    keys = {pet.key for pet in pets}
    oddities: dict[str, tuple[str, ...]] = {}
    for names, suffix, unlisted in ((pictures, ".jpg", "unlisted_picture"), (trimaps, ".png", "unlisted_trimap")):
        for name in sorted(names):
            if name.removesuffix(suffix) not in keys or not name.endswith(suffix):
                kind = _kind_of_extra(name, suffix, unlisted)
                oddities[kind] = (*oddities.get(kind, ()), name)
    return PetFolder(_read_source(root), pets, oddities)


def find_root(path: Path) -> Path:
    """`path`, or the one folder in it that has the layout (torchvision makes ROOT/oxford-iiit-pet)."""
    if not path.is_dir():
        raise ValueError(
            f"{path.absolute()} is not a folder: name one in the Oxford-IIIT Pet layout, or use --download"
        )
    marker = Path("annotations") / "trainval.txt"
    if (path / marker).is_file():
        return path
    roots = sorted(child for child in path.iterdir() if (child / marker).is_file())
    if len(roots) == 1:
        return roots[0]
    found = ", ".join(root.name for root in roots) or "none"
    raise ValueError(f"{path} has no {marker}, nor has exactly one of its folders (with it: {found})")


def download(root: Path) -> Path:
    """Fetch the data set (0.8 GB) into root/oxford-iiit-pet, unless it is there; torchvision checks the md5 sums.

    torchvision takes two existing folders for a finished download, so a killed extraction would pass for whole:
    it works aside, and the folder appears once it is complete.
    """
    final = root / "oxford-iiit-pet"
    if final.exists():
        return final
    from torchvision.datasets import OxfordIIITPet  # type: ignore[import-untyped]  # 3.6 s: only here

    aside = root / ".download"
    for half in ("images", "annotations"):
        shutil.rmtree(aside / final.name / half, ignore_errors=True)
    aside.mkdir(parents=True, exist_ok=True)
    try:
        OxfordIIITPet(root=str(aside), download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"cannot download Oxford-IIIT Pet ({error}). Without network: fetch images.tar.gz and annotations.tar.gz "
            f"from https://www.robots.ox.ac.uk/~vgg/data/pets/ on another machine, extract both into {final} and "
            f"pack with `--source {final}`; or try drawn pets with `--synthetic 400`"
        ) from error
    for archive in (aside / final.name).glob("*.tar.gz"):
        archive.unlink()
    os.replace(aside / final.name, final)  # noqa: PTH105 - the verb the house uses for "appears whole"
    aside.rmdir()
    return final


def _read_lists(root: Path) -> Iterator[Pet]:
    seen: dict[str, str] = {}
    for name in ("trainval", "test"):
        path = root / "annotations" / f"{name}.txt"
        try:
            lines = read_text_file(path, "the list").splitlines()
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: it says which pictures belong to which split") from None
        index = 0
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("#"):
                continue
            where = f"{path}:{number}"
            split = "test" if name == "test" else "val" if index % VAL_EVERY == 0 else "train"
            pet = _read_line(root, line.split(), split, where)
            if pet.key in seen:
                raise ValueError(f"{where}: key {pet.key!r} is listed twice, first at {seen[pet.key]}")
            seen[pet.key] = where
            index += 1
            yield pet


def _read_line(root: Path, words: list[str], split: str, where: str) -> Pet:
    try:
        key, class_id, species, _breed_id = words[0], int(words[1]), SPECIES[int(words[2])], words[3]
    except (IndexError, ValueError, KeyError):
        raise ValueError(f"{where}: {' '.join(words)!r} is not `KEY CLASS-ID SPECIES(1|2) BREED-ID`") from None
    if not KEY_PATTERN.fullmatch(key) or len(key) > MAX_KEY_LENGTH:
        raise ValueError(f"{where}: key {key!r} must match {KEY_PATTERN.pattern} in at most {MAX_KEY_LENGTH} letters")
    return Pet(
        key=key,
        split=split,
        picture=root / "images" / f"{key}.jpg",
        trimap=root / "annotations" / "trimaps" / f"{key}.png",
        class_id=class_id,
        breed=key.rpartition("_")[0] or key,
        species=species,
    )


def _file_names(folder: Path) -> set[str]:
    # One listing instead of a stat per file: thousands of stats take minutes on a network file system.
    try:
        return {entry.name for entry in os.scandir(folder)}
    except FileNotFoundError:
        raise ValueError(f"{folder} is missing: the layout is images/KEY.jpg and annotations/trimaps/KEY.png") from None


def _refuse_missing(what: str, paths: list[Path]) -> None:
    if paths:
        named = ", ".join(str(path) for path in paths[:NAMED])
        more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
        raise ValueError(f"missing {what}: {named}{more}")


def _kind_of_extra(name: str, suffix: str, unlisted: str) -> str:
    if name.startswith("._"):
        return "apple_double"
    if name.endswith(".mat"):
        return "mat_file"
    return unlisted if name.endswith(suffix) else "other_file"


def _read_source(root: Path) -> Source:
    path = root / "source.json"
    try:
        content = decode_json(read_text_file(path, "it"))
        return Source(name=str(content["name"]), attribution=str(content["attribution"]))
    except FileNotFoundError:
        return OXFORD
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be an object with name and attribution: {error!r}") from None
