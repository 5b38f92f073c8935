"""What a listing says of its set."""

from __future__ import annotations

import numpy as np
from PIL import Image

from shards.labels.rules import rules_of
from shards.manifest import Source
from shards.sources.listing import Listing, Mask


def test_a_listing_with_rules_is_of_the_version_with_a_table() -> None:
    rules = rules_of({"class": [{"name": "a", "values": [0]}, {"name": "b", "values": [1]}]})
    without, with_rules = Listing(Source("x", ""), ()), Listing(Source("x", ""), (), rules=rules)
    assert (without.format_version, without.classes) == (1, None)
    assert (with_rules.format_version, with_rules.classes) == (2, rules.table())


def test_the_pixels_of_a_mask_are_rows_and_columns() -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(Mask(Image.fromarray(values)).pixels, values)
