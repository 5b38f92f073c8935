"""What a folder of pets can have that no other source has, by the names in a manifest."""

from __future__ import annotations

OF_MASKS = {
    "palette_trimap": "trimap is a palette PNG: written as grey values",
    "all_background": "trimap without pet and border",
}
OF_LISTS = {"unlisted_trimap": "trimap in no list: left out"}
