"""What a target calls its parts where people read of it: in a report, on the terminal, in wandb."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Words:
    """The words of any set with a class table; `petseg.targets.pets` has others."""

    mask: str = "mask"
    floor: str = "One class everywhere"  # the Dice of calling every pixel the same class
    floor_within: str = "the best guess of one class everywhere"  # the same within a sentence
    every_pixel: str = "calling every pixel the same class"
    kind: str = ""  # what the finer kinds of samples are called, "" in sets whose samples have none
    disputed: str = ""  # the pixels that the rules of the target count in different ways, "" with one rule
    rules: Mapping[str, str] = field(default_factory=dict)  # how a rule counts them, by its short name
