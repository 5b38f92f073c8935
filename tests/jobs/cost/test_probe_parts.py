"""What the probe of a trial's cost times, by a clock that is wound by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.cost import probe
from jobs.cost.probe import Probe
from petseg.config import RunConfig
from petseg.config.values import config_to_dict, with_values


def batch(samples: int) -> Any:
    return SimpleNamespace(plan=SimpleNamespace(ids=range(samples)))


def test_a_save_takes_what_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.5])
    saved: list[tuple[Path, Any]] = []
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(probe, "save_checkpoint", lambda folder, step, learner, state: saved.append((folder, learner)))
    parts: Any = SimpleNamespace(learner="weights and moments")
    assert probe.time_save(parts, tmp_path) == 2.5
    assert saved == [(tmp_path / "checkpoints", "weights and moments")]


class Steps:
    """Training steps that take so many seconds each."""

    def __init__(self, seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds, self.clock, self.trains = iter(seconds), 100.0, []  # type: ignore[var-annotated]
        self.run: Any = SimpleNamespace(parts=SimpleNamespace(device=torch.device("cpu"), model=self))
        monkeypatch.setattr(probe, "now", lambda device: self.clock)
        monkeypatch.setattr(probe, "train_step", self.step)

    def train(self) -> None:
        self.trains.append("train")

    def step(self, run: Any, epoch: int, step: int, micro_batches: list[Any], sums: torch.Tensor) -> None:
        self.trains.append((epoch, step, len(micro_batches), tuple(sums.shape), sums.dtype))
        self.clock += next(self.seconds)


@pytest.mark.parametrize(
    ("seconds", "sizes", "measured"),
    [
        ([3, 2, 1, 2, 3, 4, 5], [4] * 7, [1, 2, 3, 4, 5]),  # the first two do not count
        ([3, 2, 1, 2, 3, 4, 5], [4, 4, 4, 3, 4, 4, 3], [1, 3, 4]),  # nor do smaller batches
        ([9, 8, 1, 2], [4, 4, 3, 3], [1, 2]),  # unless there are no others
        ([25, 1, 1], [4] * 3, [1]),  # a first step that is slow is not the only one
        ([15, 6, 1], [4] * 3, [6]),
        ([10, 10, 1, 1], [4] * 4, [1]),  # 20 s are not too long yet
        ([7], [4], [7]),
    ],
)
def test_the_steps_that_count_are_warm_and_whole_within_a_time(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], sizes: list[int], measured: list[float]
) -> None:
    steps = Steps(seconds, monkeypatch)
    assert probe.time_steps(steps.run, [[batch(size - 1), batch(1)] for size in sizes]) == measured
    assert steps.trains[:2] == ["train", (1, 0, 2, (4,), torch.float64)]


def test_an_evaluation_is_timed_once_it_is_warm_and_for_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 50.0, 50.0, 56.0])
    monkeypatch.setattr(probe, "now", lambda device: next(clock))
    done: list[Any] = []
    monkeypatch.setattr(
        probe, "eval_inputs", lambda parts, batch: ("image", "target") if parts.bare_model and batch.plan else ()
    )

    class Model:
        def eval(self) -> None:
            done.append("eval")

        def __call__(self, image: str) -> str:
            done.append((image, torch.is_grad_enabled()))
            return "logits"

    parts: Any = SimpleNamespace(
        bare_model=Model(), device=torch.device("cpu"), accelerator=SimpleNamespace(autocast=nullcontext),
        loss=lambda logits, target: done.append((logits, target)),
    )  # fmt: skip
    assert probe.time_evaluation(parts, batch(3)) == 2.0
    assert done == ["eval", *[("image", False), ("logits", "target")] * 2]


@pytest.mark.parametrize(
    ("batch_size", "micro_batches", "processes", "share"),
    [(16, 1, 1, 16), (16, 1, 4, 4), (17, 1, 4, 5), (16, 2, 4, 4), (18, 2, 4, 6), (16, 0, 2, 8), (1, 1, 1, 1)],
)
def test_a_process_is_timed_with_its_share_of_the_batch(
    batch_size: int, micro_batches: int, processes: int, share: int
) -> None:
    values = {"train.batch_size": batch_size, "train.accumulation_steps": micro_batches}
    config = with_values(RunConfig(), values)
    assert probe.share_of(config, processes) == with_values(config, {"train.batch_size": share})


def test_batches_come_one_epoch_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "train_batches", lambda parts, epoch: iter([f"{epoch}a", f"{epoch}b"]))
    parts: Any = None
    batches: Iterator[Any] = probe.endless(parts)
    assert [next(batches) for _ in range(5)] == ["1a", "1b", "2a", "2b", "3a"]


def test_a_probe_tells_what_it_measured_and_closes_what_it_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is opened in 3 s, and seven steps of four samples are read in 14 s."""
    clock, asked = iter([0.0, 3.0, 10.0, 24.0]), {}
    parts = SimpleNamespace(
        device=torch.device("cpu"), splits={"train": SimpleNamespace(tars="tars")}, close=lambda: asked.update(closed=1)
    )

    def build(config: RunConfig, store: str, folder: Path, world_size: int, splits: tuple[str, ...]) -> Any:
        asked.update(config=config, store=store, folder=folder, world_size=world_size, splits=splits)
        return parts

    monkeypatch.setattr(probe.torch, "set_num_threads", lambda count: asked.update(threads=count))
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(probe, "open_store", lambda *given: f"store of {given[0]}")
    monkeypatch.setattr(probe, "build_parts", build)
    monkeypatch.setattr(probe, "endless", lambda parts: "batches")
    monkeypatch.setattr(probe, "take_step", lambda batches: [batch(3), batch(1)])
    monkeypatch.setattr(probe, "new_run", lambda parts: "run")
    monkeypatch.setattr(probe, "time_steps", lambda run, steps: [9.0, 1.0, 2.0] if len(steps) == 7 else [])
    monkeypatch.setattr(probe, "device_name", lambda device: f"a {device}")
    monkeypatch.setattr(probe, "time_evaluation", lambda parts, first: 0.5 * len(first.plan.ids))
    monkeypatch.setattr(probe, "windows_per_picture", lambda tars: 2.0 if tars == "tars" else 0.0)
    monkeypatch.setattr(probe, "time_save", lambda parts, folder: 0.25)
    monkeypatch.setattr(probe.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(probe.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3 * 2**19))
    config = with_values(RunConfig(), {"data.cache": "node", "train.start_size_px": 128, "train.batch_size": 8})
    assert probe.probe(config, 2, 3, tmp_path) == Probe("a cpu", False, 3, 3, 2.0, 3.0, 0.25, 0.5, 3.0, 0.0, 1.5)
    plain = {"data.cache": "none", "train.start_size_px": 0, "train.batch_size": 4}
    assert asked == {
        "threads": 3, "config": with_values(config, plain), "store": f"store of {config.data.shards}",
        "folder": tmp_path, "world_size": 1, "splits": ("train",), "closed": 1,
    }  # fmt: skip


def test_the_command_reads_a_request_and_writes_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = Probe("cpu", False, 2, 5, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 6.0)
    asked: list[Any] = []
    config = with_values(RunConfig(), {"train.batch_size": 7})
    request = {"config": config_to_dict(config), "processes": 3, "threads": 2, "folder": str(tmp_path)}
    monkeypatch.setattr(probe, "probe", lambda *given: asked.append(given) or measured)
    monkeypatch.setattr(probe.sys, "stdin", io.StringIO(json.dumps(request)))
    probe.main()
    assert asked == [(config, 3, 2, tmp_path)]
    assert capsys.readouterr().out == json.dumps(asdict(measured)) + "\n"


@pytest.mark.parametrize(("kind", "waits"), [("cuda", 1), ("cpu", 0)])
def test_a_time_is_taken_once_the_device_has_done_its_work(
    monkeypatch: pytest.MonkeyPatch, kind: str, waits: int
) -> None:
    waited: list[str] = []
    monkeypatch.setattr(probe.torch.cuda, "synchronize", lambda: waited.append("for the GPU"))
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=lambda: 7.0 + len(waited)))
    assert probe.now(torch.device(kind)) == 7.0 + waits
    assert len(waited) == waits
