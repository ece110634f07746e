"""WebP: what its head says of size, transparency and colours, as browsers read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.formats.parts import MAX_PARTS, too_many

_KIND_AT: Final = 12
_LENGTH_AT: Final = 16
_BODY_AT: Final = 20
_FLAGS_AT, _SIZE_AT = _BODY_AT, 24
_HINT_AT: Final = 24
_HEAD_BYTES, _FRAME_BYTES = 8, 16
_PICTURES: Final = (b"VP8 ", b"VP8L")
_TRANSPARENT: Final = frozenset({b"ALPH", b"VP8L"})
_OPAQUE: Final = 255
_ANIMATION, _ALPHA, _PROFILE = 0x02, 0x10, 0x20  # alpha also in the hint of a lossless picture


def as_browsers_read(data: bytes) -> bytes:
    """Say that a picture may be transparent which does not say so itself, and one that leaves a part of it out.

    Pillow would show colours that are clear, and black.

    Raises:
        ImageError: `undecodable`: its transparency comes twice, its first frame is not of its size, or it has too many
            parts.
    """
    if data.startswith(b"VP8L", _KIND_AT) and len(data) > _HINT_AT:
        length = int.from_bytes(data[_LENGTH_AT:_BODY_AT], "little")
        if data.startswith(b"ALPH", _BODY_AT + length + length % 2):
            raise ImageError(ErrorCode.UNDECODABLE, "WEBP with its transparency twice")
        return _with_alpha(data, _HINT_AT)
    if not data.startswith(b"VP8X", _KIND_AT):
        return data
    frame = _first_frame(data)
    parts = list(_until_picture(data, *((frame.begin, frame.end) if frame else (_KIND_AT, len(data)))))
    if frame and parts and _picture_size(data, *parts[-1]) != (frame.width, frame.height):
        raise ImageError(ErrorCode.UNDECODABLE, "animated WEBP with a frame that is not of its size")
    covered = frame is None or (0, 0, *canvas_size(data)) == (frame.left, frame.top, frame.width, frame.height)
    is_opaque = covered and _TRANSPARENT.isdisjoint(kind for kind, _ in parts)
    return data if is_opaque else _with_alpha(data, _FLAGS_AT)


def refuse_hidden_alpha(data: bytes, image: Image.Image) -> None:
    """Refuse a still picture that is transparent without saying so: browsers mix its colours in another way.

    Args:
        data: A file that `as_browsers_read` has changed.
        image: The same, opened; it is loaded.

    Raises:
        ImageError: `undecodable`.
    """
    frame = _first_frame(data)
    box = (frame.left, frame.top, frame.left + frame.width, frame.top + frame.height) if frame else None
    if image.mode == "RGBA" and np.asarray(image.getchannel("A").crop(box)).min(initial=_OPAQUE) < _OPAQUE:
        raise ImageError(ErrorCode.UNDECODABLE, "WEBP with transparency that its head does not announce")


def has_profile(data: bytes) -> bool:
    """Whether its head announces a colour profile."""
    return data.startswith(b"VP8X", _KIND_AT) and bool(data[_FLAGS_AT] & _PROFILE)


def canvas_size(data: bytes) -> tuple[int, int]:
    """Width and height from the first chunk; 1 x 1 for what is no WEBP, which libwebp then refuses."""
    kind = data[_KIND_AT:_LENGTH_AT]
    if kind == b"VP8X":
        return _number(data, _SIZE_AT) + 1, _number(data, _SIZE_AT + 3) + 1
    return _picture_size(data, kind, _BODY_AT)


def is_animated(data: bytes) -> bool:
    """Whether it is of frames."""
    return data.startswith(b"VP8X", _KIND_AT) and bool(data[_FLAGS_AT] & _ANIMATION)


class _Frame(NamedTuple):
    left: int
    top: int
    width: int
    height: int
    begin: int
    end: int


def _first_frame(data: bytes) -> _Frame | None:
    """Of an animation; None for a still picture."""
    if not is_animated(data):
        return None
    for kind, body, end in _chunks(data, _KIND_AT, len(data)):
        if kind == b"ANMF":
            x, y, width, height = (_number(data, body + 3 * place) for place in range(4))
            return _Frame(2 * x, 2 * y, width + 1, height + 1, body + _FRAME_BYTES, min(end, len(data)))
    raise ImageError(ErrorCode.UNDECODABLE, "animated WEBP without a frame")


def _until_picture(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int]]:
    """The kinds of what stands before a picture, and its own, and where their contents begin."""
    for kind, body, _ in _chunks(data, at, end):
        yield kind, body
        if kind in _PICTURES:
            return


def _chunks(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The kinds of chunks, and where their contents begin and end.

    Raises:
        ImageError: `undecodable`: there are too many.
    """
    for _ in range(MAX_PARTS):
        if at + _HEAD_BYTES > end:
            return
        body, length = at + _HEAD_BYTES, int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], body, body + length
        at = body + length + length % 2
    raise too_many("WEBP")


def _picture_size(data: bytes, kind: bytes, at: int) -> tuple[int, int]:
    """Width and height that a picture's own head says, 1 at least."""
    if kind == b"VP8L":
        bits = int.from_bytes(data[at + 1 : at + 5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = (int.from_bytes(data[n : n + 2], "little") & 0x3FFF for n in (at + 6, at + 8))
        return max(width, 1), max(height, 1)
    return 1, 1


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


def _with_alpha(data: bytes, at: int) -> bytes:
    if data[at] & _ALPHA:
        return data
    return data[:at] + bytes((data[at] | _ALPHA,)) + data[at + 1 :]
