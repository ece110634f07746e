"""What a file is made of. Pillow is shown nothing that browsers do not read: one module a format says what that is.

Pillow walks the parts of a file in Python, holding the GIL: 20 MiB of empty ones take it 5 to 30 seconds. So they are
counted, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.formats import bmp, gif, jpeg, png, webp

__all__ = ["FORMATS", "as_browsers_read", "sniff"]
_MAGIC: Final = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM")),
)
_READ: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "JPEG": jpeg.as_browsers_read,
    "PNG": png.as_browsers_read,
    "WEBP": webp.as_browsers_read,
    "GIF": gif.as_browsers_read,
    "BMP": bmp.as_browsers_read,
}
FORMATS: Final = tuple(_READ)


def sniff(data: bytes) -> str:
    """The format, by the first bytes.

    Raises:
        ImageError: `unsupported_format`.
    """
    for kind, magic in _MAGIC:
        if magic.match(data):
            return kind
    raise ImageError(
        ErrorCode.UNSUPPORTED_FORMAT, f"not one of {', '.join(FORMATS)}: {len(data)} bytes, first {data[:8]!r}"
    )


def as_browsers_read(data: bytes, kind: str) -> bytes:
    """The file without what Pillow would believe and browsers do not read. Most come back as they are.

    Args:
        data: The file.
        kind: What `sniff` found.

    Raises:
        ImageError: `undecodable` or `unsupported_format`: it has too many parts, or programs disagree about them.
    """
    return _READ[kind](data)
