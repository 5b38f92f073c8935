"""Whether a run's steps run compiled: as its config says or, with train.compile = auto, as they are measured to be.

Compiling took 95 s on an H100 and made steps of one version slower, of another three times as fast (LOG.md), so it is
tried within the run: some steps as they are, the compilation, and some compiled steps. Only steps of a full batch of
full-size pictures are measured, because only those are compiled. The device is waited for before and after each, some
forty times in a run. The main process decides for all. The decision is part of the run's progress: a resumed run goes
on with it, also on another device, and one that resumes from before the decision measures again.
"""

from __future__ import annotations

import enum
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from petseg.run.compiling.artifacts import SharedArtifacts
from petseg.run.compiling.forward import CompiledForward
from petseg.run.graphs import PassGraphs
from petseg.run.progress import Progress

SKIPPED_STEPS = 5  # after each change: graphs are captured, cuDNN chooses its algorithms
MEASURED_STEPS = 15
EXPECTED_COMPILE_S = 95.0  # resnet34_unet on an H100
MOST_GAIN = 0.5  # share of a step that compiling may save, for whether to try at all
CLEAR_GAIN = 0.02  # share of a step; less is noise

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompileGain:
    """What compiling was measured to bring a run."""

    eager_s: float  # of a step, the median
    compiled_s: float
    compile_s: float
    steps_left: int

    @property
    def is_clear(self) -> bool:
        """Whether compiled steps are quicker; the compilation is paid by now."""
        return self.compiled_s < (1 - CLEAR_GAIN) * self.eager_s

    @property
    def saved_s(self) -> float:
        return (self.eager_s - self.compiled_s) * self.steps_left

    def __str__(self) -> str:
        return (
            f"a step takes {1e3 * self.compiled_s:.1f} ms compiled and {1e3 * self.eager_s:.1f} ms as it is; compiling "
            f"took {self.compile_s:.0f} s, and the {self.steps_left} steps left would take {self.saved_s:+.0f} s less"
        )


class Phase(enum.Enum):
    EAGER = enum.auto()  # measures steps as they are
    COMPILED = enum.auto()  # measures compiled steps
    SETTLED = enum.auto()


@dataclass
class CompileChoice:
    """Runs training steps and measures some of them, until it is settled how the others run."""

    compiled: CompiledForward
    shared: SharedArtifacts
    graphs: PassGraphs  # captured anew when steps change
    accelerator: Accelerator
    progress: Progress  # has the decision
    always: bool = False  # decided by the config
    phase: Phase = Phase.EAGER
    _seen: int = 0  # steps of this phase
    _seconds: list[float] = field(default_factory=list)
    _eager_s: float = 0.0
    _compile_s: float = 0.0

    def run_step(self, step: Callable[[], None], is_full: bool, steps_left: int) -> None:
        """Run an optimizer step. Each process must call it, with the same is_full and steps_left.

        is_full: a full batch of full-size pictures; steps_left: of the run, with this one
        """
        if not is_full or self.phase is Phase.SETTLED:
            step()
            return
        if (known := self.always or self.progress.compiled) is not None:
            self._settle(known)
            step()
            return
        seconds = self._timed(step)
        self._seen += 1
        if self._seen > SKIPPED_STEPS:
            self._seconds.append(seconds)
        if len(self._seconds) == MEASURED_STEPS:
            self._end_phase(steps_left - 1)

    def _timed(self, step: Callable[[], None]) -> float:
        on_gpu = self.accelerator.device.type == "cuda"
        wait: Callable[[], None] = torch.cuda.synchronize if on_gpu else lambda: None
        wait()
        began = time.perf_counter()
        step()
        wait()
        return time.perf_counter() - began

    def _end_phase(self, steps_left: int) -> None:
        median_s = statistics.median(self._seconds)
        self._seen, self._seconds = 0, []
        if self.phase is Phase.EAGER:
            self._eager_s = median_s
            most_s = steps_left * median_s * MOST_GAIN
            (worth_trying,) = broadcast_object_list([most_s > EXPECTED_COMPILE_S])
            if worth_trying and self._enable():
                self.phase = Phase.COMPILED
                return
            self._log(f"the run stays as it is: its {steps_left} steps left take {steps_left * median_s:.0f} s")
            self._settle(False)
            return
        gain = CompileGain(self._eager_s, median_s, self._compile_s, steps_left)
        (keep,) = broadcast_object_list([gain.is_clear])
        self._log(f"{gain}: the run goes on {'compiled' if keep else 'as it is'}")
        self._settle(keep)

    def _enable(self) -> bool:
        """Compile on all processes; False, on all, if one of them could not."""
        failed = 0
        try:
            self._compile_s = self.compiled.warm_up(self.shared)
        except Exception as error:  # a compiler that fails on a layer must not end a run that did not ask for it
            if self.always:
                raise
            failed = 1
            logger.warning("compiling failed: %s: %s", type(error).__name__, str(error).partition("\n")[0])
        own = torch.tensor(failed, device=self.accelerator.device)
        if self.accelerator.reduce(own).item():
            return False
        self._switch(True)
        return True

    def _settle(self, compiled: bool) -> None:
        if compiled and not self.compiled.enabled:
            compiled = self._enable()
        self._switch(compiled)
        self.progress.compiled, self.phase = compiled, Phase.SETTLED

    def _switch(self, enabled: bool) -> None:
        if enabled != self.compiled.enabled:
            self.compiled.enabled = enabled
            self.graphs.forget()

    def _log(self, outcome: str) -> None:
        if self.accelerator.is_main_process:
            logger.info("train.compile = auto: %s", outcome)
