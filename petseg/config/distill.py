"""Distillation (Hinton et al. 2015): a run learns the probabilities of a trained model beside the masks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from petseg.config.marks import LATER, TEACHER_BY_CONTENT
from petseg.config.rules import require

TEACHER_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class DistillConfig:
    teacher: str = field(default="", metadata=LATER | TEACHER_BY_CONTENT)
    """Weights file of a trained model (`python -m petseg.best`, also an ensemble), identified by its content: the run
    learns its probabilities on the same augmented pictures, beside the masks. Its classes, data.border, size and fit
    must be those of the run. Empty = none."""
    weight: float = field(default=0.5, metadata=LATER)
    """Share w of the teacher: the loss is (1 - w) train.loss + w T^2 KL(teacher, run), the mean over the pixels that
    count. 0 = a run without a teacher, of the same identity."""
    temperature: float = field(default=2.0, metadata=LATER)
    """T: the logits of teacher and run are divided by it, which brings out the teacher's small probabilities. Of no
    effect without a teacher."""

    def __post_init__(self) -> None:
        given = not self.teacher or self.teacher.endswith(TEACHER_SUFFIX)
        rule = f"give a weights file that ends in {TEACHER_SUFFIX}: make one with `python -m petseg.best`"
        require(given, "distill.teacher", self.teacher, rule)
        require(0 <= self.weight <= 1, "distill.weight", self.weight, "must lie in [0, 1]")
        require(0 < self.temperature < math.inf, "distill.temperature", self.temperature, "must be positive")

    @property
    def is_off(self) -> bool:
        """Whether the run learns from no teacher: then no field of the group changes a number."""
        return not self.teacher or self.weight == 0
