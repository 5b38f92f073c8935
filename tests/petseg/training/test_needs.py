"""What petseg.estimate says of numbers that are given by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.footprint.forecast import Forecast
from petseg.footprint.memory import Footprint
from petseg.footprint.operations import Op
from petseg.metrics.windows import bytes_per_pixel
from petseg.training import needs as needs_module
from petseg.training.needs import (
    MOST_SAMPLES,
    Needs,
    choose_device,
    estimate_needs,
    facts_of_set,
    render,
    val_pictures,
)

GIB = 2**30
FLOPS = Op(6_000_000_000, 0, half=False)
MEMORY = Footprint(
    micro_batch=4, num_classes=2, parameters=3_000_000, encoder_parameters=0, weights_bytes=GIB, teacher_bytes=0,
    gradient_bytes=GIB, optimizer_bytes=2 * GIB, ema_bytes=0, activation_bytes=50 * 2**20, peak_bytes=4 * GIB,
    eval_peak_bytes=GIB // 2, pass_ops=(FLOPS,), update_ops=(), eval_ops=(),
)  # fmt: skip


@pytest.fixture(autouse=True)
def flops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs_module, "flops_per_image", lambda _: 1e9)


def config_of(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "data.shards": "/nowhere", "data.image_size_px": 64, "train.batch_size": 8, "train.accumulation_steps": 2,
        "train.epochs": 3,
    }  # fmt: skip
    return with_values(RunConfig(), values | {name.replace("__", "."): value for name, value in changes.items()})


def needs_of(**fields: Any) -> Needs:
    """A step takes half a second: 16 images/s."""
    plain = Needs(
        config=config_of(), world_size=1, device="this CPU", memory_bytes=0, footprint=MEMORY,
        forecast=Forecast(0.5, 0.1, "by hand"), largest=None, split_sizes={"train": 160, "val": 20},
    )  # fmt: skip
    return replace(plain, **fields)


def shown(**fields: Any) -> dict[str, str]:
    names, texts = render(needs_of(**fields)).columns
    return dict(zip(map(str, names.cells), map(str, texts.cells), strict=True))


def test_a_run_on_a_cpu_by_hand() -> None:
    assert shown() == {
        "device": "1 x this CPU",
        "parameters": "3.00 M",
        "FLOPs": "1.0 G an image, forward and backward",
        "a step": "batch 8 in 2 micro-batches of 4 samples on each of 1 processes",
        "memory of a micro-batch": "weights 1.00 GiB, gradients 1.00 GiB, optimizer 2.00 GiB, activations 50.0 MiB",
        "its peak": "4.00 GiB",
        "evaluation": "peak 0.50 GiB",
        "time": "about 500 ms a step, 16 images/s; an epoch 10 s and 2 s of validation; 36 s for 3 epochs",
        "known by": "by hand",
    }


def test_processes_share_the_validation_and_not_the_batch() -> None:
    assert "16 images/s; an epoch 10 s and 1 s of validation; 33 s for" in shown(world_size=2)["time"]


def test_what_a_choice_adds_is_named() -> None:
    assert shown(config=config_of(augment__mode="add"))["a step"].endswith("processes, copies included")
    more = shown(config=config_of(train__grad_checkpointing=True))["FLOPs"]
    assert more.endswith("and backward, and 50% more for what is computed again")
    encoder = replace(MEMORY, encoder_parameters=2_000_000)
    assert shown(footprint=encoder)["parameters"] == "3.00 M, 2.00 M in the encoder"


def test_whether_it_fits_counts_the_reserve() -> None:
    assert shown(memory_bytes=80 * 10**9)["its peak"].startswith("4.00 GiB: fits in 80 GB")
    assert shown(memory_bytes=4 * GIB)["its peak"].startswith("4.00 GiB: does not fit in 4.29497 GB")
    assert shown(largest=12)["largest micro-batch"] == "12 samples"
    assert shown(largest=MOST_SAMPLES)["largest micro-batch"] == f"{MOST_SAMPLES} samples, where the search ends"


def test_evaluation_by_windows_counts_the_largest_picture() -> None:
    crops = config_of(data__fit="crop")
    assert shown(config=config_of(data__fit="letterbox"))["evaluation"] == "peak 0.50 GiB"
    each = bytes_per_pixel(2)
    megapixel = f"{10**6 * each / 2**20:.1f} MiB"
    unknown = f"peak 0.50 GiB for a batch of windows, and {megapixel} for each megapixel of a picture"
    assert shown(config=crops)["evaluation"] == unknown
    largest = shown(config=crops, pictures=((500, 100), (300, 400), (10, 900)))["evaluation"]
    assert largest.endswith(f"{300 * 400 * each / 2**20:.1f} MiB for a picture of 300 x 400 px")
    # (64, 64) is one window, and (64, 96) two: 1.5 passes of 0.1 s for each of 20 pictures
    assert "and 3 s of validation" in shown(config=crops, pictures=((64, 64), (64, 96)))["time"]


def test_smaller_pictures_at_the_start_make_a_shorter_run() -> None:
    """Half of the steps have a quarter of the area."""
    growing = config_of(train__start_size_px=32, train__full_size_from=0.5)
    time = shown(config=growing)["time"]
    mean_s = float(time.partition("an epoch 10 s (")[2].partition(" s in the mean")[0])
    assert mean_s == pytest.approx(6.25, abs=0.1)
    assert "smaller pictures" not in shown()["time"]


def test_a_device_is_chosen_by_name_and_is_an_h100_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    named = choose_device("a100")
    assert named is not None
    assert "A100" in named.name
    default = choose_device("")
    assert default is not None
    assert default.name == "H100"
    assert choose_device("CPU") is None
    with pytest.raises(ValueError, match=r"--device 'abacus' is not known: choose cpu or one of .*H100"):
        choose_device("abacus")


def test_a_set_that_is_not_there_yet_counts_as_the_published_one(pet_shards: Any) -> None:
    assert facts_of_set(config_of()) == ({"train": 3312, "val": 368}, 2)
    assert facts_of_set(config_of(data__shards=str(pet_shards))) == ({"train": 27, "val": 3}, 2)
    assert facts_of_set(config_of(data__shards=str(pet_shards), data__target="trimap"))[1] == 3


def test_pictures_are_surveyed_where_windows_depend_on_them(pet_shards: Any) -> None:
    crops = config_of(data__shards=str(pet_shards), data__fit="crop")
    assert set(val_pictures(crops)) == {(64, 64)}
    assert val_pictures(config_of(data__shards=str(pet_shards))) == ()
    assert val_pictures(config_of(data__fit="crop")) == ()  # there is no set yet
    assert val_pictures(config_of(data__shards="https://nowhere/set", data__fit="crop")) == ()


@pytest.fixture
def estimated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The memory for which the fewest micro-batches are asked; the answer is 4, or None for 1 GB."""
    asked: list[Any] = []

    def fewest(config: RunConfig, kind: str, memory_bytes: int, *_: Any) -> int | None:
        asked.append((kind, memory_bytes))
        return 4 if memory_bytes > 10**9 else None

    monkeypatch.setattr(needs_module, "fewest_micro_batches", fewest)
    monkeypatch.setattr(needs_module, "footprint", lambda config, samples, *_: replace(MEMORY, micro_batch=samples))
    monkeypatch.setattr(needs_module, "find_largest", lambda *_: 7)
    monkeypatch.setattr(needs_module, "forecast", lambda *_: Forecast(0.5, 0.1, "by hand"))
    return asked


