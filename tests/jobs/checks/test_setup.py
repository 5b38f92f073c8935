"""What the doctor's checks share: which cells they look at, and parts that cannot be had."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from jobs.checks.setup import Command, NotChecked, Setup, one_thread
from jobs.design.expansion import expand
from jobs.design.spec import Spec
from petseg.config import RunConfig
from petseg.config.values import config_to_dict, flatten, with_values
from shards.command import Failure


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(Command(), tmp_path)


@pytest.mark.parametrize(
    ("policies", "chosen"),
    [
        (["none", "elastic", "elastic_crop"], "elastic_crop"),
        (["elastic", "elastic_crop", "none"], "elastic_crop"),  # the last one that augments
        (["elastic", "none"], "elastic"),
        (["none"], "none"),
    ],
)
def test_the_small_run_augments_where_the_sweep_does(setup: Setup, policies: list[str], chosen: str) -> None:
    setup.cells = expand(Spec("lab", {"augment.policy": policies, "model.width": [8, 16]}, {}))
    assert (setup.augmented.augment.policy, setup.augmented.model.width) == (chosen, 16)


def test_each_kind_of_cell_is_looked_at_once_by_its_first(setup: Setup) -> None:
    setup.cells = expand(Spec("lab", {"augment.policy": ["none", "elastic"], "model.width": [8, 16]}, {}))
    kinds = setup.distinct(lambda config: config.model.width)
    assert [(config.augment.policy, config.model.width) for config in kinds] == [("none", 8), ("none", 16)]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ValueError("no such set"), "no such set"),
        (Failure("a shard is broken"), "a shard is broken"),
        (KeyError("dice"), "KeyError: 'dice'"),  # a bug's message says little
        (NotChecked("shards", "no such set"), "no such set"),
    ],
)
def test_a_part_that_cannot_be_had_is_tried_once_and_its_root_is_named(
    setup: Setup, error: Exception, why: str
) -> None:
    tried: list[int] = []

    def build() -> None:
        tried.append(1)
        raise error

    for _ in range(2):
        with pytest.raises(NotChecked) as told:
            setup._once("run", build)
        assert told.value.why == why
        assert told.value.root == ("shards" if isinstance(error, NotChecked) else "run")
    assert len(tried) == 1
    assert setup._once("shards", lambda: 7) == 7


def test_a_small_run_is_the_same_run_in_seconds(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides how it trains stays, what only takes time is cut; nothing of it is sent anywhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    setup.small_set = setup.folder / "small"
    values = {
        "model.width": 32, "train.accumulation_steps": 4, "train.late_batches": 50, "train.mixed_precision": "fp16",
        "train.epochs": 90, "optim.lr": 0.5, "tracking.wandb": "online",
    }  # fmt: skip
    config = with_values(RunConfig(), values)
    before, small = (flatten(config_to_dict(one)) for one in (config, setup.small(config)))
    assert {name: value for name, value in small.items() if value != before[name]} == {
        "data.shards": str(setup.folder / "small"), "data.image_size_px": 64, "data.threads": 1, "data.cache": "none",
        "data.cache_dir": str(setup.folder / "cache"), "model.width": 8, "train.epochs": 2, "train.batch_size": 8,
        "train.accumulation_steps": 2, "train.late_batches": 2, "train.mixed_precision": "no", "train.test": False,
        "train.log_every": 1, "tracking.wandb": "disabled", "tracking.overlays": 0,
    }  # fmt: skip
    narrow = with_values(config, {"model.width": 4, "train.accumulation_steps": 0, "train.late_batches": 1})
    cut = setup.small(narrow, train__batch_size=3)
    assert (cut.model.width, cut.train.accumulation_steps, cut.train.late_batches) == (4, 1, 1)
    assert cut.train.batch_size == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert setup.small(config).train.mixed_precision == "fp16"


def test_each_cell_has_its_own_shard_set_and_all_are_closed(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    def open_store(location: str, cache_dir: str, cache_gb: float) -> SimpleNamespace:
        return SimpleNamespace(location=(location, cache_dir, cache_gb), close=lambda: closed.append(location))

    monkeypatch.setattr("jobs.checks.setup.open_store", open_store)
    fixed = {"data.cache_dir": "cache", "data.cache_gb": 7.0}
    setup.cells = expand(Spec("lab", {"data.shards": ["a", "b"], "train.seed": [0, 1]}, fixed))
    setup.close()  # none is open yet
    assert setup.store.location == ("a", "cache", 7.0)
    assert [store.location for store in setup.stores] == [("a", "cache", 7.0), ("b", "cache", 7.0)]
    assert [setup.store_of(cell.config) for cell in setup.cells] == [*setup.stores[:1] * 2, *setup.stores[1:] * 2]
    setup.close()
    assert closed == ["a", "b"]
    alone = Setup(Command(), setup.folder)
    alone.cells = setup.cells
    assert alone.store
    alone.close()
    assert closed == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("command", "asks"), [(Command(), True), (Command(set=("data.shards=https://host/set",)), False),
                          (Command(axis=("data.shards=https://host/set",)), False), (Command(allow_pipe=True), False)],
)  # fmt: skip
def test_an_address_that_only_the_sweep_file_names_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, asks: bool
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("jobs.checks.setup.open_store", lambda location, *_: opened.append(location) or "store")
    setup = Setup(command, tmp_path)
    setup.spec = Spec("lab", {}, {"data.shards": "https://host/set"})
    setup.cells = expand(setup.spec)
    if asks:
        with pytest.raises(NotChecked, match=r"https://host/set"):
            _ = setup.store
    else:
        assert setup.store == "store"  # type: ignore[comparison-overlap]
    assert opened == ([] if asks else ["https://host/set"])


def test_a_sweep_file_that_cannot_be_read_is_a_matter_of_the_config(tmp_path: Path) -> None:
    setup = Setup(Command(sweep=tmp_path / "none.yaml"), tmp_path)
    with pytest.raises(NotChecked, match=r"^config: "):
        _ = setup.cells


def test_threads_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [7]
    monkeypatch.setattr(torch, "get_num_threads", lambda: counts[-1])
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    with pytest.raises(RuntimeError, match=r"^x$"), one_thread():
        raise RuntimeError("x")
    assert counts == [7, 1, 7]
