"""Files that are broken where a decoder reads them: in their parts, whose lengths and checksums stay right.

Flipped bits seldom get past a checksum. So a file is taken apart (chunks, segments, blocks, headers), its parts are
mutated, doubled, moved, left out or taken from another file, and it is put together again.
"""

from __future__ import annotations

import functools
import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.decode_support import chunk
from tests.fuzz.made import any_exif, any_profile, made
from tests.models_support import NASTY

LARGEST_BYTES = 60_000
INTERESTING = (0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 63, 64, 127, 128, 254, 255)


class Part(NamedTuple):
    """A piece of a file: what names it, and what it holds."""

    kind: bytes
    body: bytes


# Apart, and together


def _png_apart(data: bytes) -> list[Part]:
    parts, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        parts.append(Part(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return parts


def _png_together(parts: Sequence[Part]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


_JPEG_ALONE = tuple(bytes((code,)) for code in (1, *range(0xD0, 0xDA)))


def _jpeg_apart(data: bytes) -> list[Part]:
    parts, at = [], 2
    while marker := re.compile(rb"\xff[^\x00\xff]", re.DOTALL).search(data, at):
        kind, at = marker[0], marker.end()
        length = 0 if kind[1:] in _JPEG_ALONE else int.from_bytes(data[at : at + 2])
        end = at + length
        if kind[1] == 0xDA:  # and its pixels
            after = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL).search(data, end)
            end = after.start() if after else len(data)
        parts.append(Part(kind, data[at + min(2, length) : end]))
        at = end
    return parts


def _jpeg_together(parts: Sequence[Part]) -> bytes:
    out = [b"\xff\xd8"]
    for kind, body in parts:
        alone = kind[1:] in _JPEG_ALONE
        length = (6 + 2 * body[0] if body else 2) if kind[1:] == b"\xda" else len(body) + 2
        out += [kind, b"" if alone else min(length, 65_535).to_bytes(2), body]
    return b"".join(out)


def _webp_apart(data: bytes) -> list[Part]:
    parts, at = [], 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append(Part(data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return parts


def _webp_together(parts: Sequence[Part]) -> bytes:
    body = b"".join(kind + len(body).to_bytes(4, "little") + body + b"\0" * (len(body) % 2) for kind, body in parts)
    return b"RIFF" + (len(body) + 4).to_bytes(4, "little") + b"WEBP" + body


def _gif_apart(data: bytes) -> list[Part]:
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    parts = [Part(b"head", data[:13]), Part(b"colors", data[13:at])]
    while at < len(data):
        begin = at
        if data[at] == 0x2C:
            at += 10
            at += 1 + (3 << (data[at - 1] & 7) + 1 if at <= len(data) and data[at - 1] & 0x80 else 0)
        elif data[at] == 0x21:
            at += 2
        else:
            parts.append(Part(b"alone", data[at : at + 1]))
            at += 1
            continue
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1
        parts.append(Part(data[begin : begin + 1], data[begin:at]))
    return parts


def _bmp_apart(data: bytes) -> list[Part]:
    begin, size = struct.unpack_from("<II", data.ljust(18, b"\0"), 10)
    end = min(14 + min(size, 200), len(data))
    return [
        Part(b"file", data[:14]), Part(b"head", data[14:end]), Part(b"colors", data[end : max(begin, end)]),
        Part(b"pixels", data[max(begin, end) :]),
    ]  # fmt: skip


def _joined(parts: Sequence[Part]) -> bytes:
    return b"".join(body for _, body in parts)


APART: dict[str, Callable[[bytes], list[Part]]] = {
    "PNG": _png_apart, "JPEG": _jpeg_apart, "WEBP": _webp_apart, "GIF": _gif_apart, "BMP": _bmp_apart,
}  # fmt: skip
TOGETHER: dict[str, Callable[[Sequence[Part]], bytes]] = {
    "PNG": _png_together, "JPEG": _jpeg_together, "WEBP": _webp_together, "GIF": _joined, "BMP": _joined,
}  # fmt: skip
MAGIC = {b"\x89P": "PNG", b"\xff\xd8": "JPEG", b"RI": "WEBP", b"GI": "GIF", b"BM": "BMP"}


@functools.cache
def nasty(kind: str) -> list[bytes]:
    """Small hostile files of a format, where they are at hand."""
    found = [path.read_bytes() for path in sorted(NASTY.iterdir()) if path.is_file()] if NASTY.is_dir() else []
    return [data for data in found if MAGIC.get(data[:2]) == kind and len(data) < LARGEST_BYTES]


def _spliced_png(randomness: random.Random) -> Part:
    """A chunk that shapes colours, transparency, turning or animation."""
    short = struct.pack(">H", randomness.choice((0, 1, 3, 15, 128, 255, 65_535)))
    return randomness.choice((
        Part(b"gAMA", struct.pack(">I", randomness.choice((0, 1, 10_000, 45_455, 100_000, 2**31, 2**32 - 1)))),
        Part(b"sRGB", bytes([randomness.choice((0, 3, 4))])),
        Part(b"cHRM", struct.pack(">8I", *(randomness.choice((31_270, 32_900, 64_000, 33_000, 0)) for _ in range(8)))),
        Part(b"cICP", bytes((randomness.choice((1, 9, 12)), randomness.choice((1, 8, 13, 16)), 0, 1))),
        Part(b"tRNS", short * randomness.choice((1, 3))),
        Part(b"tRNS", randomness.randbytes(randomness.choice((1, 2, 4, 16)))),
        Part(b"iCCP", b"x\0\0" + zlib.compress(any_profile(randomness))),
        Part(b"eXIf", any_exif(randomness)[6:]),
        Part(b"bKGD", short * 3),
        Part(b"sBIT", bytes((randomness.choice(INTERESTING),)) * 3),
        Part(b"acTL", struct.pack(">II", randomness.choice((0, 1, 2)), 0)),
        Part(b"pHYs", struct.pack(">IIB", randomness.choice((0, 1, 1000)), randomness.choice((1, 2000)), 1)),
    ))  # fmt: skip


def _spliced_jpeg(randomness: random.Random) -> Part:
    color = randomness.choice((0, 1, 2, 3))
    return randomness.choice((
        Part(b"\xff\xee", b"Adobe\0\x64\0\0\0\0" + bytes((color,))),
        Part(b"\xff\xe0", b"JFIF\0\1\1" + struct.pack(">BHHH", color, 1, randomness.choice((1, 2)), 0)),
        Part(b"\xff\xe1", any_exif(randomness)),
        Part(b"\xff\xe2", b"ICC_PROFILE\0\1\1" + any_profile(randomness)),
        Part(b"\xff\xdd", struct.pack(">H", randomness.choice((0, 1, 4, 300)))),
    ))  # fmt: skip


def _spliced_webp(randomness: random.Random) -> Part:
    flags = randomness.choice((0, 0x02, 0x08, 0x10, 0x12, 0x20, 0x30, randomness.randrange(64)))
    size = b"".join(randomness.choice((31, 39, 63, 119)).to_bytes(3, "little") for _ in range(2))
    other = [part for part in _webp_apart(made("WEBP", randomness)) if part.kind != b"VP8X"]
    return randomness.choice((
        Part(b"VP8X", bytes((flags, 0, 0, 0)) + size),
        Part(b"ICCP", any_profile(randomness)),
        Part(b"EXIF", any_exif(randomness)[6:]),
        Part(b"ALPH", b"\0" + randomness.randbytes(64 * 48)),
        Part(b"ANIM", bytes(6)),
        *other,
    ))  # fmt: skip


def _spliced_gif(randomness: random.Random) -> Part:
    flags, index = randomness.choice((0, 1, 4, 5, 8, 9, 12, 13)), randomness.choice((0, 1, 2, 255))
    return randomness.choice((
        Part(b"!", b"!\xf9\4" + bytes((flags, 0, 0, index, 0))),
        Part(b"!", b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0"),
        Part(b"!", b"!\xfe\4,,,,\0"),
        Part(b"!", b"!\x01\x0c" + bytes(12) + b"\2hi\0"),
    ))  # fmt: skip


def _spliced_bmp(randomness: random.Random) -> Part:
    return Part(b"colors", randomness.randbytes(randomness.choice((4, 8, 64, 1024))))


_SPLICES = {
    "PNG": _spliced_png, "JPEG": _spliced_jpeg, "WEBP": _spliced_webp, "GIF": _spliced_gif, "BMP": _spliced_bmp,
}  # fmt: skip


def mutant(seed: int) -> tuple[str, bytes]:
    """A format, and a file of it that is wrong somewhere; always the same for the same seed."""
    randomness = random.Random(seed)
    kind = randomness.choice(tuple(APART))
    data = randomness.choice(nasty(kind)) if nasty(kind) and randomness.random() < 0.3 else made(kind, randomness)
    parts = APART[kind](data)
    for _ in range(randomness.choice((0, 1, 1, 1, 2, 3))):
        parts = _changed(parts, kind, randomness)
    data = TOGETHER[kind](parts)
    return kind, data[: randomness.randrange(len(data) + 1)] if randomness.random() < 0.02 else data


def _changed(parts: list[Part], kind: str, randomness: random.Random) -> list[Part]:
    parts = list(parts)
    at, to = (randomness.randrange(len(parts) + 1) for _ in range(2))
    part = parts[min(at, len(parts) - 1)] if parts else Part(b"", b"")
    match randomness.randrange(10):
        case 0:
            del parts[at : at + 1]
        case 1:
            parts.insert(to, part)
        case 2:
            del parts[at : at + 1]
            parts.insert(to, part)
        case 3:
            other = APART[kind](made(kind, randomness))
            parts.insert(to, randomness.choice(other))
        case 4:
            parts.insert(min(to, randomness.choice((2, 4, 99))), _SPLICES[kind](randomness))
        case 5:
            cut = randomness.randrange(len(part.body) + 1)
            parts[at : at + 1] = [
                part._replace(body=part.body[:cut] + part.body[cut:][randomness.choice((1, 2, 99)) :])
            ]
        case 6:
            parts[at : at + 1] = [part._replace(body=part.body + randomness.randbytes(randomness.choice((1, 2, 8))))]
        case _:
            parts[at : at + 1] = [part._replace(body=_bytes_changed(part.body, kind, part.kind, randomness))]
    return parts


def _bytes_changed(body: bytes, kind: str, name: bytes, randomness: random.Random) -> bytes:
    if not body:
        return body
    inflated = kind == "PNG" and name == b"IDAT"
    try:
        plain = bytearray(zlib.decompress(body) if inflated else body)
    except zlib.error:
        plain, inflated = bytearray(body), False
    for _ in range(randomness.choice((1, 1, 2, 4))):
        near = min(int(randomness.expovariate(1 / 8)), len(plain) - 1)
        at = randomness.choice((near, randomness.randrange(len(plain)))) if plain else 0
        if plain:
            plain[at] = randomness.choice((randomness.choice(INTERESTING), plain[at] ^ 1 << randomness.randrange(8)))
    return zlib.compress(bytes(plain)) if inflated else bytes(plain)
