"""The sheet of `python -m petseg.augment` shows pictures as a run of the same flags gets them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from petseg.augment.__main__ import Command, draw_changes, main
from petseg.augment.draws import Change, draw
from petseg.config import AugmentConfig
from petseg.config.sizes import ImageSize
from petseg.data.plan import Ids
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


@pytest.mark.parametrize(
    "fields", [{"pictures": 0}, {"epochs": 0}, {"image_size_px": 0}, {"rare_crops": 1.5, "fit": "crop"}]
)
def test_flags_that_draw_nothing_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        Command(**fields)


def small(shards: str, **fields: Any) -> Command:
    return Command(shards=shards, image_size_px=16, **fields)


def test_a_split_that_the_set_lacks_is_refused_with_those_that_it_has(wide_shards: str) -> None:
    with pytest.raises(ValueError, match="has no split night: it has train, val, test"):
        draw_changes(small(wide_shards, split="night"))


def test_there_is_a_row_for_each_picture_and_no_more(wide_shards: str) -> None:
    """The test split has fewer pictures than are asked for."""
    whole, more = (draw_changes(small(wide_shards, split="test", pictures=n, epochs=1)) for n in (6, 50))
    assert np.array_equal(np.asarray(whole), np.asarray(more))


def test_the_columns_are_the_epochs_of_a_run_which_begin_with_1(
    wide_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def noted(config: AugmentConfig, ids: Ids, seed: int, epoch: int, image_size_px: ImageSize) -> Sequence[Change]:
        drawn.append(epoch)
        return draw(config, ids, seed, epoch, image_size_px)

    monkeypatch.setattr("petseg.augment.draws.draw", noted)
    draw_changes(small(wide_shards, epochs=3, pictures=1))
    assert drawn == [1, 2, 3]
