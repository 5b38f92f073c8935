"""Drawn pets in the folder layout of Oxford-IIIT Pet: a demo and tests need no download, and no licence.

The same arguments give the same files, byte for byte, with any number of processes.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.encoding import encode_jpeg, encode_png
from shards.files import write_whole
from shards.pool import ordered_map
from shards.sources.pets.drawing import Style, draw_pet
from shards.terminal import progress

CHUNK = 16
FEWEST = 4  # so that train, val and test have a sample each

BREEDS: dict[str, Style] = {  # in the order of the data set's class ids, 1 to 37
    "Abyssinian": Style("cat", "red", "brown", "tabby", 0.25),
    "american_bulldog": Style("dog", "white", "brown", "patches", 0.15),
    "american_pit_bull_terrier": Style("dog", "blue", "white", "patches", 0.15),
    "basset_hound": Style("dog", "white", "red", "patches", 0.2),
    "beagle": Style("dog", "tan", "black", "patches", 0.2),
    "Bengal": Style("cat", "golden", "black", "spots", 0.25),
    "Birman": Style("cat", "cream", "brown", "points", 0.8),
    "Bombay": Style("cat", "black", "black", "plain", 0.2),
    "boxer": Style("dog", "tan", "black", "mask", 0.15),
    "British_Shorthair": Style("cat", "blue", "grey", "plain", 0.5),
    "chihuahua": Style("dog", "sand", "white", "patches", 0.25),
    "Egyptian_Mau": Style("cat", "grey", "black", "spots", 0.25),
    "english_cocker_spaniel": Style("dog", "golden", "red", "plain", 0.8),
    "english_setter": Style("dog", "white", "black", "spots", 0.7),
    "german_shorthaired": Style("dog", "brown", "white", "spots", 0.2),
    "great_pyrenees": Style("dog", "white", "cream", "plain", 1.0),
    "havanese": Style("dog", "cream", "grey", "patches", 1.0),
    "japanese_chin": Style("dog", "white", "black", "patches", 0.9),
    "keeshond": Style("dog", "grey", "black", "mask", 1.0),
    "leonberger": Style("dog", "golden", "black", "mask", 0.9),
    "Maine_Coon": Style("cat", "brown", "black", "tabby", 1.0),
    "miniature_pinscher": Style("dog", "black", "red", "points", 0.1),
    "newfoundland": Style("dog", "black", "brown", "plain", 0.9),
    "Persian": Style("cat", "cream", "white", "plain", 1.0),
    "pomeranian": Style("dog", "golden", "cream", "plain", 1.0),
    "pug": Style("dog", "sand", "black", "mask", 0.15),
    "Ragdoll": Style("cat", "cream", "grey", "points", 0.9),
    "Russian_Blue": Style("cat", "blue", "blue", "plain", 0.3),
    "saint_bernard": Style("dog", "white", "red", "patches", 0.7),
    "samoyed": Style("dog", "white", "white", "plain", 1.0),
    "scottish_terrier": Style("dog", "black", "grey", "plain", 0.8),
    "shiba_inu": Style("dog", "red", "cream", "points", 0.5),
    "Siamese": Style("cat", "cream", "chocolate", "points", 0.2),
    "Sphynx": Style("cat", "pink", "pink", "plain", 0.0),
    "staffordshire_bull_terrier": Style("dog", "brown", "white", "patches", 0.15),
    "wheaten_terrier": Style("dog", "sand", "golden", "plain", 0.9),
    "yorkshire_terrier": Style("dog", "blue", "tan", "mask", 0.9),
}


class Drawn(NamedTuple):
    """One drawn sample's files."""

    key: str
    jpg: bytes
    png: bytes


def draw_folder(folder: Path, *, number: int, seed: int, longer_side_px: int = 200, num_workers: int = 1) -> None:
    """Draw `number` pets into a new folder: images, trimaps, lists with half of them for training, and source.json.

    Raises ValueError for fewer than 4 pets, pictures under 32 px, or a folder that holds something already.
    """
    if number < FEWEST:
        raise ValueError(f"{number} drawn pets are too few: train, val and test need at least {FEWEST}")
    if longer_side_px < 32:
        raise ValueError(f"a longer side of {longer_side_px} px is too small for a pet: at least 32")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: pack it with --source {folder}, or draw into another folder")
    images, trimaps = folder / "images", folder / "annotations" / "trimaps"
    images.mkdir(parents=True)
    trimaps.mkdir(parents=True)
    chunks = [range(start, min(start + CHUNK, number)) for start in range(0, number, CHUNK)]
    draw = partial(draw_pets, seed=seed, longer_side_px=longer_side_px)
    with progress("drawn", number) as advance:
        for drawn in ordered_map(draw, chunks, num_workers=num_workers):
            for pet in drawn:
                (images / f"{pet.key}.jpg").write_bytes(pet.jpg)
                (trimaps / f"{pet.key}.png").write_bytes(pet.png)
            advance(len(drawn))
    source = {
        "name": "synthetic-pets",
        "attribution": f"drawn by shards.synthetic: {number} pets, seed {seed}",
    }
    write_whole(folder / "source.json", json.dumps(source, indent=2) + "\n")
    # The lists come last: a folder without them is no data set, so a killed drawing is not taken for one.
    _write_lists(folder / "annotations", number)


def breed_of(index: int) -> tuple[int, str, str]:
    """(class id from 1, breed, key) of the pet with this index: breeds take turns."""
    class_index, number = index % len(BREEDS), index // len(BREEDS) + 1
    breed = list(BREEDS)[class_index]
    return class_index + 1, breed, f"{breed}_{number}"


def draw_pets(indices: range, *, seed: int, longer_side_px: int) -> list[Drawn]:
    """Draw these pets; each has its own random stream, so that no other pet matters to it."""
    drawn = []
    for index in indices:
        _, breed, key = breed_of(index)
        picture, trimap = draw_pet(np.random.default_rng([seed, index]), BREEDS[breed], longer_side_px)
        drawn.append(Drawn(key, encode_jpeg(np.asarray(picture)), encode_png(np.asarray(trimap))))
    return drawn


def _write_lists(annotations: Path, number: int) -> None:
    lines: dict[str, list[tuple[int, int, str]]] = {"list": [], "trainval": [], "test": []}
    breed_ids: dict[str, int] = {}
    within = {"cat": 0, "dog": 0}
    for breed, look in BREEDS.items():
        within[look.species] += 1
        breed_ids[breed] = within[look.species]
    for index in range(number):
        class_id, breed, key = breed_of(index)
        species = 1 if BREEDS[breed].species == "cat" else 2
        line = (class_id, index, f"{key} {class_id} {species} {breed_ids[breed]}")
        lines["list"].append(line)
        lines["trainval" if index % 2 == 0 else "test"].append(line)  # 37 is odd: each breed comes to both
    for name in ("list", "test", "trainval"):
        text = "".join(f"{line}\n" for _, _, line in sorted(lines[name]))
        write_whole(annotations / f"{name}.txt", text)
