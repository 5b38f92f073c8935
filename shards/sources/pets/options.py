"""The flags of `python -m shards.pack` that choose pets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FolderOptions:
    """A folder in the layout of Oxford-IIIT Pet: there already, to download, or to draw."""

    source: Path | None = None
    """Folder in the Oxford-IIIT Pet layout, or its parent."""
    download: bool = False
    """Fetch Oxford-IIIT Pet (0.8 GB) with torchvision, unless it is there."""
    download_root: Path = Path("data/oxford")
    """Where --download keeps the data set."""
    synthetic: int = 0
    """Number of drawn pets: needs no download."""
    synthetic_folder: Path | None = None
    """Keep the drawn pets here, in the data set's layout; by default they are drawn aside and removed."""
    synthetic_longer_side_px: int = 200
    """Longer side of the largest drawn picture."""

    def __post_init__(self) -> None:
        if self.synthetic_folder is not None and not self.synthetic:
            raise ValueError("--synthetic-folder is where drawn pets are kept: it needs --synthetic N")
