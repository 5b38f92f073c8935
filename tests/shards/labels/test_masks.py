"""Mask files of any kind as class indices, and what is wrong with those that do not fit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.command import Failure
from shards.labels.masks import MaskSource, _distances, read_mask
from shards.labels.observed import LabelProblem
from shards.labels.rules import LabelRules, rules_of

VALUES = np.array([[0, 0, 7, 7, 9, 9], [0, 0, 7, 7, 9, 9]], np.uint8)
INDICES = [[0, 0, 1, 1, 255, 255]] * 2
BY_VALUE = rules_of({"ignore": [9], "class": [{"name": "a", "values": [0]}, {"name": "b", "values": [7]}]})
BY_COLOUR = rules_of(
    {"ignore": ["#ffffff"], "class": [{"name": "a", "colours": ["#800000"]}, {"name": "b", "colours": ["#008000"]}]}
)
COLOURS = np.array([[128, 0, 0], [0, 128, 0], [255, 255, 255]], np.uint8)
RGB = COLOURS[[[0, 0, 1, 1, 2, 2]] * 2]


def read(path: Path, rules: LabelRules, picture: np.ndarray | None = None, **options: bool):
    if picture is None:
        with Image.open(path) as image:
            picture = np.zeros((image.height, image.width, 3), np.uint8)
    return read_mask(MaskSource(((None, path),), path.name, "train", **options), rules, picture)


def problem_of(path: Path, rules: LabelRules, picture: np.ndarray | None = None) -> str:
    """The kind of fault that the mask is refused for."""
    with pytest.raises(LabelProblem, match=path.name) as caught:
        read(path, rules, picture)
    return caught.value.observed.faults[0][0]


def palette_image() -> Image.Image:
    image = Image.fromarray(VALUES, "P")
    palette = np.zeros((256, 3), np.uint8)
    palette[[0, 7, 9]] = COLOURS
    image.putpalette(palette.tobytes())
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "rules"),
    [
        (Image.fromarray(VALUES), "png", BY_VALUE),
        (Image.fromarray(VALUES), "tif", BY_VALUE),
        (Image.fromarray(VALUES), "bmp", BY_VALUE),
        (palette_image(), "png", BY_VALUE),
        (palette_image(), "gif", BY_COLOUR),
        (palette_image(), "png", BY_COLOUR),
        (Image.fromarray(RGB), "png", BY_COLOUR),
        (Image.fromarray(np.dstack([RGB, np.full(VALUES.shape, 255, np.uint8)])), "png", BY_COLOUR),
        (Image.fromarray(np.dstack([VALUES] * 3)), "png", BY_VALUE),
        (Image.fromarray(np.dstack([VALUES, VALUES * 0 + 255]), "LA"), "png", BY_VALUE),
    ],
    ids=["grey", "tiff", "bmp", "palette", "gif", "palette as colours", "rgb", "rgba", "grey as rgb", "grey and alpha"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kinds_of_masks(tmp_path: Path, image: Image.Image, suffix: str, rules: LabelRules) -> None:
    image.save(tmp_path / f"m.{suffix}")
    mask = read(tmp_path / f"m.{suffix}", rules)
    assert mask.indices.tolist() == INDICES
    assert mask.observed.pixels == (4, 4, 4)
    assert mask.oddities == ()


def test_16_bit(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 300], [300, 65535]], np.uint16)).save(tmp_path / "m.png")
    rules = rules_of({"ignore": [65535], "class": [{"name": "a", "values": [0]}, {"name": "b", "values": [300]}]})
    assert read(tmp_path / "m.png", rules).indices.tolist() == [[0, 1], [1, 255]]


def test_one_bit(tmp_path: Path) -> None:
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "m.png")
    rules = rules_of({"class": [{"name": "a", "values": [0]}, {"name": "b", "values": [1]}]})
    assert read(tmp_path / "m.png", rules).indices.tolist() == [[0, 1]]


def test_grey_in_a_table_of_colours(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "m.png")
    rules = rules_of({"class": [{"name": "a", "colours": ["#000000"]}, {"name": "b", "colours": ["#ffffff"]}]})
    assert read(tmp_path / "m.png", rules).indices.tolist() == [[0, 1]]


def areas(rng: np.random.Generator, values: list[int]) -> np.ndarray:
    """(64, 64) uint8 of rectangles."""
    mask = np.full((64, 64), values[0], np.uint8)
    for value in values[1:] * 3:
        top, left = rng.integers(0, 44, 2)
        mask[top : top + 20, left : left + 20] = value
    return mask


BINARY = rules_of({"class": [{"name": "a", "values": [0]}, {"name": "b", "values": [255]}]})
TEN = rules_of({"class": [{"name": str(value), "values": [value]} for value in range(10)]})


def test_a_jpeg_is_lossy_and_its_nearest_classes_are_the_mask(tmp_path: Path) -> None:
    mask = areas(np.random.default_rng(0), [0, 255])
    Image.fromarray(mask).save(tmp_path / "m.jpg", quality=75)
    assert problem_of(tmp_path / "m.jpg", BINARY) == "lossy"
    Image.open(tmp_path / "m.jpg").save(tmp_path / "m.png")
    assert problem_of(tmp_path / "m.png", BINARY) == "lossy"
    nearest = read(tmp_path / "m.jpg", BINARY, takes_nearest=True)
    assert (nearest.indices == (mask == 255)).mean() > 0.99
    assert nearest.oddities == ("lossy",)


def test_between_two_classes_the_first_of_the_table_counts() -> None:
    own = np.array([[3], [7], [200]])
    distances, nearest = _distances(np.array([[0], [4], [5], [6], [255]]), own)
    assert distances.tolist() == [3, 1, 2, 1, 55]
    assert nearest.tolist() == [0, 0, 0, 1, 2]


def test_colours_that_are_nearly_those_of_the_table(tmp_path: Path) -> None:
    rgb = RGB.repeat(8, 0).repeat(8, 1)
    rgb[3, 3] += np.array([1, 0, 2], np.uint8)
    Image.fromarray(rgb).save(tmp_path / "m.png")
    assert problem_of(tmp_path / "m.png", BY_COLOUR) == "lossy"
    assert read(tmp_path / "m.png", BY_COLOUR, takes_nearest=True).indices[3, 3] == 0


@pytest.mark.parametrize("way", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_interpolation_is_seen(tmp_path: Path, way: Image.Resampling) -> None:
    """Between 0 and 255 as values of no class; between classes 0 to 9 as other classes along the edges."""
    mask = Image.fromarray(areas(np.random.default_rng(1), [0, 255]))
    mask.resize((150, 150), way).save(tmp_path / "m.png")
    assert problem_of(tmp_path / "m.png", BINARY) == "interpolated"
    classes = Image.fromarray(areas(np.random.default_rng(2), [0, 9, 4, 7]))
    classes.resize((150, 150), Image.Resampling.BILINEAR).save(tmp_path / "ten.png")
    assert read(tmp_path / "ten.png", TEN).oddities == ("interpolated",)
    classes.resize((150, 150), Image.Resampling.NEAREST).save(tmp_path / "ten.png")
    assert read(tmp_path / "ten.png", TEN).oddities == ()


def test_other_problems(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    photo = rng.integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(areas(rng, [0, 1, 2, 33])).save(tmp_path / "value.png")
    assert problem_of(tmp_path / "value.png", TEN) == "unknown_value"
    assert problem_of(tmp_path / "value.png", BY_COLOUR) == "unknown_value"
    assert problem_of(tmp_path / "value.png", TEN, np.zeros((32, 64, 3), np.uint8)) == "size_differs"
    Image.fromarray(photo).save(tmp_path / "photo.png")
    assert problem_of(tmp_path / "photo.png", TEN, np.dstack([areas(rng, [0, 1, 2])] * 3)) == "swapped"
    assert problem_of(tmp_path / "photo.png", BY_COLOUR, np.dstack([areas(rng, [0, 1, 2])] * 3)) == "swapped"
    assert problem_of(tmp_path / "photo.png", TEN, photo) == "colours_or_values"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "one.png")
    assert read(tmp_path / "one.png", TEN).oddities == ("one_value",)


def test_the_message_says_which_values_and_how_often(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 7, 7, 11, 11, 12]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(LabelProblem, match=r"m\.png: 3 pixels of no class, 11, 12") as caught:
        read(tmp_path / "m.png", BY_VALUE)
    assert caught.value.observed.unknown == {"11": 2, "12": 1}
    assert caught.value.observed.pixels == (1, 2, 0)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(Failure, match=r"m\.png: not a readable PNG, TIFF"):
        read_mask(MaskSource(((None, tmp_path / "m.png"),), "m", "train"), TEN, np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("count", "colours", "oddities"),
    [(2, False, ()), (3, False, ("interpolated",)), (4, False, ("interpolated",)), (3, True, ())],
)
def test_steps_over_values_that_are_classes_are_seen_where_they_can_be_told(
    tmp_path: Path, count: int, colours: bool, oddities: tuple[str, ...]
) -> None:
    """Two classes have no value between them, and colours of classes have no order."""
    values = [0, 255, 128, 64][:count]
    edge = [0] * 5 + [128] * (count > 2) + [255] * 5
    ramp = np.tile(np.array(edge, np.uint8), (60, 9))
    key, one = ("colours", "#{0:02x}{0:02x}{0:02x}".format) if colours else ("values", int)
    rules = rules_of({"class": [{"name": f"c{value}", key: [one(value)]} for value in values]})
    Image.fromarray(np.dstack([ramp] * 3) if colours else ramp).save(tmp_path / "m.png")
    assert read(tmp_path / "m.png", rules).oddities == oddities


def test_a_jpeg_is_lossy_wherever_its_values_lie(tmp_path: Path) -> None:
    """Also where no pixel is near a class; a PNG of the same pixels is one of other values."""
    far = np.full((40, 40), 120, np.uint8)
    far[:20] = 0
    Image.fromarray(far).save(tmp_path / "m.jpg", quality=95)
    Image.fromarray(far).save(tmp_path / "m.png")
    rules = rules_of({"class": [{"name": "a", "values": [0]}, {"name": "b", "values": [255]}]})
    assert problem_of(tmp_path / "m.jpg", rules) == "lossy"
    assert problem_of(tmp_path / "m.png", rules) == "unknown_value"
