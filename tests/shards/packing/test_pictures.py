"""Every oddity is counted, every picture that no training set can hold is refused by name."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from shards.command import Failure
from shards.packing import pictures
from shards.packing.pictures import ODDITIES, Packed, pack_chunk, pack_sample, read_picture
from shards.sources.pets.oxford import read_folder


def pack_one(odd, key: str = "pug_1", image_size_px: int = 0, **files: bytes) -> Packed:
    odd.add(key, **files)
    (pet,) = read_folder(odd.root).samples
    return pack_sample(pet, image_size_px)


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_good_bytes_are_not_touched(odd) -> None:
    packed = pack_one(odd)
    assert packed.jpg == odd.picture("pug_1").read_bytes()
    assert packed.png == odd.trimap("pug_1").read_bytes()
    assert packed.oddities == ()
    assert json.loads(packed.json) == {
        "key": "pug_1", "split": "val", "class_id": 1, "breed": "pug", "species": "cat", "width_px": 24,
        "height_px": 16, "original_width_px": 24, "original_height_px": 16, "oddities": [],
    }  # fmt: skip


def test_squashed_to_a_square(odd) -> None:
    packed = pack_one(odd, image_size_px=8)
    assert pixels_of(packed.jpg).shape == (8, 8, 3)
    trimap = pixels_of(packed.png)
    assert trimap.shape == (8, 8)
    assert set(np.unique(trimap)) == {1, 2, 3}
    facts = json.loads(packed.json)
    assert (facts["width_px"], facts["height_px"], facts["original_width_px"]) == (8, 8, 24)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_become_jpeg(odd, make, kind: str) -> None:
    picture = make["rgb"]()
    packed = pack_one(odd, jpg=make["encode"](picture.convert("P") if kind == "GIF" else picture, kind))
    assert packed.oddities == (("not_jpeg", "not_rgb") if kind == "GIF" else ("not_jpeg",))
    assert Image.open(io.BytesIO(packed.jpg)).format == "JPEG"


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("1", "PNG")]
)
def test_other_modes_become_rgb(odd, make, mode: str, kind: str) -> None:
    source = make["rgb"]().convert(mode)
    packed = pack_one(odd, jpg=make["encode"](source, kind))
    assert "not_rgb" in packed.oddities
    assert simplejpeg.decode_jpeg(packed.jpg).shape == (16, 24, 3)
    assert "corrupt_jpeg" not in packed.oddities


def test_a_transparent_palette_keeps_its_colours(odd, make) -> None:
    source = Image.new("P", (24, 16), 3)
    source.putpalette([0, 0, 0] * 3 + [200, 100, 50])
    packed = pack_one(odd, jpg=make["encode"](source, "PNG", transparency=bytes([0, 0, 0, 7])))
    assert packed.oddities == ("not_jpeg", "not_rgb")
    assert abs(pixels_of(packed.jpg).astype(int) - (200, 100, 50)).max() <= 2


@pytest.mark.parametrize(
    ("orientation", "oddity"),
    [(0, "invalid_exif"), (9, "invalid_exif"), *((number, "exif_rotation") for number in range(2, 9))],
)
def test_exif_never_turns_a_picture(odd, make, orientation: int, oddity: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = make["encode"](make["rgb"](), exif=exif)
    packed = pack_one(odd, jpg=data)
    assert packed.oddities == (oddity,)
    image = Image.open(io.BytesIO(packed.jpg))
    assert "exif" not in image.info
    assert (np.asarray(image) == pixels_of(data)).all()  # not even the JPEG data were touched


def test_upright_exif_stays(odd, make) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    data = make["encode"](make["rgb"](), exif=exif)
    packed = pack_one(odd, jpg=data)
    assert (packed.jpg, packed.oddities) == (data, ())


def test_unreadable_exif(odd, make) -> None:
    data = make["encode"](make["rgb"](), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert pack_one(odd, jpg=data).oddities == ("invalid_exif",)


def test_a_jpeg_with_a_warning_is_healed(odd, make) -> None:
    data = make["encode"](make["rgb"]())
    damaged = data[:-2] + b"abc" * 9 + data[-2:]
    with pytest.raises(ValueError, match="extraneous bytes"):
        simplejpeg.decode_jpeg(damaged)
    packed = pack_one(odd, jpg=damaged)
    assert packed.oddities == ("corrupt_jpeg",)
    assert simplejpeg.decode_jpeg(packed.jpg, strict=True).shape == (16, 24, 3)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_warning_counts_whatever_the_colours_are(odd, make, mode: str) -> None:
    data = make["encode"](make["rgb"]().convert(mode))
    packed = pack_one(odd, jpg=data[:-2] + b"abc" * 9 + data[-2:])
    assert packed.oddities == ("not_rgb", "corrupt_jpeg")
    assert packed.doubts[0].startswith(f"{odd.picture('pug_1')}: Corrupt JPEG data: ")


def test_a_lost_sector_is_always_noticed(odd, make) -> None:
    """Each sector is lost in turn; where the decoder stays silent, the picture is a suspect."""
    whole = make["encode"](make["rgb"](200, 150), quality=70)
    silent = 0
    for start in range(1024, len(whole) - 512, 512):
        data = whole[:start] + bytes(512) + whole[start + 512 :]
        odd.picture("pug_1").write_bytes(data)
        picture = read_picture(odd.picture("pug_1"))
        assert picture.oddities in (("corrupt_jpeg",), ("suspect_picture",))
        if picture.oddities == ("suspect_picture",):
            silent += 1
            assert (picture.jpg, f"from byte {start}" in picture.doubt) == (data, True)
    assert silent


def test_a_flat_lower_part_is_suspect(odd, make) -> None:
    pixels = np.array(make["rgb"](160, 160))
    pixels[112:] = 128  # of which the decoder softens the uppermost row of blocks
    png = make["encode"](make["trimap"](160, 160), "PNG")
    packed = pack_one(odd, jpg=make["encode"](Image.fromarray(pixels), quality=90), png=png)
    assert packed.oddities == ("suspect_picture",)
    assert "20% of it, in its lower part, is of one flat colour" in packed.doubts[0]
    assert json.loads(packed.json)["oddities"] == ["suspect_picture"]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG"])
def test_only_the_bytes_of_a_jpeg_are_searched_for_lost_sectors(
    odd, make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    searched = []
    monkeypatch.setattr(pictures, "why_suspect", lambda jpg, _: searched.append(jpg) or "")
    data = make["encode"](make["rgb"]().convert("L"), kind)  # grey: a JPEG of it has the closer look too
    odd.add("pug_1", jpg=data)
    read_picture(odd.picture("pug_1"))
    assert searched == [data if kind == "JPEG" else b""]


def test_trimap_oddities(odd, make) -> None:
    palette = make["trimap"]()
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255, 0, 255, 0])
    packed = pack_one(odd, png=make["encode"](palette, "PNG"))
    assert packed.oddities == ("palette_trimap",)
    assert (pixels_of(packed.png) == np.asarray(make["trimap"]())).all()


def test_all_background(odd, make) -> None:
    empty = Image.new("L", (24, 16), 2)
    assert pack_one(odd, png=make["encode"](empty, "PNG")).oddities == ("all_background",)


def huge_png(side: int) -> bytes:
    """A header that claims side x side pixels, and nothing behind it."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 9) + b"IDAT"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("empty", "not a readable JPEG, PNG, GIF"),
        ("text", "not a readable JPEG, PNG, GIF"),
        ("ppm", "not a readable JPEG, PNG, GIF"),
        ("cut", "cannot be decoded .*truncated.*; fetch it again"),
        ("cut png", r"is damaged \(it is cut short after 300 bytes\)"),
        ("large", "5001 x 5001 is more than 25 megapixels"),
        ("bomb", "decompression bomb"),
        ("16 bit", "pixel format I;16 is none of"),
    ],
)
def test_bad_pictures_are_named(odd, make, what: str, message: str) -> None:
    good = make["encode"](make["rgb"]())
    jpg = {
        "empty": lambda: b"",
        "text": lambda: b"<html>not found</html>",
        "ppm": lambda: make["encode"](make["rgb"](), "PPM"),
        "cut": lambda: good[:-90],
        "cut png": lambda: make["encode"](make["rgb"](), "PNG")[:300],
        "large": lambda: huge_png(5001),
        "bomb": lambda: huge_png(60_000),
        "16 bit": lambda: make["encode"](Image.fromarray(np.zeros((16, 24), np.uint16)), "PNG"),
    }[what]()
    with pytest.raises(Failure, match=rf"pug_1\.jpg:? .*{message}"):
        pack_one(odd, jpg=jpg)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("size", r"pug_1\.png is 8 x 9, but its picture .*pug_1\.jpg is 24 x 16"),
        ("values", r"pug_1\.png has the values 0, 1, 255; a trimap has 1 \(pet\)"),
        ("colour", r"pug_1\.png: pixel format RGB"),
        ("jpeg", r"pug_1\.png: not a readable PNG"),
        ("cut", r"pug_1\.png is damaged \(it is cut short after 50 bytes\); fetch it again"),
    ],
)
def test_bad_trimaps_are_named(odd, make, what: str, message: str) -> None:
    values = np.ones((16, 24), np.uint8)
    values[0, :2] = 0, 255
    png = {
        "size": lambda: make["encode"](make["trimap"](8, 9), "PNG"),
        "values": lambda: make["encode"](Image.fromarray(values), "PNG"),
        "colour": lambda: make["encode"](make["rgb"](), "PNG"),
        "jpeg": lambda: make["encode"](make["trimap"](), "JPEG"),
        "cut": lambda: make["encode"](make["trimap"](), "PNG")[:50],
    }[what]()
    with pytest.raises(Failure, match=message):
        pack_one(odd, png=png)


