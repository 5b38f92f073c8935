"""Pictures that a model is compared and calibrated on, and the run that would learn what a model has learnt."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.data.consent import is_known
from petseg.data.store import LocalStore, open_store
from petseg.data.tars import TarReader
from petseg.inference import samples as module
from petseg.inference.header import Header
from petseg.inference.samples import config_of, drawn_samples, read_samples, target_of
from petseg.models.networks import Network
from shards.cause import Cause
from shards.classes import ClassEntry
from shards.command import Failure
from shards.index import load_index
from shards.manifest import load_manifest
from tests.petseg.inference.test_export import header_of

TWO = (ClassEntry("background", 0, (0, 0, 0)), ClassEntry("pet", 1, (9, 9, 9)))
PET = header_of(classes=TWO, target="pet")


def test_drawn_pictures_are_soft_patches_and_always_the_same() -> None:
    torch.manual_seed(1)
    drawn = drawn_samples(header_of(image_size_px="32x64"), 3)
    torch.manual_seed(2)
    again = drawn_samples(header_of(image_size_px="32x64"), 3)
    assert drawn.classes is None
    assert (drawn.images.shape, drawn.images.dtype) == ((3, 32, 64, 3), torch.uint8)
    assert drawn.images.is_contiguous()
    assert torch.equal(drawn.images, again.images)
    assert not torch.equal(drawn.images[0], drawn.images[1])
    values = drawn.images.float()
    assert values.std() > 30  # they use the range
    assert (values[:, :, 1:] - values[:, :, :-1]).abs().mean() < 10  # and are no noise


@pytest.mark.parametrize(("number", "positions"), [(1, [0]), (2, [0, 29]), (4, [0, 9, 19, 29]), (99, list(range(30)))])
def test_samples_are_evenly_spread_over_their_split(pet_shards: Path, number: int, positions: list[int]) -> None:
    found = read_samples(PET, str(pet_shards), "test", number)
    reader = TarReader(LocalStore(str(pet_shards)), "test", 64)
    images, labels = np.empty((len(positions), 64, 64, 3), np.uint8), np.empty((len(positions), 64, 64), np.uint8)
    reader.load(np.array(positions, np.int64), images, labels)
    reader.close()
    assert np.array_equal(found.images.numpy(), images)
    assert found.classes is not None
    assert found.classes.dtype == torch.uint8
    assert np.array_equal(found.classes.numpy(), labels != 2)  # the outline counts as pet
    assert is_known(str(pet_shards))


def test_classes_of_pictures_follow_the_models_own_rule(pet_shards: Path) -> None:
    """By species, each picture has its own table; the outline may be left out."""
    three = header_of()
    found = read_samples(three, str(pet_shards), "val", 3)
    assert found.classes is not None
    kinds = [sorted(set(one.unique().tolist()) - {0}) for one in found.classes]
    assert {len(one) for one in kinds} == {1}  # a cat or a dog
    left_out = read_samples(replace(PET, border="ignore"), str(pet_shards), "val", 3).classes
    assert left_out is not None
    assert 255 in left_out.unique().tolist()


@pytest.mark.parametrize(("fit", "read_as"), [("squash", "squash"), ("letterbox", "letterbox"), ("crop", "letterbox")])
def test_whole_pictures_are_letterboxed_for_a_model_of_crops(
    pet_shards: Path, monkeypatch: pytest.MonkeyPatch, fit: str, read_as: str
) -> None:
    asked: list[object] = []

    def reader(store: object, split: str, size: object, fit: str) -> TarReader:
        asked.append((split, size, fit))
        return TarReader(LocalStore(str(pet_shards)), "val", 64)

    monkeypatch.setattr(module, "TarReader", reader)
    read_samples(replace(PET, fit=fit), str(pet_shards), "val", 1)
    assert asked == [("val", 64, read_as)]


def test_a_picture_that_cannot_be_read_is_not_passed_over(pet_shards: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(pet_shards, tmp_path / "set"))
    (shard,) = load_manifest(shards).of_split("val")
    sample = load_index(shards, shard.name)[1]
    with (shards / shard.name).open("r+b") as file:
        file.seek(sample.jpg.offset)
        file.write(bytes(64))
    with pytest.raises(Failure, match=rf"^cannot be read: {sample.key} at byte ") as error:
        read_samples(PET, str(shards), "val", 3)
    assert error.value.cause == Cause.DATA
    assert read_samples(PET, str(shards), "val", 2).images.shape[0] == 2  # the first and the last


@pytest.mark.parametrize("target", ["pet", "species"])
def test_a_set_of_other_classes_is_refused(pet_shards: Path, target: str) -> None:
    wrong = replace(PET, target=target, classes=(TWO[0], ClassEntry("animal", 1, (9, 9, 9))))
    named = {"pet": "background, pet", "species": "background, cat, dog"}[target]
    with pytest.raises(ValueError, match=f"^{pet_shards} has the classes {named}, and the model background, animal$"):
        target_of(wrong, open_store(str(pet_shards)))


def learner_of(header: Header) -> RunConfig:
    return config_of(header, "set")


def test_the_run_that_would_learn_the_same_has_all_that_the_header_says() -> None:
    network = Network("fpn", 4, "bilinear", "resnet18", False)
    header = header_of(
        network, image_size_px="32x64", fit="letterbox", border="bg", mixed_precision="bf16", channels_last=False
    )
    assert learner_of(header) == with_values(
        RunConfig(),
        {
            "data.shards": "set", "data.image_size_px": "32x64", "data.fit": "letterbox", "data.border": "bg",
            "data.target": "species", "train.mixed_precision": "bf16", "train.channels_last": False,
            "model.arch": "fpn", "model.encoder": "resnet18", "model.width": 4,
        },
    )  # fmt: skip
    assert learner_of(header_of(target="as_packed")).data.target == "auto"
    said = (
        "the model has learnt background, cat, dog by coarse.toml, a file that merges classes: its run can be measured "
        "with `python -m petseg.evaluate`, the weights file cannot"
    )
    with pytest.raises(ValueError, match=f"^{said}$"):
        learner_of(header_of(target="coarse.toml"))
