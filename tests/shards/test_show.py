"""The contact sheet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import show as show_module
from shards.archive import ShardWriter
from shards.command import OK, WRONG_USE, Failure, run_command
from shards.index import load_index
from shards.manifest import Manifest, Source, load_manifest, save_manifest, split_of_keys
from shards.pack import pack
from shards.show import MARGIN_PX, PAPER, ShowConfig, _choose, _fit, main, show
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 0}, "--count is 0, at least 1 is needed"),
        ({"tile_px": 31}, "--tile-px is 31, at least 32 is needed"),
        ({"seed": -1}, "--seed is -1, at least 0 is needed"),
        ({"out": Path("a.PNG")}, "--out a.PNG: the sheet is a .png file"),
    ],
)  # fmt: skip
def test_wishes_that_no_sheet_fulfils_are_named(options: dict, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
        ShowConfig(Path("set"), **options)
    assert str(error.value) == said
    ShowConfig(Path("set"), count=1, tile_px=32, seed=0)


def chosen(folder: Path, **options: object) -> list[str]:
    manifest = load_manifest(folder)
    places = _choose(ShowConfig(folder, **options), manifest)
    for shard, sample in places:
        assert sample in load_index(folder, shard)
    return [sample.key for _, sample in places]


def test_samples_are_drawn_by_the_seed_from_the_split_or_taken_by_their_keys(packed: Path) -> None:
    keys = {
        split: [s.key for shard in load_manifest(packed).of_split(split) for s in load_index(packed, shard.name)]
        for split in ("train", "val")
    }
    drawn = chosen(packed, count=9)
    assert len(set(drawn)) == 9
    assert set(drawn) < set(keys["train"])
    assert chosen(packed, count=9, seed=0) == drawn
    assert chosen(packed, count=8) == drawn[:8]
    assert chosen(packed, count=9, seed=1) != drawn
    assert sorted(chosen(packed, split="val", count=99)) == sorted(keys["val"])
    named = (keys["val"][1], keys["train"][3], keys["val"][1])
    assert tuple(chosen(packed, keys=named, count=1)) == named
    first = load_index(packed, load_manifest(packed).shards[0].name)[0].key
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
        chosen(packed, keys=("a", keys["val"][0], "b"))
    assert str(error.value) == f"no sample a, b in {packed}; keys look like {first}"


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (5, 3, 2), (7, 3, 3), (9, 4, 3)]
)
def test_a_sheet_is_somewhat_wider_than_high(packed: Path, tmp_path: Path, count: int, columns: int, rows: int) -> None:
    config = ShowConfig(packed, out=tmp_path / "sheet.png", count=count, tile_px=32)
    assert show(config) == count
    with Image.open(config.out) as sheet:
        assert sheet.size == (columns * (32 + MARGIN_PX) + MARGIN_PX, rows * (32 + MARGIN_PX + 14) + MARGIN_PX)
        assert sheet.getpixel((0, 0)) == PAPER


def test_each_picture_stands_in_its_cell_above_its_key(packed: Path, tmp_path: Path, monkeypatch) -> None:
    """Wide and high pictures alike are scaled to the tile's longer side, and lie in the middle of it."""
    sizes = [(32, 8), (8, 32), (32, 32)]
    tiles = iter([Image.new("RGB", size, (255, 0, number)) for number, size in enumerate(sizes)])
    monkeypatch.setattr(show_module, "_tile", lambda config, shard, sample, manifest: next(tiles))
    monkeypatch.setattr(show_module, "_fit", lambda text, font, room: text if room == 32 else "")
    texts: list[tuple[tuple[float, float], str]] = []

    def noted(self: object, place: tuple[float, float], text: str, *rest: object, **options: object) -> None:
        texts.append((place, text))

    monkeypatch.setattr(show_module.ImageDraw.ImageDraw, "text", noted)
    config = ShowConfig(packed, out=tmp_path / "sheet.png", count=3, tile_px=32)
    show(config)
    sheet = np.asarray(Image.open(config.out)).astype(int)
    cell, line = 32 + MARGIN_PX, 32 + MARGIN_PX + 14
    corners = [(MARGIN_PX, MARGIN_PX + 12), (MARGIN_PX + cell + 12, MARGIN_PX), (MARGIN_PX, MARGIN_PX + line)]
    for number, ((left, top), (width, height)) in enumerate(zip(corners, sizes, strict=True)):
        rows, columns = np.nonzero((sheet == (255, 0, number)).all(axis=2))
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (left, top, left + width, top + height)
    places = [(MARGIN_PX + 16, 39), (MARGIN_PX + cell + 16, 39), (MARGIN_PX + 16, 39 + line)]
    assert texts == list(zip(places, chosen(packed, count=3), strict=True))


@pytest.mark.parametrize(
    ("size", "scaled"), [((24, 16), (32, 21)), ((16, 24), (21, 32)), ((400, 2), (32, 1)), ((2, 400), (1, 32))]
)
def test_a_picture_keeps_its_shape(folder: Path, make, size: tuple[int, int], scaled: tuple[int, int]) -> None:
    jpg, png = make["encode"](Image.new("RGB", size, (0, 90, 0))), make["encode"](Image.new("L", size, 2), "PNG")
    with ShardWriter(folder, "val-000000.tar", "val") as writer:
        writer.add("k", jpg, png, b"{}")
    manifest = Manifest(Source("x", ""), {}, {"val": split_of_keys("k")}, (writer.shard,))
    (sample,) = load_index(folder, "val-000000.tar")
    config = ShowConfig(folder, split="val", tile_px=32)
    tile = show_module._tile(config, "val-000000.tar", sample, manifest)
    assert (tile.size, tile.mode) == (scaled, "RGB")


def test_long_keys_keep_their_end() -> None:
    class Font:
        def getlength(self, text: str) -> int:
            return len(text)

    assert [_fit(text, Font(), 8) for text in ("12345678", "123456789", "x" * 50 + "y")] == [
        "12345678", "...56789", "...xxxxy",
    ]  # fmt: skip
    assert _fit("123", Font(), 2) == "..."


def test_the_sheet_is_named_so_that_it_can_be_shown(packed: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(show_module, "show", lambda config: 24 if config == wanted else 0)
    wanted = ShowConfig(packed, tmp_path / "a\x1b.png", "val", 3, 4, ("k",), 50, False)
    words = ["--split", "val", "--count", "3", "--seed", "4", "--keys", "k", "--tile-px", "50", "--no-masks"]
    assert run_command(main, [str(packed), "--out", str(wanted.out), *words]) == OK
    assert capsys.readouterr().out == f"{tmp_path}/a\\x1b.png: 24 samples\n"