def test_the_fewest_micro_batches_that_fit_are_chosen_unless_they_are_given(estimated: list[Any]) -> None:
    free = config_of(train__accumulation_steps=0)
    found = estimate_needs(free, 1, "H100", 0)
    assert found.config.train.accumulation_steps == 4
    assert found.footprint.micro_batch == 2
    assert (found.device, found.memory_bytes, found.largest) == ("H100, 80 GB", 80 * 10**9, 7)
    found = estimate_needs(free, 2, "H100", 40)
    assert (found.device, found.memory_bytes, found.footprint.micro_batch) == ("H100, 40 GB", 40 * 10**9, 1)
    assert estimated == [("cuda", 80 * 10**9), ("cuda", 40 * 10**9)]
    assert estimate_needs(config_of(), 1, "H100", 0).config == config_of()
    assert len(estimated) == 2
    with pytest.raises(ValueError, match="not even a micro-batch of one sample fits in 1 GB"):
        estimate_needs(free, 1, "H100", 1)


def test_a_cpu_has_no_limit_unless_one_is_given(estimated: list[Any]) -> None:
    free = config_of(train__accumulation_steps=0)
    found = estimate_needs(free, 1, "cpu", 0)
    assert (found.device, found.memory_bytes, found.largest) == ("this CPU", 0, None)
    assert found.config.train.accumulation_steps == 1
    assert not estimated
    assert estimate_needs(free, 1, "cpu", 2).config.train.accumulation_steps == 4
    assert estimated == [("cpu", 2 * 10**9)]
