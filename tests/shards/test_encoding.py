"""What a shard's readers get back is what went in."""

import io

import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from shards.encoding import encode_png


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_our_png_encoder_loses_nothing(trimap: np.ndarray) -> None:
    image = Image.open(io.BytesIO(encode_png(trimap)))
    assert image.mode == "L"
    assert (np.asarray(image) == trimap).all()
