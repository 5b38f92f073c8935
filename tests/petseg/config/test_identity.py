"""What a config's values mean for the identity of a run, and how values of other types are read."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest

from petseg.config import RunConfig
from petseg.config.sizes import is_network_size, size_of
from petseg.config.values import (
    config_from_dict,
    identity,
    identity_names,
    trial_id,
    typed_value,
    weights_files,
    with_values,
)


def identity_of(**changes: Any) -> dict[str, Any]:
    return identity(with_values(RunConfig(), {name.replace("__", "."): v for name, v in changes.items()}), "m")


def test_names_of_the_identity_are_dotted_and_leave_out_what_is_free() -> None:
    names = identity_names()
    assert {"optim.lr", "train.seed", "data.border", "model.weights", "data.target", "distill.weight"} <= names
    assert not names & {"data.shards", "data.threads", "train.log_every", "tracking.project", "optim", "lr"}
    assert not any(name.startswith("tracking") for name in names)


def test_later_settings_join_the_identity_once_they_differ_from_their_defaults() -> None:
    assert "ema_decay" not in identity_of()["train"]
    assert identity_of(train__ema_decay=0.5)["train"]["ema_decay"] == 0.5
    assert identity_of(train__ema_decay=0.0) == identity_of()
    assert identity_of()["manifest_hash"] == "m"


def test_files_are_identified_by_their_content(tmp_path: Path) -> None:
    weights, target = tmp_path / "w.safetensors", tmp_path / "t.toml"
    weights.write_bytes(b"weights")
    target.write_bytes(b"target")
    digest = {path: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in (weights, target)}
    found = identity_of(
        model__arch="fpn", model__weights=str(weights), model__init=str(weights), data__target=str(target),
        distill__teacher=str(weights), distill__temperature=3.0,
    )  # fmt: skip
    assert (found["model"]["weights"], found["model"]["init"]) == (digest[weights], digest[weights])
    assert found["data"]["target"] == digest[target]
    assert found["distill"] == {"teacher": digest[weights], "temperature": 3.0}
    moved = weights.rename(tmp_path / "moved.safetensors")
    assert identity_of(model__init=str(moved)) == identity_of(model__init=str(moved)) != identity_of()
    weights.write_bytes(b"other weights")
    assert identity_of(model__init=str(weights)) != identity_of(model__init=str(moved))


def test_words_in_place_of_files_stay() -> None:
    assert identity_of()["model"].get("weights", "none") == "none"
    assert identity_of(model__arch="fpn", model__weights="imagenet")["model"]["weights"] == "imagenet"
    assert identity_of(data__target="species")["data"]["target"] == "species"


def test_a_teacher_without_a_share_leaves_the_identity(tmp_path: Path) -> None:
    teacher = tmp_path / "t.safetensors"
    teacher.write_bytes(b"teacher")
    assert identity_of(distill__teacher=str(teacher), distill__weight=0.0) == identity_of()
    assert identity_of(distill__temperature=3.0) == identity_of()
    assert identity_of(distill__teacher=str(teacher)) != identity_of()


@pytest.mark.parametrize(
    ("name", "path"),
    [("model.weights", "gone.pt"), ("model.init", "gone.safetensors"), ("distill.teacher", "gone.safetensors"),
     ("data.target", "gone.toml")],
)  # fmt: skip
def test_a_file_that_is_gone_is_named(name: str, path: str) -> None:
    config = with_values(RunConfig(), {"model.arch": "fpn", name: path})
    with pytest.raises(ValueError, match=rf"^{name} = '{path}': No such file or directory \(.* this is /"):
        trial_id(config, "m")


def test_files_of_weights_are_named_by_field() -> None:
    config = with_values(RunConfig(), {"model.arch": "fpn", "model.weights": "imagenet", "model.init": "i.safetensors"})
    assert weights_files(config) == {"model.init": "i.safetensors"}
    assert weights_files(RunConfig()) == {}
    config = with_values(
        RunConfig(), {"model.arch": "fpn", "model.weights": "w.pt", "distill.teacher": "t.safetensors"}
    )
    assert weights_files(config) == {"model.weights": "w.pt", "distill.teacher": "t.safetensors"}


def test_a_field_that_does_not_exist_is_told_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"'train.epoch'; near it: train.epochs, [a-z._]+, [a-z._]+$"):
        typed_value("train.epoch", 1)
    with pytest.raises(ValueError, match=r"'####'; near it: data.shards, data.image_size_px, .*tracking.artifacts$"):
        typed_value("####", 1)


@pytest.mark.parametrize(
    ("name", "value", "typed"),
    [
        ("optim.lr", 1, 1.0),
        ("optim.lr", "1e-3", 1e-3),
        ("train.epochs", 3.0, 3),
        ("data.image_size_px", 256.0, 256),
        ("data.image_size_px", "256", 256),
        ("data.image_size_px", "128X256", "128x256"),
        ("train.compile", False, "no"),
        ("augment.policy", None, "none"),
        ("train.test", False, False),
        ("data.shards", "1", "1"),
    ],
)
def test_a_value_is_read_in_the_type_of_its_field(name: str, value: Any, typed: Any) -> None:
    found = typed_value(name, value)
    assert (found, type(found)) == (typed, type(typed))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optim.lr", True, "must be of type float"),
        ("optim.lr", [1], "must be of type float"),
        ("optim.lr", None, "must be of type float"),
        ("train.epochs", "3", "must be of type int"),
        ("train.epochs", math.inf, "must be of type int"),
        ("data.shards", 1, "must be of type str"),
        ("train.test", 0, "must be of type bool"),
        ("data.image_size_px", True, "must be of type int, or HxW"),
        ("data.image_size_px", 1.5, "must be of type int, or HxW"),
        ("train.compile", "maybe", "choose one of no, auto, always"),
        ("train.loss", 0, "choose one of ce, dice"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} = .*{message}"):
        typed_value(name, value)


def test_a_config_is_read_from_nested_tables() -> None:
    config = config_from_dict({"optim": {"lr": 0.5}, "train": {"seed": 3}})
    assert config == with_values(RunConfig(), {"optim.lr": 0.5, "train.seed": 3})


@pytest.mark.parametrize(
    "text", ["", "x", "256x", "x256", "1x2x3", "-1x2", "1x-2", "2x\u00b2", "\u00b2x2", "1234567y2"]
)
def test_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size of a picture"):
        size_of(text)
    assert not is_network_size(text)


def test_sides_of_a_networks_pictures_are_positive_multiples() -> None:
    assert [is_network_size(size) for size in (32, 64, "32x64")] == [True] * 3
    assert not any(is_network_size(size) for size in (0, -32, 1, 33, "0x32", "32x0", "33x32", "32x33"))
