"""What the tests of the decoder share."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from classifleet.config.errors import ImageError
from classifleet.worker.decode import Decoded, decode
from classifleet.worker.models import Preprocess
from classifleet.worker.preprocess import preprocess
from tests.models_support import encode, spec

IMAGENET = spec(resize="shortest_edge_crop", resize_size=256, crop_size=[224, 224])
ORIENTATION = 0x0112
RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixels(data: bytes, **options) -> np.ndarray:
    (picture,) = decode(data, **options).pictures.values()
    assert picture.image.mode == "RGB"
    return np.asarray(picture.image)


def prepared(decoded: Decoded, target: Preprocess) -> np.ndarray:
    return preprocess(decoded.picture(target), target).astype(int)


def refusal(data: bytes, **options) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    return caught.value


def gif(canvas: tuple[int, int], frame: tuple[int, int, int, int], **options) -> bytes:
    """A green frame (left, top, width, height) on a canvas whose first colour is red; of the second version."""
    image = Image.new("P", frame[2:], 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    data = bytearray(encode(image, "GIF", **options))
    data[6:10] = struct.pack("<HH", *canvas)
    at = data.index(b",", 13 + 6)
    data[at + 1 : at + 9] = struct.pack("<HHHH", *frame)
    return b"GIF89a" + bytes(data[6:])


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(depth: int, color_type: int, row: bytes, width: int, *chunks: bytes, rows: int = 1) -> bytes:
    """A PNG of equal rows, with these chunks before its pixels."""
    head = struct.pack(">IIBBBBB", width, rows, depth, color_type, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress((b"\0" + row) * rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + body + chunk(b"IEND", b"")
