"""The targets of real pets: what a run learns and is measured by is what the data set's own lists and masks say."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.config import RunConfig
from petseg.data.store import open_store
from petseg.evaluate import main
from petseg.targets.pets import BY_KIND
from petseg.targets.target import load_target, resolve_target
from petseg.training.loop import train
from shards.command import OK, run_command
from shards.pack import PackConfig, pack

Tiny = Callable[..., RunConfig]
SIZE_PX = 64


@pytest.fixture(scope="module")
def real_shards(pets_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All real pets, packed at the size that the runs of this file train at, so that no mask is resized again."""
    out = tmp_path_factory.mktemp("real") / "shards"
    pack(PackConfig(source=pets_root, out=out, image_size_px=SIZE_PX))
    return out


def listed_species(root: Path) -> dict[str, str]:
    """The third column of list.txt: 1 is a cat, 2 a dog."""
    rows = [line.split() for line in (root / "annotations" / "list.txt").read_text().splitlines() if line[0] != "#"]
    return {row[0]: {"1": "cat", "2": "dog"}[row[2]] for row in rows}


def masks_of(shards: Path, split: str) -> Iterator[tuple[str, np.ndarray]]:
    """The key and the packed mask of each sample, without any reader of petseg."""
    for path in sorted(shards.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    yield member.name.removesuffix(".png"), np.asarray(Image.open(tar.extractfile(member)))


def expected_pixels(shards: Path, species: dict[str, str], target: str) -> list[int]:
    """Pixels of each class in val, with the border as pet: trimap values 1 pet, 2 background, 3 border."""
    pixels = np.zeros(3, np.int64)
    for key, mask in masks_of(shards, "val"):
        if target == "trimap":
            pixels += [(mask == value).sum() for value in (2, 1, 3)]
        else:
            pixels[0] += (mask == 2).sum()
            pixels[1 + (species[key] == "dog")] += (mask != 2).sum()
    return pixels.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["trimap", "species"])
def test_a_run_counts_the_pixels_that_the_masks_have(
    tiny: Tiny, real_shards: Path, pets_root: Path, tmp_path: Path, target: str
) -> None:
    config = tiny(
        data__shards=str(real_shards), data__target=target, data__image_size_px=SIZE_PX, train__batch_size=32,
        train__epochs=3, train__loss="ce_dice", optim__name="adamw", optim__lr=3e-3,
    )  # fmt: skip
    result = train(config, tmp_path)
    assert run_command(main, [str(tmp_path), "--split", "val", "--no-native"]) == OK
    measured = json.loads((tmp_path / "evaluate-val.json").read_text())
    kept = load_target(tmp_path)
    assert kept is not None
    assert tuple(measured["confusion"]["classes"]) == kept.names
    truth = np.sum(measured["confusion"]["pixels"], axis=1).tolist()
    assert truth == expected_pixels(real_shards, listed_species(pets_root), target)
    assert measured["metrics"]["val/dice"] == pytest.approx(result.metrics["val/dice"], abs=1e-6)
    assert measured["metrics"]["val/dice"] > measured["metrics"]["val/one_class_dice"]  # it has learnt something


@pytest.mark.slow
def test_keys_name_the_species_and_breeds_that_the_list_has(tiny: Tiny, real_shards: Path, pets_root: Path) -> None:
    species = listed_species(pets_root)
    store = open_store(str(real_shards))
    for name, of_key in (
        ("species", species.get),
        ("breed", lambda key: key.rpartition("_")[0]),
    ):
        target = resolve_target(tiny(data__shards=str(real_shards), data__target=name).data, store)
        assert len(target) == BY_KIND[name]
        for split in ("train", "val", "test"):
            keys = [key for key, _ in masks_of(real_shards, split)]
            assert [target.kinds[row] for row in target.rows_of(keys)] == [of_key(key) for key in keys]
    store.close()
