"""What the user can choose of an evaluation, readable without torch so that `--help` is quick."""

from __future__ import annotations

from typing import Literal

Tta = Literal["none", "flips", "scales", "flips_scales"]
BOUNDARY_RATIO = 0.02  # of the diagonal, as Cheng et al. recommend
