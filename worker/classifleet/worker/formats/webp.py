"""WebP: what its head says of size, transparency and colours, as browsers read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import Image

from classifleet.config.errors import ErrorCode, ImageError

_KIND_AT: Final = 12
_LENGTH_AT: Final = 16
_BODY_AT: Final = 20
_FLAGS_AT, _SIZE_AT = _BODY_AT, 24
_HINT_AT: Final = 24
_SIZE_BYTES: Final = 6
_PICTURES: Final = (b"VP8 ", b"VP8L")
_TRANSPARENT: Final = frozenset({b"ALPH", b"VP8L"})
_OPAQUE: Final = 255
_ANIMATION, _ALPHA, _PROFILE = 0x02, 0x10, 0x20  # alpha also in the hint of a lossless picture


def as_browsers_read(data: bytes) -> bytes:
    """Say that a picture may be transparent which does not say so itself, and one that leaves a part of it out.

    Pillow would show colours that are clear, and black.

    Raises:
        ImageError: `undecodable`: its transparency comes twice.
    """
    if data.startswith(b"VP8L", _KIND_AT) and len(data) > _HINT_AT:
        length = int.from_bytes(data[_LENGTH_AT:_BODY_AT], "little")
        if data.startswith(b"ALPH", _BODY_AT + length + length % 2):
            raise ImageError(ErrorCode.UNDECODABLE, "WEBP with its transparency twice")
        return _with_alpha(data, _HINT_AT)
    if not data.startswith(b"VP8X", _KIND_AT):
        return data
    if is_animated(data):
        frame = data.find(b"ANMF", _BODY_AT)
        is_opaque = data[frame + 8 : frame + 20] == bytes(6) + data[_SIZE_AT : _SIZE_AT + _SIZE_BYTES]
    else:
        is_opaque = _TRANSPARENT.isdisjoint(_still_chunks(data))
    return data if is_opaque else _with_alpha(data, _FLAGS_AT)


def refuse_hidden_alpha(data: bytes, image: Image.Image) -> None:
    """Refuse a still picture that is transparent without saying so: browsers mix its colours in another way.

    Args:
        data: A file that `as_browsers_read` has changed.
        image: The same, opened; it is loaded.

    Raises:
        ImageError: `undecodable`.
    """
    if not is_animated(data) and image.mode == "RGBA" and np.asarray(image.getchannel("A")).min() < _OPAQUE:
        raise ImageError(ErrorCode.UNDECODABLE, "WEBP with transparency that its head does not announce")


def has_profile(data: bytes) -> bool:
    """Whether its head announces a colour profile."""
    return data.startswith(b"VP8X", _KIND_AT) and bool(data[_FLAGS_AT] & _PROFILE)


def canvas_size(data: bytes) -> tuple[int, int]:
    """Width and height from the first chunk; 1 x 1 for what is no WEBP, which libwebp then refuses."""
    match data[_KIND_AT:_LENGTH_AT]:
        case b"VP8X":
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
            return max(width, 1), max(height, 1)
    return 1, 1


def is_animated(data: bytes) -> bool:
    """Whether it is of frames."""
    return data.startswith(b"VP8X", _KIND_AT) and bool(data[_FLAGS_AT] & _ANIMATION)


def _still_chunks(data: bytes) -> Iterator[bytes]:
    """The kinds of what stands before the picture, and its own."""
    at, kind = _KIND_AT, b""
    while kind not in _PICTURES and at + 8 <= len(data):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        yield kind
        at += 8 + length + length % 2


def _with_alpha(data: bytes, at: int) -> bytes:
    if data[at] & _ALPHA:
        return data
    return data[:at] + bytes((data[at] | _ALPHA,)) + data[at + 1 :]
