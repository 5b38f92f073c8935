"""The sheet of `python -m petseg.augment` shows pictures as a run of the same flags gets them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.augment.__main__ import Command, main
from petseg.config import AugmentConfig
from petseg.metrics.overlay import CAPTION_PX, draw_sheet
from shards.command import OK, WRONG_USE, run_command
from shards.pack import pack
from shards.packing.options import PackConfig

LABEL_PX = 40  # more than the caption of a cell is high


@pytest.fixture(scope="module")
def wide_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Drawn pets at their own sizes, none of them square."""
    out = tmp_path_factory.mktemp("wide") / "shards"
    pack(PackConfig(out=out, synthetic=12, seed=3, synthetic_longer_side_px=120, workers=1))
    return str(out)


def sheet(shards: str, out: Path, *flags: str) -> np.ndarray:
    words = ["--shards", shards, "--policy", "none", "--image-size-px", "64", "--pictures", "3", "--epochs", "3"]
    assert run_command(main, [*words, "--out", str(out), *flags]) == OK
    with Image.open(out) as image:
        return np.asarray(image)


def columns(drawn: np.ndarray) -> list[np.ndarray]:
    """The first row of the sheet, a column each, without the captions."""
    return [part[LABEL_PX : LABEL_PX + 20] for part in np.array_split(drawn, 4, axis=1)]


def test_each_rule_of_size_gives_its_own_sheet(wide_shards: str, tmp_path: Path) -> None:
    drawn = {fit: sheet(wide_shards, tmp_path / f"{fit}.png", "--fit", fit) for fit in ("squash", "letterbox", "crop")}
    assert len({one.tobytes() for one in drawn.values()}) == 3
    assert len({one.shape for one in drawn.values()}) == 1
    assert np.array_equal(columns(drawn["letterbox"])[0], columns(drawn["crop"])[0])  # the whole picture, to compare
    first, second, third = columns(drawn["crop"])[1:]  # no two epochs cut the same
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
    first, second, _ = columns(drawn["squash"])[1:]
    assert np.array_equal(first, second)  # policy none


def test_rare_crops_need_crops() -> None:
    assert run_command(main, ["--fit", "squash", "--rare-crops", "0.5"]) == WRONG_USE
    assert Command(fit="crop", rare_crops=1.0, augment=AugmentConfig()).rare_crops == 1.0


def test_flat_pictures_leave_no_empty_space() -> None:
    """Two rows: a wide picture beside a square one, and two wide ones alone."""
    wide, square = np.zeros((32, 64, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)
    drawn = draw_sheet([("a", wide), ("b", square), ("c", wide), ("d", wide)], columns=2, size_px=64)
    assert drawn.size == (128, (CAPTION_PX + 64) + (CAPTION_PX + 32))
