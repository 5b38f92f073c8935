"""Any picture as (H, W, 3) uint8 RGB, as it is shown: turned by its EXIF orientation, the first frame of several.

Grey, palette, CMYK and 16-bit pictures become RGB; transparent pixels lie on white. A JPEG is decoded as training and
evaluation decode it, so that masks are the same to the last pixel. Only formats whose readers run no other program are
opened.
"""

from __future__ import annotations

import functools
import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np
from PIL import Image, UnidentifiedImageError

from petseg.data.decode import MAX_PIXELS, Pixels, decode_whole_image
from shards.files import read_bounded

if TYPE_CHECKING:
    import torch

FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000")
SUFFIXES = (  # looked for in a folder
    ".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pnm", ".jp2",
)  # fmt: skip
MAX_FILE_BYTES = 1 << 30
SIXTEEN_BITS = 257  # 65535 / 255

Picture = Union[str, "os.PathLike[str]", bytes, Image.Image, np.ndarray, "torch.Tensor"]


def read_picture(source: Picture) -> Pixels:
    """(H, W, 3) uint8 of a file, its bytes, a PIL image, an array (H, W, 3) or (H, W), or a tensor (3, H, W).

    Raises ValueError in one line, with the file's name, for what is no picture or too large.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            return _of_bytes(read_file(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if isinstance(source, bytes):
        return _of_bytes(source)
    if isinstance(source, Image.Image):
        return _shown(source)
    return _of_array(source)


def read_file(path: Path) -> bytes:
    """The bytes of a file; raises ValueError, without its name, if there is none."""
    try:
        return read_bounded(path.resolve(), MAX_FILE_BYTES)
    except OSError as error:
        raise ValueError(error.strerror or "not a regular file") from None
    except ValueError:
        raise ValueError(f"larger than {MAX_FILE_BYTES:,} bytes") from None


def decode_picture(content: bytes, turned: bool = True) -> Pixels:
    """(H, W, 3) uint8 of the bytes of a picture file; raises ValueError.

    turned: by its EXIF orientation; pictures of a shard set are not, as its masks belong to their pixels
    """
    return _of_bytes(content, turned)


@functools.cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()  # readers of most formats are imported only then
    return [name for name in FORMATS if name in Image.OPEN]


_readers_lock = threading.Lock()
_filters = ExitStack()
_readers = 0


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings: of damaged metadata, and of many pixels, which are counted here.

    The filters of `warnings` belong to the whole process. The first of several threads that are here at once sets them,
    and the last one restores them; if each did both, one would restore what another had set.
    """
    global _readers
    with _readers_lock:
        if not _readers:
            _filters.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _readers += 1
    try:
        yield
    finally:
        with _readers_lock:
            _readers -= 1
            if not _readers:
                _filters.close()


def _of_bytes(content: bytes, turned: bool = True) -> Pixels:
    try:
        with without_warnings(), Image.open(io.BytesIO(content), formats=_formats()) as image:
            _require_size(*image.size)
            if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
                pixels = decode_whole_image(content)
                return _writable(_turned(pixels, image)) if turned else pixels
            return _shown(image, turned)
    except UnidentifiedImageError:  # its message shows only the BytesIO object
        raise ValueError("not a readable picture") from None
    except Exception as error:  # Pillow's readers raise whatever the bytes lead them to
        raise ValueError(f"not a readable picture ({_line(error)})") from None


def _shown(image: Image.Image, turned: bool = True) -> Pixels:
    """(H, W, 3) uint8 of a PIL image."""
    _require_size(*image.size)
    image.load()
    rgb = _rgb(image)
    return _writable(_turned(np.asarray(rgb), image) if turned else np.asarray(rgb))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image)
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers: their range is not known")
        return Image.fromarray((levels.clip(0, 65535) / SIXTEEN_BITS).round().astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        transparent = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, transparent).convert("RGB")
    return image.convert("RGB")


def _turned(pixels: Pixels, image: Image.Image) -> Pixels:
    """The pixels turned as the picture's EXIF data says; as they are where that cannot be read."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF makes its parsers raise anything
        return pixels
    method = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return pixels if method is None else np.asarray(Image.fromarray(pixels).transpose(method))


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def _of_array(source: np.ndarray | torch.Tensor) -> Pixels:
    array = source if isinstance(source, np.ndarray) else _of_tensor(source)
    if array.dtype == np.uint8 and array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(
            f"an array of shape {array.shape} and type {array.dtype} is no picture: (H, W, 3) or (H, W), uint8"
        )
    _require_size(array.shape[1], array.shape[0])
    return _writable(array)


def _of_tensor(tensor: torch.Tensor) -> np.ndarray:
    if not hasattr(tensor, "detach"):
        raise ValueError(f"a {type(tensor).__name__} is no picture: give a path, a PIL image, an array or a tensor")
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] == 3 else array


def _writable(pixels: np.ndarray) -> Pixels:
    """In one piece and writable, as torch wants it; a copy where it is not."""
    return np.require(pixels, np.uint8, ["C", "W"])


def _require_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels: 1 to {MAX_PIXELS // 10**6} megapixels are possible")


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
