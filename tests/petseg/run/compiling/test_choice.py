"""Whether steps run compiled: measured, decided by the main process, and kept by a resumed run."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run.compiling import choice
from petseg.run.compiling.artifacts import SharedArtifacts
from petseg.run.compiling.choice import MEASURED_STEPS, SKIPPED_STEPS, CompileChoice, CompileGain, Phase
from petseg.run.compiling.forward import CompiledForward
from petseg.run.graphs import PassGraphs
from petseg.run.progress import Progress
from petseg.run.run import build_choice
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.training.loop import train

Tiny = Callable[..., RunConfig]
PHASE_STEPS = SKIPPED_STEPS + MEASURED_STEPS


class Device:
    """A clock on which a step takes one time or the other, and a model that can be compiled on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, eager_s: float, compiled_s: float, error: str = "") -> None:
        self.now, self.eager_s, self.compiled_s, self.error = 0.0, eager_s, compiled_s, error
        self.compilations, self.captures_dropped, self.steps = 0, 0, 0
        monkeypatch.setattr("petseg.run.compiling.choice.time.perf_counter", lambda: self.now)
        self.compiled = CompiledForward(torch.nn.Identity(), set(), Path())
        monkeypatch.setattr(self.compiled, "warm_up", self.warm_up)

    def warm_up(self, shared: SharedArtifacts) -> float:
        self.compilations += 1
        if self.error:
            raise RuntimeError(self.error)
        return 60.0

    def step(self) -> None:
        self.steps += 1
        self.now += self.compiled_s if self.compiled.enabled else self.eager_s

    def forget(self) -> None:
        self.captures_dropped += 1

    def choice(self, progress: Progress, **fields: Any) -> CompileChoice:
        accelerator = SimpleNamespace(device=torch.device("cpu"), is_main_process=True, reduce=lambda tensor: tensor)
        graphs = cast(PassGraphs, SimpleNamespace(forget=self.forget))
        shared = SharedArtifacts((), torch.device("cpu"))
        return CompileChoice(self.compiled, shared, graphs, cast(Accelerator, accelerator), progress, **fields)

    def run(self, chosen: CompileChoice, steps: int, total: int = 100_000) -> None:
        for done in range(steps):
            chosen.run_step(self.step, is_full=True, steps_left=total - done)


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petseg.run.compiling.choice.broadcast_object_list", lambda objects: objects)


@pytest.mark.parametrize(("compiled_s", "kept"), [(0.02, True), (0.0395, False), (0.06, False)])
def test_the_quicker_way_wins_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compiled_s: float, kept: bool
) -> None:
    device, progress = Device(monkeypatch, 0.04, compiled_s), Progress(1000, 100_000)
    chosen = device.choice(progress)
    with caplog.at_level(logging.INFO):
        device.run(chosen, 3 * PHASE_STEPS)
    assert device.compiled.enabled is progress.compiled is kept
    assert chosen.phase is Phase.SETTLED
    assert device.steps == 3 * PHASE_STEPS
    assert device.compilations == 1
    assert device.captures_dropped == (1 if kept else 2)
    (message,) = (record.getMessage() for record in caplog.records)
    assert f"{1e3 * compiled_s:.1f} ms compiled and 40.0 ms as it is; compiling took 60 s" in message
    assert f"the {100_000 - 2 * PHASE_STEPS} steps left" in message


def test_a_run_that_is_soon_over_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    device, progress = Device(monkeypatch, 0.04, 0.01), Progress(1000, 1000)
    device.run(device.choice(progress), 100, total=1000)
    assert device.compilations == 0
    assert progress.compiled is False


def test_a_compiler_that_fails_leaves_the_run_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device, progress = Device(monkeypatch, 0.04, 0.01, error="no such layer\nand more"), Progress(1000, 100_000)
    device.run(device.choice(progress), PHASE_STEPS + 1)
    assert progress.compiled is False
    assert device.steps == PHASE_STEPS + 1
    assert "compiling failed: RuntimeError: no such layer" in caplog.text
    with pytest.raises(RuntimeError, match="no such layer"):
        device.run(device.choice(Progress(1000, 100_000), always=True), 1)


def test_other_steps_are_neither_measured_nor_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, 0.04, 0.01)
    chosen = device.choice(Progress(1000, 100_000))
    for _ in range(2 * PHASE_STEPS):
        chosen.run_step(device.step, is_full=False, steps_left=100_000)
    assert device.steps == 2 * PHASE_STEPS
    assert device.compilations == 0


