"""Which bytes stand for a picture and its mask in a shard, and by which hash the picture is known."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from shards.command import Failure
from shards.encoding import encode_jpeg, encode_png
from shards.near_duplicates.picture_hash import picture_hash, pixels_hash
from shards.packing.orientation import exif_orientation, without_app1
from shards.packing.pictures import Packed, hash_chunk, pack_chunk, pack_sample, read_picture
from shards.sources.pets.oxford import read_folder


def pack_one(odd, image_size_px: int = 0, **files: bytes) -> Packed:
    odd.add("pug_1", **files)
    (sample,) = read_folder(odd.root).samples
    return pack_sample(sample, image_size_px)


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_a_squashed_picture_is_antialiased_and_its_mask_is_not(odd, make) -> None:
    packed = pack_one(odd, image_size_px=7)
    source = Image.open(odd.picture("pug_1"))
    assert packed.jpg == encode_jpeg(np.asarray(source.resize((7, 7), Image.Resampling.BILINEAR)))
    assert packed.png == encode_png(np.asarray(make["trimap"]().resize((7, 7), Image.Resampling.NEAREST)))


@pytest.mark.parametrize("image_size_px", [0, 7])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_is_known_as_its_readers_see_it(odd, make, image_size_px: int, kind: str) -> None:
    """Also before it is packed, by which duplicates are left out."""
    picture, mask = make["encode"](make["rgb"](64, 48), kind), make["encode"](make["trimap"](64, 48), "PNG")
    packed = pack_one(odd, image_size_px, jpg=picture, png=mask)
    assert packed.hash == picture_hash(packed.jpg)
    samples = tuple(read_folder(odd.root).samples)
    assert hash_chunk(samples, image_size_px) == [packed.hash]
    odd.picture("pug_1").write_bytes(b"no picture")
    odd.add("pug_2")
    one, other = hash_chunk(tuple(read_folder(odd.root).samples), image_size_px)
    assert (one, other) == (None, pack_sample(read_folder(odd.root).samples[1], image_size_px).hash)


def test_a_picture_that_keeps_its_bytes_is_known_by_the_pixels_that_were_read(odd) -> None:
    odd.add("pug_1")
    picture = read_picture(odd.picture("pug_1"))
    assert pack_sample(read_folder(odd.root).samples[0], 0).hash == pixels_hash(picture.pixels)


def test_another_format_is_encoded_from_its_own_pixels(odd, make) -> None:
    packed = pack_one(odd, jpg=make["encode"](make["rgb"](), "PNG"))
    assert packed.jpg == encode_jpeg(np.asarray(make["rgb"]()))


def test_a_grey_jpeg_is_encoded_anew_even_without_a_doubt(odd, make) -> None:
    """Its readers take three channels."""
    packed = pack_one(odd, jpg=make["encode"](make["rgb"]().convert("L")))
    assert (packed.oddities, packed.doubts) == (("not_rgb",), ())
    assert Image.open(io.BytesIO(packed.jpg)).mode == "RGB"


def test_a_turned_picture_of_another_format_is_not_turned_either(odd, make) -> None:
    data = make["encode"](make["rgb"](), "PNG", exif=exif_of(6))
    packed = pack_one(odd, jpg=data)
    assert packed.oddities == ("not_jpeg", "exif_rotation")
    assert packed.jpg == encode_jpeg(pixels_of(data))


def test_a_jpeg_with_a_second_one_behind_it_is_a_jpeg(odd, make) -> None:
    """As some cameras write (MPO)."""
    for options, oddities in (({}, ()), ({"exif": exif_of(3)}, ("exif_rotation",))):
        data = make["encode"](make["rgb"](), "MPO", save_all=True, append_images=[make["rgb"](8, 8)], **options)
        odd.add("pug_1", jpg=data)
        picture = read_picture(odd.picture("pug_1"))
        assert picture.oddities == oddities
        assert picture.jpg == (data if not oddities else without_app1(data))
        assert (picture.pixels == pixels_of(data)).all()


def test_a_picture_that_is_known_to_be_damaged_is_not_suspected_as_well(odd, make) -> None:
    pixels = np.array(make["rgb"](160, 160))
    pixels[112:] = 128
    data = make["encode"](Image.fromarray(pixels), quality=90)
    odd.add("pug_1", jpg=data[:-2] + b"abc" * 9 + data[-2:])
    picture = read_picture(odd.picture("pug_1"))
    assert picture.oddities == ("corrupt_jpeg",)
    assert picture.doubt.startswith("Corrupt JPEG data")
    assert picture.jpg is None


def test_a_jpeg_is_asked_for_its_size_before_it_is_decoded(odd, make) -> None:
    data = make["encode"](make["rgb"]())
    at = data.index(b"\xff\xc0") + 5
    assert struct.unpack(">HH", data[at : at + 4]) == (16, 24)
    odd.add("pug_1", jpg=data[:at] + struct.pack(">HH", 5001, 5000) + data[at + 4 :])
    with pytest.raises(Failure, match=r"pug_1\.jpg: 5000 x 5001 is more than 25 megapixels; make it smaller$"):
        read_picture(odd.picture("pug_1"))


def test_a_palette_without_transparency_and_a_transparent_picture(odd, make) -> None:
    """What lies under transparent pixels is shown."""
    plain = make["rgb"]().convert("P")
    packed = pack_one(odd, jpg=make["encode"](plain, "PNG"))
    assert packed.jpg == encode_jpeg(np.asarray(plain.convert("RGB")))
    clear = make["rgb"]()
    clear.putalpha(0)
    odd.add("pug_1", jpg=make["encode"](clear, "PNG"))
    assert (read_picture(odd.picture("pug_1")).pixels == np.asarray(make["rgb"]())).all()


def test_a_chunk_is_packed_at_the_size_that_is_asked(odd) -> None:
    odd.add("pug_1")
    (packed,) = pack_chunk(tuple(read_folder(odd.root).samples), 9)
    assert isinstance(packed, Packed)
    assert pixels_of(packed.jpg).shape == (9, 9, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_read_as_they_are_written(make, orientation: int) -> None:
    image = Image.open(io.BytesIO(make["encode"](make["rgb"](), exif=exif_of(orientation))))
    assert exif_orientation(image) == orientation


def test_orientations_that_are_none(make) -> None:
    assert exif_orientation(Image.open(io.BytesIO(make["encode"](make["rgb"]())))) == 1
    for orientation in (0, 9):
        image = Image.open(io.BytesIO(make["encode"](make["rgb"](), exif=exif_of(orientation))))
        assert exif_orientation(image) == 0
    image = make["rgb"]()
    image.info["exif"] = b"Exif\0\0no TIFF header"
    assert exif_orientation(image) == 0
    as_text = b"Exif\0\0II*\0" + struct.pack("<IHHHI4sI", 8, 1, 0x0112, 2, 2, b"6\0", 0)
    image = Image.open(io.BytesIO(make["encode"](make["rgb"](), exif=as_text)))
    assert image.getexif()[0x0112] == "6"
    assert exif_orientation(image) == 0


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def test_all_exif_segments_go_and_all_others_stay() -> None:
    app0, exif, xmp, icc = segment(0xE0, b"JFIF"), segment(0xE1, b"Exif"), segment(0xE1, b"http"), segment(0xE2, b"ICC")
    scan = segment(0xDA, b"scan") + b"\x12\xff\x00" + exif + b"\xff\xd9"
    assert without_app1(b"\xff\xd8" + app0 + exif + icc + xmp + scan) == b"\xff\xd8" + app0 + icc + scan
    assert without_app1(b"\xff\xd8" + exif + scan + exif) == b"\xff\xd8" + scan + exif
    assert (
        without_app1(b"\xff\xd8" + app0 + segment(0xDA, b"") + exif) == b"\xff\xd8" + app0 + segment(0xDA, b"") + exif
    )
    long = segment(0xE1, bytes(300))
    assert without_app1(b"\xff\xd8" + long + scan) == b"\xff\xd8" + scan


@pytest.mark.parametrize("cut", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\x00"])
def test_a_jpeg_that_is_cut_short_stays_as_it_is(cut: bytes) -> None:
    assert without_app1(cut) == cut
