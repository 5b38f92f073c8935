"""The sheet of `python -m petseg.augment` shows pictures as a run of the same flags gets them."""

import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from petseg.augment.__main__ import Command, draw_changes, main, outlined, read_crops
from petseg.augment.draws import Change, draw
from petseg.config import AugmentConfig
from petseg.config.sizes import ImageSize
from petseg.data.plan import Ids
from petseg.data.store import open_store
from petseg.data.tars import TarReader
from petseg.data.whole.crops import CropReader, Crops
from petseg.metrics.overlay import CAPTION_PX, draw_sheet
from petseg.targets.target import Target
from shards.cause import Cause
from shards.classes import ClassEntry
from shards.command import OK, WRONG_USE, Failure, run_command
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


def test_each_picture_is_drawn_with_the_seed_whatever_p_says(wide_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Any, ...]] = []

    def noted(config: AugmentConfig, ids: Ids, seed: int, epoch: int, image_size_px: ImageSize) -> Sequence[Change]:
        drawn.append((config.policy, config.p, config.strong_p, ids.tolist(), seed, image_size_px))
        return draw(config, ids, seed, epoch, image_size_px)

    monkeypatch.setattr("petseg.augment.draws.draw", noted)
    augment = AugmentConfig(policy="rotate", p=0.0, strong_p=0.25)
    command = Command(augment=augment, shards=wide_shards, image_size_px="32x64", seed=9, epochs=1, pictures=3)
    number = open_store(wide_shards).manifest.splits["train"].num_samples
    draw_changes(command)
    spread = [0, (number - 1) // 2, number - 1]
    assert drawn == [("rotate", 1.0, 1.0, spread, 9, (32, 64))]


def test_a_sheet_has_a_row_of_keys_and_epochs_for_each_picture(
    wide_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets: list[tuple[list[str], int, int]] = []

    def noted(cells: Any, columns: int, size_px: int) -> Image.Image:
        sheets.append(([caption for caption, _ in cells], columns, size_px))
        return draw_sheet(cells, columns, size_px)

    monkeypatch.setattr("petseg.metrics.overlay.draw_sheet", noted)
    augment = AugmentConfig(policy="none")
    for size, cell_px in (("32x64", 64), (320, 256)):
        draw_changes(Command(augment, wide_shards, "train", pictures=2, epochs=2, image_size_px=size))
        reader = TarReader(open_store(wide_shards), "train", 32)
        first, last = reader.key(0), reader.key(len(reader) - 1)
        captions = [first, "epoch 1", "epoch 2", last, "epoch 1", "epoch 2"]
        assert sheets.pop() == (captions, 3, cell_px)


def test_crops_are_those_of_a_run_with_the_same_seed_epoch_and_share(wide_shards: str) -> None:
    command = Command(shards=wide_shards, image_size_px=32, fit="crop", rare_crops=1.0, seed=4)
    with closing(open_store(wide_shards)) as store:
        ids = np.arange(3)
        image, labels = read_crops(command, store, ids, epoch=7)
        reader = TarReader(store, "train", 32, "crop")
        expected = np.empty((3, 32, 32, 3), np.uint8), np.empty((3, 32, 32), np.uint8)
        CropReader(reader, Crops((32, 32), seed=4, epoch=7, rare=1.0)).load(ids, *expected)
        assert np.array_equal(image, expected[0])
        assert np.array_equal(labels, expected[1])
        assert not np.array_equal(read_crops(command, store, ids, epoch=8)[0], image)


def test_a_picture_that_cannot_be_read_is_named(wide_shards: str, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(wide_shards, tmp_path / "broken"))
    with closing(open_store(str(broken))) as store:
        os.truncate(broken / store.manifest.of_split("train")[0].name, 600)
    for fit in ("squash", "crop"):
        with pytest.raises(
            Failure, match=r"^cannot be read: \w+ at byte \d+ of train-000000\.tar: the shard ends"
        ) as error:
            draw_changes(Command(shards=str(broken), image_size_px=32, fit=fit))
        assert error.value.cause is Cause.DATA


def test_classes_are_outlined_in_their_colours_on_a_copy() -> None:
    pixels, classes = np.full((6, 6, 3), 9, np.uint8), np.zeros((6, 6), np.uint8)
    classes[1:4, 1:4], classes[5, 5] = 1, 2
    table = np.zeros((1, 256), np.uint8)
    entries = (ClassEntry("background", 0, (1, 1, 1)), ClassEntry("a", 1, (5, 6, 7)), ClassEntry("b", 2, (50, 60, 70)))
    drawn = outlined(pixels, classes, Target("any", entries, {"": table}, ""))
    assert drawn[1, 1].tolist() == drawn[3, 2].tolist() == [5, 6, 7]
    assert drawn[5, 5].tolist() == [50, 60, 70]
    assert (drawn == 9).all(axis=2).sum() == 36 - 8 - 1
    assert (pixels == 9).all()


@pytest.mark.parametrize("name", ["sheet", "sheet.txt", "sheet.psd", ".png"])
def test_a_name_that_says_no_format_is_refused_before_anything_is_read(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A .psd can be read by Pillow, and not written."""
    out = tmp_path / name
    assert run_command(main, ["--shards", str(tmp_path / "none"), "--out", str(out)]) == WRONG_USE
    said = f"error: {out}: the suffix says the format of a picture, as in .png or .jpg\n"
    assert capsys.readouterr().err == said