def altered_png(pixels: np.ndarray) -> bytes:
    """A PNG whose last pixels have changed since its checksums were made; Pillow decodes it without complaint."""
    rows = np.zeros((len(pixels), pixels[0].size + 1), np.uint8)
    rows[:, 1:] = pixels.reshape(len(pixels), -1)
    colour = 2 if pixels.ndim == 3 else 0
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, colour, 0, 0, 0))]
    whole = zlib.crc32(b"IDAT" + zlib.compress(rows.tobytes()))
    rows[-1, -4:] = 1
    chunks += [(b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")]
    sums = {b"IDAT": whole}
    framed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", sums.get(k, zlib.crc32(k + c))) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_altered_pixels_of_a_png_are_refused(odd, make) -> None:
    """Masks and pictures have their checksums compared; without them a damaged one would be packed as another one."""
    trimap, picture = np.asarray(make["trimap"]()), np.asarray(make["rgb"]())
    assert set(np.unique(pixels_of(altered_png(trimap)))) == {1, 2, 3}
    assert (pixels_of(altered_png(trimap)) != trimap).any()
    with pytest.raises(Failure, match=r"pug_1\.png is damaged \(the chunk at byte 33 does not match its checksum\)"):
        pack_one(odd, png=altered_png(trimap))
    odd.add("pug_2", jpg=altered_png(picture))
    with pytest.raises(Failure, match=r"pug_2\.jpg is damaged \(the chunk at byte 33"):
        pack_sample(read_folder(odd.root).samples[1], 0)


def test_no_message_shows_an_object(odd) -> None:
    odd.add("pug_1", jpg=b"no picture")
    odd.add("pug_2", png=b"no trimap")
    messages = pack_chunk(read_folder(odd.root).samples, 0)
    assert [str(message).rpartition(": ")[2] for message in messages] == [
        "not a readable JPEG, PNG, GIF, BMP, TIFF, WEBP file",
        "not a readable PNG file",
    ]


def test_a_chunk_reports_all_that_it_cannot_pack(odd) -> None:
    odd.add("pug_1")
    odd.add("pug_2", jpg=b"")
    odd.add("pug_3", png=b"")
    good, *bad = pack_chunk(read_folder(odd.root).samples, 0)
    assert isinstance(good, Packed)
    assert ["pug_2.jpg" in str(bad[0]), "pug_3.png" in str(bad[1])] == [True, True]


def test_every_oddity_is_explained() -> None:
    assert {"corrupt_jpeg", "suspect_picture", "near_duplicate", "other_file"} <= ODDITIES.keys()
    assert [kind for kind, text in ODDITIES.items() if not text] == []
