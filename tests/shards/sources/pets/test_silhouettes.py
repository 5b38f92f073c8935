"""How the parts of a drawn pet are posed in its picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shards.sources.pets import silhouettes
from shards.sources.pets.silhouettes import Part, pose_pet

SQUARE = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]])


class Draws:
    """Draws this turn and this flip, and the middle of all ranges."""

    def __init__(self, turn: float, flip: float) -> None:
        self.turn, self.flip = turn, flip

    def choice(self, values: list[Any], p: list[float] | None = None) -> Any:
        return values[0] if p else self.flip

    def normal(self, mean: float, spread: float) -> float:
        return self.turn

    def uniform(self, low: float, high: float, shape: tuple[int, ...] | int = ()) -> Any:
        return np.full(shape, (low + high) / 2)


@pytest.mark.parametrize("flip", [1.0, -1.0])
@pytest.mark.parametrize("turn", [0.0, 0.3, -0.3])
def test_a_pose_turns_and_mirrors_a_pet_and_keeps_its_shape(
    turn: float, flip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silhouettes, "POSES", {"sit": lambda rng, species: [Part("body", SQUARE)]})
    rng: Any = Draws(turn, flip)
    (part,) = pose_pet(rng, "cat", 200, 160)
    outline = part.outline
    along, down = outline[1] - outline[0], outline[3] - outline[0]
    assert along @ down == pytest.approx(0, abs=1e-9)
    assert np.linalg.norm(along) == pytest.approx(2 * np.linalg.norm(down))
    assert np.sign(along[0] * down[1] - along[1] * down[0]) == flip
    assert abs(along[1] / along[0]) == pytest.approx(abs(np.tan(turn)))
    middle = (outline.min(0) + outline.max(0)) / 2
    assert middle == pytest.approx([100, 80])