@pytest.mark.parametrize("decided", [True, False])
def test_a_resumed_run_goes_on_as_it_was_decided(monkeypatch: pytest.MonkeyPatch, decided: bool) -> None:
    """Whatever the clock of this start would say."""
    saved = Progress(1000, 100_000, compiled=decided)
    device, progress = Device(monkeypatch, 0.04, 0.08 if decided else 0.01), Progress(1000, 100_000)
    chosen = device.choice(progress)
    progress.from_state(json.loads(json.dumps(saved.to_state())), budget_min=0)
    device.run(chosen, 3 * PHASE_STEPS)
    assert device.compiled.enabled is progress.compiled is decided
    assert device.compilations == int(decided)


def test_always_compiles_before_the_first_step_whatever_an_earlier_version_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, progress = Device(monkeypatch, 0.04, 0.08), Progress(1000, 100)
    chosen = device.choice(progress, always=True)
    progress.from_state({k: v for k, v in Progress(1000, 100).to_state().items() if k != "compiled"}, budget_min=0)
    device.run(chosen, 1)
    assert device.now == 0.08
    assert progress.compiled


def test_the_main_process_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """This one would try and keep a compiled step, and the main process says no to the second question."""
    answers: Iterator[bool] = iter([True, False])
    asked = []

    def broadcast(objects: list[bool]) -> list[bool]:
        asked.append(objects)
        return [next(answers)]

    monkeypatch.setattr("petseg.run.compiling.choice.broadcast_object_list", broadcast)
    device, progress = Device(monkeypatch, 0.04, 0.01), Progress(1000, 100_000)
    device.run(device.choice(progress), 3 * PHASE_STEPS)
    assert asked == [[True], [True]]
    assert progress.compiled is False
    assert not device.compiled.enabled


def test_no_process_runs_compiled_where_one_of_them_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """This one could; another one says that it has failed."""
    device, progress = Device(monkeypatch, 0.04, 0.01), Progress(1000, 100_000)
    one = device.choice(progress)
    monkeypatch.setattr(one.accelerator, "reduce", lambda tensor: tensor + 1)
    device.run(one, 2 * PHASE_STEPS)
    assert device.compilations == 1
    assert progress.compiled is False
    assert not device.compiled.enabled


def test_a_gain_is_counted_over_the_steps_left() -> None:
    gain = CompileGain(eager_s=0.04, compiled_s=0.03, compile_s=95.0, steps_left=1000)
    assert gain.saved_s == pytest.approx(10.0)
    assert gain.is_clear
    assert not CompileGain(0.04, 0.04, 0.0, 1000).is_clear


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_run_measures_decides_and_saves_its_decision(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A real run whose steps are measured as on a GPU, with the tracer in place of the compiler."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr("petseg.run.execution.why_no_choice", lambda config, device: None)
    monkeypatch.setattr(
        "petseg.run.compiling.forward.torch.compile", functools.partial(torch.compile, backend="aot_eager")
    )
    settings = {"SKIPPED_STEPS": 0, "MEASURED_STEPS": 2, "EXPECTED_COMPILE_S": 0.0, "CLEAR_GAIN": -100.0}
    for name, value in settings.items():
        monkeypatch.setattr(choice, name, value)
    torch._dynamo.reset()
    config = tiny(train__compile="auto", train__epochs=3, data__cache_dir=str(tmp_path / "cache"))
    with caplog.at_level(logging.INFO):
        train(config, tmp_path / "run")
    outcomes = [r.getMessage() for r in caplog.records if r.getMessage().startswith("train.compile = auto")]
    assert len(outcomes) == 1
    assert outcomes[0].endswith("the run goes on compiled")
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].state["compiled"] is True


def test_code_is_shared_by_runs_whose_steps_are_alike_and_by_no_others() -> None:
    """The key of shared code, by what a step computes with."""
    device = torch.device("cpu")
    progress, graphs = cast(Progress, None), cast(PassGraphs, None)

    def key(side: int = 32, **changes: Any) -> str:
        config = with_values(RunConfig(), {name.replace("__", "."): value for name, value in changes.items()})
        compiled = CompiledForward(torch.nn.Identity(), {(2, 3, side, side)}, Path())
        parts = SimpleNamespace(config=config, compiled=compiled, device=device, accelerator=None)
        chosen = build_choice(cast(Any, parts), graphs, progress)
        assert chosen is not None
        return chosen.shared.key

    assert key() == key(train__seed=7, optim__lr=0.5)
    others = [key(side=64), key(train__mixed_precision="bf16"), key(train__channels_last=False), key(model__width=8)]
    assert len({key(), *others}) == 5
