"""Flags that choose pets."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.sources.pets.options import FolderOptions


def test_a_folder_for_drawn_pets_needs_pets_that_are_drawn() -> None:
    with pytest.raises(ValueError, match=r"^--synthetic-folder is where drawn pets are kept: it needs --synthetic N$"):
        FolderOptions(synthetic_folder=Path("pets"))
    FolderOptions(synthetic_folder=Path("pets"), synthetic=3)
    FolderOptions(synthetic=3)
    FolderOptions()
