"""The contact sheet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.archive import ShardWriter
from shards.command import OK, WRONG_USE, Failure, run_command
from shards.index import load_index
from shards.manifest import Manifest, Source, load_manifest, save_manifest, split_of_keys
from shards.pack import pack
from shards.show import ShowConfig, main, show
from tests.scenes import Scenes


def test_a_sheet(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert run_command(main, [str(packed), "--out", str(out), "--count", "7", "--tile-px", "64"]) == OK
    assert "7 samples" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    with Image.open(out) as sheet:
        assert sheet.width > 3 * 64


def test_masks_are_drawn_over(packed: Path, tmp_path: Path) -> None:
    sheets = []
    for name, masks in (("with", True), ("without", False)):
        config = ShowConfig(packed, out=tmp_path / f"{name}.png", count=1, masks=masks)
        assert show(config) == 1
        sheets.append(np.asarray(Image.open(config.out)).astype(int))
    redder = (sheets[0] - sheets[1])[..., 0] - (sheets[0] - sheets[1])[..., 2]
    assert (redder > 20).mean() > 0.05


def test_masks_are_drawn_over_a_grey_picture(folder: Path, make, pair, tmp_path: Path) -> None:
    """A set that petseg packed holds none, but a foreign one may."""
    jpg, png = make["encode"](make["rgb"]().convert("L")), pair(0)[1]
    with ShardWriter(folder, "val-000000.tar", "val") as writer:
        writer.add("pug_1", jpg, png, b"{}")
    meaning = {"pet": 1, "background": 2, "border": 3}
    splits = {"val": split_of_keys(["pug_1"])}
    save_manifest(Manifest(Source("x", "", meaning), {}, splits, (writer.shard,)), folder)
    assert show(ShowConfig(folder, out=tmp_path / "sheet.png", split="val")) == 1
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "RGB"


def test_chosen_keys_of_any_split(packed: Path, tmp_path: Path) -> None:
    keys = tuple(load_index(packed, f"{split}-000000.tar")[0].key for split in ("train", "val", "test"))
    assert show(ShowConfig(packed, out=tmp_path / "sheet.png", keys=keys)) == 3


def test_wrong_use(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "sheet.png")
    assert run_command(main, [str(packed), "--out", out, "--split", "dev"]) == WRONG_USE
    assert "it has 27 train, 3 val, 30 test" in capsys.readouterr().err
    assert run_command(main, [str(packed), "--out", out, "--keys", "nobody_1"]) == WRONG_USE
    assert "no sample nobody_1" in capsys.readouterr().err
    assert run_command(main, [str(packed), "--out", "sheet.jpg"]) == WRONG_USE
    assert list(tmp_path.iterdir()) == []


def test_damage_points_to_verify(shard_set: Path, tmp_path: Path) -> None:
    path = shard_set / "val-000000.tar"
    whole, sample = path.read_bytes(), load_index(shard_set, path.name)[0]
    config = ShowConfig(shard_set, out=tmp_path / "sheet.png", split="val")
    altered = bytearray(whole)
    altered[sample.png.offset + 60] ^= 1
    for content in (b"", whole[: sample.jpg.offset + 9], bytes(altered)):
        path.write_bytes(content)
        with pytest.raises(Failure, match=r"do not match the index; see `python -m shards\.verify"):
            show(config)
    path.unlink()
    with pytest.raises(Failure, match=r"No such file.*see `python -m shards\.verify"):
        show(config)
    assert not config.out.exists()


def test_members_that_were_damaged_when_they_were_packed(tmp_path: Path, make) -> None:
    jpg, png = make["encode"](make["rgb"]()), make["encode"](make["trimap"](), "PNG")
    for kind, members, problem in (
        ("mask", (jpg, png[:-20] + bytes(20)), "the mask was damaged when it was packed"),
        ("picture", (b"no picture", png), "no readable JPEG; see"),
        ("bomb", (make["encode"](make["rgb"]())[:400], png), "no readable JPEG"),
    ):
        folder = tmp_path / kind
        folder.mkdir()
        with ShardWriter(folder, "val-000000.tar", "val") as writer:
            writer.add("pug_1", *members, b"{}")
        save_manifest(Manifest(Source("x", ""), {}, {"val": split_of_keys(["pug_1"])}, (writer.shard,)), folder)
        with pytest.raises(Failure, match=problem) as error:
            show(ShowConfig(folder, out=tmp_path / "sheet.png", split="val"))
        assert "pug_1" in str(error.value)
        assert "BytesIO" not in str(error.value)


def test_half_of_a_pixel_is_the_colour_of_its_class(tmp_path: Path) -> None:
    scenes = Scenes(tmp_path / "scenes")
    for number in range(4):
        scenes.add(f"s{number}", "train" if number else "val")
    pack(scenes.config(tmp_path / "set"))
    sheets = []
    for masks in (True, False):
        config = ShowConfig(tmp_path / "set", out=tmp_path / "sheet.png", count=1, tile_px=48, masks=masks)
        assert show(config) == 1
        sheets.append(np.asarray(Image.open(config.out)).astype(int))
    changed = (sheets[0] != sheets[1]).any(axis=2)
    assert changed.sum() > 0.5 * 48 * 32
    mixed_in = 2 * sheets[0][changed] - sheets[1][changed]
    table = load_manifest(tmp_path / "set").classes
    assert table is not None
    colours = np.array([*(one.colour for one in table.classes), (255, 255, 255)])  # white: ignored
    distances = np.abs(mixed_in[:, None] - colours[None]).max(axis=2)  # integers lose up to one
    assert distances.min(axis=1).max() <= 1
    assert set(distances.argmin(axis=1)) == set(range(len(colours)))
