"""The section that breaks the Dice down by parts of the pictures."""

import numpy as np
import pytest

from jobs.reporting.sections.breakdown.rows import gather_rows


def test_parts_of_the_pictures_come_in_alphabetical_order() -> None:
    rows = gather_rows(["b", "a", "b", "c"], np.array([[0.2, 0.5, 0.4, 0.9], [0.0, 0.1, 1.0, 0.3]]))
    assert [(row.name, row.num_pictures) for row in rows] == [("a", 1), ("b", 2), ("c", 1)]
    assert [[mean.value for mean in row.means] for row in rows] == [[0.5, 0.1], pytest.approx([0.3, 0.5]), [0.9, 0.3]]
