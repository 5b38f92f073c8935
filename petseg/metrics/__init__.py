"""Numbers and pictures made of masks; here what the user can choose, without torch so that `--help` is quick."""

from typing import Literal

Tta = Literal["none", "flips", "scales", "flips_scales"]
BOUNDARY_RATIO = 0.02  # of the diagonal, as Cheng et al. recommend
